# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encrypted images from outside: volumes of cryptsetup and for it, kills, nothing secret shown.

Without the device mapper cryptsetup does not show a volume's content.  It tells the master key,
though, with which these tests decrypt sectors by themselves, as dm-crypt would.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from iotests.harness.crash import Load
from iotests.harness.daemon import Daemon
from iotests.harness.nbd import WRITE, Client
from iotests.harness.tools import need, run

SIZE = 4 << 20

pytestmark = [pytest.mark.slow, pytest.mark.interop]


class Spec(NamedTuple):
    """How a volume is encrypted: as cryptsetup says it, and as the QMP reference does."""

    cipher: str
    key_bits: int
    hash: str
    qmp: dict[str, str]


def _qmp(cipher: str, mode: str, ivgen: str, hash_name: str | None = None) -> dict[str, str]:
    members = {"cipher-alg": cipher, "cipher-mode": mode, "ivgen-alg": ivgen}
    return members | ({"ivgen-hash-alg": hash_name} if hash_name else {})


SPECS = [
    Spec("aes-xts-plain64", 512, "sha256", _qmp("aes-256", "xts", "plain64")),
    Spec("aes-xts-plain", 256, "sha1", _qmp("aes-128", "xts", "plain")),
    Spec("aes-xts-plain64", 512, "ripemd160", _qmp("aes-256", "xts", "plain64")),
    Spec("aes-cbc-essiv:sha256", 256, "sha512", _qmp("aes-256", "cbc", "essiv", "sha256")),
    Spec("aes-cbc-plain64", 192, "sha384", _qmp("aes-192", "cbc", "plain64")),
    Spec("aes-cbc-plain", 128, "sha224", _qmp("aes-128", "cbc", "plain")),
    Spec("serpent-xts-plain64", 512, "sha512", _qmp("serpent-256", "xts", "plain64")),
    Spec("serpent-cbc-essiv:sha256", 128, "sha256", _qmp("serpent-128", "cbc", "essiv", "sha256")),
    Spec("twofish-xts-plain64", 256, "sha256", _qmp("twofish-128", "xts", "plain64")),
    Spec("twofish-cbc-plain64", 192, "sha1", _qmp("twofish-192", "cbc", "plain64")),
    Spec("serpent-cbc-plain", 192, "sha256", _qmp("serpent-192", "cbc", "plain")),
    Spec("twofish-xts-plain64", 512, "sha512", _qmp("twofish-256", "xts", "plain64")),
    Spec("cast5-cbc-plain64", 128, "sha1", _qmp("cast5-128", "cbc", "plain64")),
]
BY_SPEC = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.cipher}-{spec.key_bits}")


def cryptsetup(folder: Path, *words: str, password: str = "", check: bool = True) -> str:
    """Run cryptsetup; the test is skipped where the kernel does not have the cipher."""
    done = subprocess.run(
        ["cryptsetup", "-q", *words],
        cwd=folder, input=password, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    if "device-mapper" in output:
        pytest.skip("this kernel has neither the cipher nor the device mapper")
    assert not check or done.returncode == 0, output
    return output


def opens(folder: Path, password: str) -> bool:
    """Tell whether cryptsetup opens the volume with a password."""
    words = ("open", "--test-passphrase", "--type", "luks1", "--key-file", "-", "volume")
    return "No key available" not in cryptsetup(folder, *words, password=password, check=False)


def master_key(folder: Path, password: str) -> bytes:
    dump = cryptsetup(
        folder, "luksDump", "--dump-master-key", "--key-file", "-", "volume", password=password
    )
    return bytes.fromhex("".join(re.findall(r"(?:\b[0-9a-f]{2} )+", dump.partition("MK dump")[2])))


def decrypted(folder: Path, key: bytes, spec: Spec) -> bytes:
    """Decrypt all of an AES volume sector by sector, as dm-crypt would."""
    _, mode, vectors = f"{spec.cipher}-".split("-")[:3]
    with (folder / "volume").open("rb") as volume:
        volume.seek(104)
        volume.seek(512 * int.from_bytes(volume.read(4), "big"))
        data = volume.read()
    plain = []
    for sector in range(len(data) // 512):
        vector = sector.to_bytes(16, "little")
        if vectors.startswith("essiv"):
            salt = hashlib.sha256(key).digest()
            book = Cipher(algorithms.AES(salt), modes.ECB()).encryptor()
            vector = book.update(vector)
        how = {"xts": modes.XTS, "cbc": modes.CBC, "ecb": lambda _: modes.ECB()}[mode](vector)
        decryptor = Cipher(algorithms.AES(key), how).decryptor()
        plain.append(decryptor.update(data[512 * sector : 512 * sector + 512]))
    return b"".join(plain)


def daemon_on(kind: str, folder: Path, *nodes: str) -> Daemon:
    """Start a daemon with the secrets "one", "two" and "three", and a file node."""
    (folder / "nbd.sock").unlink(missing_ok=True)
    secrets = [f"secret,id={name},data={name}" for name in ("one", "two", "three")]
    return Daemon(
        kind,
        folder,
        *(word for secret in secrets for word in ("--object", secret)),
        *("--blockdev", "file,node-name=file,filename=volume"),
        *(word for node in nodes for word in ("--blockdev", node)),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
    )


def export(daemon: Daemon) -> Client:
    daemon.ok("block-export-add", type="nbd", id="x", **{"node-name": "top", "writable": True})
    return Client(daemon.folder / "nbd.sock", "top")


def amend(daemon: Daemon, **options: object) -> None:
    daemon.ok(
        "x-blockdev-amend",
        **{"job-id": "amend", "node-name": "top", "options": {"driver": "luks", **options}},
    )
    daemon.job("amend")


def fill(client: Client, seed: int) -> bytes:
    """Write everything, in requests of several lengths; return it."""
    source = random.Random(seed)
    disk = source.randbytes(client.size)
    at = 0
    while at < len(disk):
        piece = disk[at : at + source.choice([512, 4096, 20480, 65536, 300_032, 1 << 20])]
        client.call(WRITE, at, len(piece), piece)
        at += len(piece)
    return disk


@BY_SPEC
def test_volumes_of_cryptsetup(spec: Spec, tmp_path: Path, daemon_kind: str) -> None:
    """Opened, written, and given another key."""
    need("cryptsetup")
    (tmp_path / "volume").write_bytes(bytes(SIZE))
    words = ["luksFormat", "--type", "luks1", "--cipher", spec.cipher, "-s", str(spec.key_bits)]
    words += ["--hash", spec.hash, "--pbkdf-force-iterations", "1000", "--key-file", "-"]
    cryptsetup(tmp_path, *words, "volume", password="one")
    node = "luks,node-name=top,file=file,key-secret=one"
    with daemon_on(daemon_kind, tmp_path, node) as daemon:
        amend(daemon, state="active", **{"new-secret": "two", "iter-time": 1})
        client = export(daemon)
        disk = fill(client, 1)
        client.close()
        assert daemon.stop() == 0
    for password in ("one", "two"):
        assert opens(tmp_path, password)
    assert not opens(tmp_path, "three")
    if spec.cipher.startswith("aes"):
        assert decrypted(tmp_path, master_key(tmp_path, "two"), spec) == disk


@BY_SPEC
def test_volumes_for_cryptsetup(spec: Spec, tmp_path: Path, daemon_kind: str) -> None:
    """Described as they are, given another key, and relieved of the first one."""
    need("cryptsetup")
    (tmp_path / "volume").touch()
    options = {"driver": "luks", "file": "file", "size": 1 << 20, "key-secret": "one"}
    options |= {"hash-alg": spec.hash, "iter-time": 1, **spec.qmp}
    with daemon_on(daemon_kind, tmp_path) as daemon:
        daemon.ok("blockdev-create", **{"job-id": "create", "options": options})
        daemon.job("create")
        opening = {"driver": "luks", "node-name": "top", "file": "file", "key-secret": "one"}
        daemon.ok("blockdev-add", **opening)
        client = export(daemon)
        disk = fill(client, 2)
        client.close()
        assert daemon.stop() == 0
    dump = cryptsetup(tmp_path, "luksDump", "volume")
    for name, value in [
        ("Cipher name", spec.cipher.split("-", 1)[0]),
        ("Cipher mode", spec.cipher.split("-", 1)[1]),
        ("Hash spec", spec.hash),
        ("MK bits", str(spec.key_bits)),
    ]:
        assert re.search(rf"^{name}:\s+{re.escape(value)}\s*$", dump, re.MULTILINE), (name, dump)
    assert opens(tmp_path, "one")
    assert not opens(tmp_path, "two")
    (tmp_path / "new").write_text("two")
    cryptsetup(
        tmp_path, "luksAddKey", "--pbkdf-force-iterations", "1000", "--key-file", "-", "volume",
        "new", password="one",
    )  # fmt: skip
    cryptsetup(tmp_path, "luksKillSlot", "--key-file", "-", "volume", "0", password="two")
    with daemon_on(daemon_kind, tmp_path) as daemon:
        refused = daemon.qmp("blockdev-add", **opening)
        assert refused["error"]["desc"] == "Invalid password, cannot unlock any keyslot"
        daemon.ok("blockdev-add", **{**opening, "key-secret": "two"})
        amend(daemon, state="active", **{"new-secret": "three", "keyslot": 7, "iter-time": 1})
    assert opens(tmp_path, "three")
    if spec.cipher.startswith("aes"):
        assert decrypted(tmp_path, master_key(tmp_path, "three"), spec) == disk


#: Format, options for qemu-img, options of the node.
IMAGES = {
    "luks": ("luks", "key-secret=one,iter-time=10", "key-secret=one"),
    "luks-cbc": (
        "luks",
        "key-secret=one,iter-time=10,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,"
        "ivgen-hash-alg=sha256",
        "key-secret=one",
    ),
    "qcow2-luks": (
        "qcow2",
        "encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=10,cluster_size=4k",
        "encrypt.format=luks,encrypt.key-secret=one",
    ),
    "qcow2-aes": (
        "qcow2",
        "encrypt.format=aes,encrypt.key-secret=one",
        "encrypt.format=aes,encrypt.key-secret=one",
    ),
}


def content(folder: Path, variant: str) -> bytes:
    """Let qemu-img decrypt an image, and check a qcow2 one."""
    fmt, _, opening = IMAGES[variant]
    tail = ("--object", "secret,id=one,data=one", "--image-opts")
    image = f"driver={fmt},file.filename=volume,{opening}"
    if fmt == "qcow2":
        checked = run(folder, "qemu-img", "check", *tail, image, check=False)
        assert re.search(r"No errors were found|\d+ leaked clusters", checked), checked
        assert "error" not in checked.replace("No errors", ""), checked
    run(folder, "qemu-img", "convert", *tail, "-O", "raw", image, "after.raw")
    return (folder / "after.raw").read_bytes()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", IMAGES)
def test_kill(variant: str, tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    """SIGKILL at a random moment of a random load, over and over; see test_kill.py."""
    need("qemu-img")
    fmt, making, opening = IMAGES[variant]
    run(
        tmp_path, "qemu-img", "create", "-q", "--object", "secret,id=one,data=one", "-f", fmt,
        "-o", making, "volume", "24M",
    )  # fmt: skip
    source = random.Random(variant)
    disk = content(tmp_path, variant)
    before = {at // 512: disk[at : at + 512] for at in range(0, len(disk), 512)}
    for number in range(-(-kill_rounds // len(IMAGES))):
        with daemon_on(daemon_kind, tmp_path, f"{fmt},node-name=top,file=file,{opening}") as daemon:
            daemon.ok(
                "block-export-add", type="nbd", id="x", **{"node-name": "top", "writable": True}
            )
            load = Load(tmp_path / "nbd.sock", "top", source.randrange(1 << 30))
            killer = threading.Timer(source.uniform(0.02, 0.6), daemon.kill)
            killer.start()
            load.run(100000, before)
            killer.join()
            load.client.close()
        before = load.verify(content(tmp_path, variant))
        assert load.history, f"round {number} did nothing"


def test_nothing_secret_is_shown(tmp_path: Path, daemon_kind: str) -> None:
    """Neither the password nor the master key is in any answer.

    (A password that is given as "data" can be read back, as from the C daemon.)
    """
    need("qemu-img", "cryptsetup")
    (tmp_path / "password").write_text("correct-horse")
    secret = "secret,id=one,file=password"
    run(
        tmp_path, "qemu-img", "create", "-q", "--object", secret, "-f",
        "luks", "-o", "key-secret=one,iter-time=10", "volume", "1M",
    )  # fmt: skip
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--object", secret),
        *("--blockdev", "file,node-name=file,filename=volume"),
        *("--blockdev", "luks,node-name=top,file=file,key-secret=one"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
    ) as daemon:
        export(daemon).close()
        answers = [
            daemon.qmp("query-named-block-nodes"),
            *(
                daemon.qmp("qom-get", path="/objects/one", property=name)
                for name in ("data", "file", "keyid", "loaded")
            ),
            daemon.qmp("query-block-exports"),
            daemon.qmp("x-blockdev-amend", **{
                "job-id": "amend", "node-name": "top",
                "options": {"driver": "luks", "state": "inactive", "old-secret": "one"},
            }),
        ]  # fmt: skip
        daemon.event("JOB_STATUS_CHANGE", id="amend", status="concluded")
        answers.append(daemon.qmp("query-jobs"))
        assert daemon.stop() == 0
        shown = repr(answers) + daemon.log_text()
    key = master_key(tmp_path, "correct-horse")
    assert "refusing operation" in shown
    assert "correct-horse" not in shown
    assert key.hex() not in shown
    assert repr(key)[2:-1] not in shown
