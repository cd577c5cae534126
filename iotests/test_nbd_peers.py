# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Our NBD client against the servers that people run; TLS against the tools they use."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from iotests.harness.daemon import ROOT, Daemon, command_line
from iotests.harness.nbd import Client
from iotests.harness.tools import need, run
from iotests.test_clients import SIZE, content, free_port

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(400)]

WORK = (
    "write -P 7 1M 8M", "read -P 7 1M 8M", "write -z 3M 1M", "read -P 0 3M 1M", "write -P 99 5 7",
    "read -P 99 5 7", "discard 0 64k", "flush", "write -f -P 3 1k 1k", "read -P 3 1k 1k",
)  # fmt: skip


@contextlib.contextmanager
def running(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "peer.log").open("ab") as log:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def client_of(kind: str, folder: Path, options: str, *more: str) -> Iterator[Daemon]:
    """Run a daemon that serves another server's export once more, as soon as there is one."""
    daemon = Daemon(
        kind,
        folder,
        *more,
        *("--blockdev", f"nbd,node-name=c,discard=unmap,open-timeout=20,{options}"),
        *("--nbd-server", "addr.type=unix,addr.path=again.sock"),
        *("--export", "nbd,id=x,node-name=c,name=disk,writable=on"),
    )
    with daemon:
        yield daemon
        assert daemon.quit() == 0


def work(folder: Path, commands: Iterable[str] = WORK) -> None:
    """Compare what is read with the source, then write and read in all ways."""
    uri = "nbd+unix:///disk?socket=again.sock"
    run(folder, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, "source.raw")
    words = [word for command in commands for word in ("-c", command)]
    said = run(folder, "qemu-io", "-f", "raw", *words, uri)
    assert "failed" not in said, said


class Peer(NamedTuple):
    """A server of the file "image".

    Attributes:
        command: Its command line; {folder} and {port} are filled in.
        where: How our client finds it.
        uri: How libnbd finds it.
        creds: TLS credentials of our client.
        takes: What qemu-io does.
    """

    command: str
    where: str = "server.type=unix,server.path=n.sock"
    uri: str = "nbd+unix:///?socket={folder}/n.sock"
    creds: str = ""
    takes: tuple[str, ...] = WORK


TCP = "server.type=inet,server.host=localhost,server.port={port}"
X509 = "tls-creds-x509,id=c,endpoint=client,dir={folder}/client-alice"
PSK = "tls-creds-psk,id=c,endpoint=client,dir={folder},username=alice"
BLOCKS = (
    "blocksize-minimum=4096 blocksize-preferred=65536 blocksize-maximum=262144 "
    "blocksize-error-policy=error"
)
PEERS = {
    "qemu-nbd": Peer(
        "qemu-nbd -t -f raw -x y -k {folder}/n.sock image",
        "server.type=unix,server.path=n.sock,export=y",
        "nbd+unix:///y?socket={folder}/n.sock",
    ),
    "qemu-nbd, x509": Peer(
        "qemu-nbd -t -f raw -p {port} --object tls-creds-x509,id=t,endpoint=server,dir=server "
        "--tls-creds t image",
        TCP + ",tls-creds=c",
        "nbds://localhost:{port}/?tls-certificates={folder}/client-alice",
        X509,
    ),
    "qemu-nbd, PSK": Peer(
        "qemu-nbd -t -f raw -p {port} --object tls-creds-psk,id=t,endpoint=server,dir={folder} "
        "--tls-creds t image",
        TCP + ",tls-creds=c",
        "nbds://alice@localhost:{port}/?tls-psk-file={folder}/keys.psk",
        PSK,
    ),
    "qemu-storage-daemon": Peer(
        "qemu-storage-daemon --blockdev file,node-name=f,filename=image,discard=unmap "
        "--nbd-server addr.type=unix,addr.path=n.sock,max-connections=0 "
        "--export nbd,id=e,node-name=f,name=y,writable=on",
        "server.type=unix,server.path=n.sock,export=y",
        "nbd+unix:///y?socket={folder}/n.sock",
    ),
    "qsd": Peer(
        " ".join(command_line("ours")) + " --blockdev file,node-name=f,filename=image,discard=unmap"
        " --nbd-server addr.type=unix,addr.path=n.sock,max-connections=0 "
        "--export nbd,id=e,node-name=f,name=y,writable=on",
        "server.type=unix,server.path=n.sock,export=y",
        "nbd+unix:///y?socket={folder}/n.sock",
    ),
    "nbdkit": Peer("nbdkit -f -U n.sock file image"),
    "nbdkit, x509": Peer(
        "nbdkit -f -p {port} --tls=require --tls-certificates={folder}/server file image",
        TCP + ",tls-creds=c",
        "nbds://localhost:{port}/?tls-certificates={folder}/client-alice",
        X509,
    ),
    "nbdkit, PSK": Peer(
        "nbdkit -f -p {port} --tls=require --tls-psk={folder}/keys.psk file image",
        TCP + ",tls-creds=c",
        "nbds://alice@localhost:{port}/?tls-psk-file={folder}/keys.psk",
        PSK,
    ),
    "nbdkit, simple replies": Peer("nbdkit -f --no-sr -U n.sock file image"),
    "nbdkit, plain newstyle": Peer("nbdkit -f --mask-handshake=0 -U n.sock file image"),
    # Its oldstyle server refuses every write.
    "nbdkit, oldstyle": Peer("nbdkit -f --oldstyle -U n.sock file image", takes=()),
    "nbdkit --filter=delay": Peer("nbdkit -f -U n.sock --filter=delay file image rdelay=2ms"),
    "nbdkit --filter=blocksize-policy": Peer(
        "nbdkit -f -U n.sock --filter=blocksize-policy file image " + BLOCKS
    ),
    "nbdkit --filter=nozero": Peer("nbdkit -f -U n.sock --filter=nozero file image"),
    "nbdkit --filter=noextents": Peer("nbdkit -f -U n.sock --filter=noextents file image"),
    "nbdkit --filter=fua": Peer("nbdkit -f -U n.sock --filter=fua file image fuamode=force"),
    "nbd-server": Peer(
        "nbd-server -C config -d", TCP + ",export=disk", "nbd://localhost:{port}/disk"
    ),
}

DOCUMENT = ROOT / "docs" / "compatibility.md"


def offers(folder: Path, uri: str) -> str:
    """Return what a server offers, as soon as there is one, as cells of the document's table."""
    text = ""
    while not text.startswith("{"):
        text = run(folder, "nbdinfo", "--json", uri, check=False)
    said = json.loads(text)
    export = said["exports"][0]
    names = {
        "can_flush": "flush",
        "can_fua": "FUA",
        "can_trim": "trim",
        "can_zero": "zeroes",
        "can_fast_zero": "fast zeroes",
    }
    found = [name for key, name in names.items() if export.get(key)]
    if "base:allocation" in export.get("contexts", ()):
        found.insert(0, "extents")
    sizes = [export.get(f"block_size_{kind}") for kind in ("minimum", "preferred", "maximum")]
    cells = (
        said["protocol"],
        "structured" if said.get("structured") else "simple",
        " / ".join(str(size) for size in sizes) if all(sizes) else "unknown",
        ", ".join(found),
    )
    return " | ".join(cells)


def test_the_document_has_all_servers() -> None:
    told = re.findall(r"^\| `([^`]+)` \| (?:new|old)style", DOCUMENT.read_text(), re.MULTILINE)
    assert told == list(PEERS)


def test_the_document_names_tests_that_exist() -> None:
    section = DOCUMENT.read_text().split("## NBD interoperability")[1].split("\n## ")[0]
    names = set(re.findall(r"`(test_\w+)`", section))
    files = ("test_nbd_peers.py", "test_clients.py", "test_tls_peers.py")
    known = "".join((ROOT / "iotests" / name).read_text() for name in files)
    assert names
    assert {name for name in names if f"def {name}(" not in known} == set()


def configure(folder: Path, port: int) -> None:
    """Write what nbd-server wants to know."""
    (folder / "config").write_text(
        f"[generic]\nlistenaddr=127.0.0.1\nport={port}\n[disk]\nexportname={folder}/image\n"
    )


@pytest.mark.parametrize("name", PEERS)
def test_peer(name: str, certificates: Path, daemon_kind: str, regenerate: bool) -> None:
    """The whole export arrives through our client; writes, zeroes and the like arrive there."""
    folder, port = certificates, free_port()
    peer = PEERS[name]
    command, where, uri, creds = (text.format(folder=folder, port=port) for text in peer[:4])
    need(command.split()[0], "qemu-img", "qemu-io", "nbdinfo")
    (folder / "source.raw").write_bytes(content())
    (folder / "image").write_bytes(content())
    (folder / "keys.psk").write_text("alice:00112233445566778899aabbccddeeff\n")
    configure(folder, port)
    more = ("--object", creds) if creds else ()
    with running(folder, *command.split()), client_of(daemon_kind, folder, where, *more):
        work(folder, peer.takes)
    if regenerate:
        (folder / "n.sock").unlink(missing_ok=True)
        with running(folder, *command.split()):
            row = f"| `{name}` | {offers(folder, uri)} |"
        text = re.sub(
            rf"^\| `{re.escape(name)}` \|.*$", row, DOCUMENT.read_text(), flags=re.MULTILINE
        )
        DOCUMENT.write_text(text)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("EPERM", "Operation not permitted"),
        ("EIO", "Input/output error"),
        ("ENOMEM", "Cannot allocate memory"),
        ("EINVAL", "Invalid argument"),
        ("ENOSPC", "No space left on device"),
    ],
)
def test_errors_of_the_server_arrive(
    error: str, text: str, tmp_path: Path, daemon_kind: str
) -> None:
    need("nbdkit", "qemu-io")
    (tmp_path / "image").write_bytes(content())
    command = ("nbdkit", "-f", "-U", "n.sock", "--filter=error", "file", "image")
    with (
        running(tmp_path, *command, f"error={error}", "error-pwrite-rate=100%"),
        client_of(daemon_kind, tmp_path, "server.type=unix,server.path=n.sock"),
    ):
        said = run(
            tmp_path, "qemu-io", "-f", "raw", "-c", "write 0 4k", "-c", "write 0 100k",
            "-c", "read 0 4k", "nbd+unix:///disk?socket=again.sock", check=False,
        )  # fmt: skip
        assert said.count(f"write failed: {text}") == 2
        assert "read 4096/4096" in said


def test_requests_in_flight_fail_when_the_server_dies(tmp_path: Path, daemon_kind: str) -> None:
    """Without reconnect-delay they fail at once; a new server is found again."""
    need("nbdkit")
    (tmp_path / "image").write_bytes(content())
    slow = ("nbdkit", "-f", "-U", "n.sock", "--filter=delay", "file", "image", "rdelay=60",
            "wdelay=60")  # fmt: skip
    fast = ("nbdkit", "-f", "-U", "n.sock", "file", "image")
    with contextlib.ExitStack() as servers, contextlib.ExitStack() as stack:
        server = servers.enter_context(running(tmp_path, *slow))
        where = "server.type=unix,server.path=n.sock"
        stack.enter_context(client_of(daemon_kind, tmp_path, where))
        client = Client(tmp_path / "again.sock", "disk")
        for number in range(32):
            data = bytes(4096) if number % 2 else b""
            client.send(number % 2, number, number * 65536, 4096 * (1 + number % 3 * 16), data)
        server.kill()
        server.wait()
        for _ in range(32):
            assert client.receive()[1] == 5
        (tmp_path / "n.sock").unlink()
        servers.enter_context(running(tmp_path, *fast))
        while True:
            client.send(0, 99, 0, 4096)
            _, error, *_ = client.receive()
            if not error:
                break
        client.close()


#: Servers that are killed and started again.
MORTALS = ("qemu-nbd", "qemu-storage-daemon", "qsd", "nbdkit", "nbd-server")


def mortal(folder: Path, name: str) -> tuple[list[str], str]:
    """Return the command of a server, and how to connect to it."""
    peer, port = PEERS[name], free_port()
    command = peer.command.format(folder=folder).split()
    need(command[0])
    configure(folder, port)
    if name == "nbdkit":  # it alone minds the socket that the one before has left
        command = ["sh", "-c", f"rm -f n.sock; exec {' '.join(command)}"]
    return command, peer.where.format(port=port)


@pytest.mark.parametrize("server_name", MORTALS)
def test_killed_and_restarted_under_load(
    tmp_path: Path, daemon_kind: str, server_name: str
) -> None:
    """With reconnect-delay nothing of what was confirmed is lost, and nothing fails."""
    command, where = mortal(tmp_path, server_name)
    (tmp_path / "image").write_bytes(bytes(SIZE))
    where += ",reconnect-delay=30"
    with contextlib.ExitStack() as servers, contextlib.ExitStack() as stack:
        server = servers.enter_context(running(tmp_path, *command))
        stack.enter_context(client_of(daemon_kind, tmp_path, where))
        client = Client(tmp_path / "again.sock", "disk")
        for number in range(200):
            if number in (50, 120):
                server.kill()
                server.wait()
                server = servers.enter_context(running(tmp_path, *command))
            data = number.to_bytes(2, "big") * 2048
            client.send(1, number, number * 4096, data=data)
            if number % 8 == 7:
                for _ in range(8):
                    assert client.receive()[1] == 0
        client.call(3)
        for number in range(200):
            assert client.call(0, number * 4096, 4096) == number.to_bytes(2, "big") * 2048
        client.close()


@pytest.mark.parametrize("server_name", MORTALS)
def test_mixed_load_survives_restarts(tmp_path: Path, daemon_kind: str, server_name: str) -> None:
    """Reads, writes and zeroes of all sizes while the server is killed again and again."""
    command, where = mortal(tmp_path, server_name)
    (tmp_path / "image").write_bytes(bytes(SIZE))
    where += ",reconnect-delay=180"
    choice = random.Random(5)
    model = bytearray(SIZE)
    with contextlib.ExitStack() as servers, contextlib.ExitStack() as stack:
        server = servers.enter_context(running(tmp_path, *command))
        stack.enter_context(client_of(daemon_kind, tmp_path, where))
        client = Client(tmp_path / "again.sock", "disk")
        for turn in range(60):
            # Requests in flight do not overlap: each has its own slice of the disk.
            expected: dict[int, bytes] = {}
            for slot in range(16):
                length = choice.choice([512, 4096, 4096, 65536, 300_000])
                offset = slot * (SIZE // 16) + choice.randrange(0, SIZE // 16 - length, 512)
                cookie, command_id = turn * 16 + slot, choice.choice([0, 0, 1, 1, 6])
                if command_id == 1:
                    data = choice.randbytes(length)
                    model[offset : offset + length] = data
                    client.send(1, cookie, offset, data=data)
                elif command_id == 6:
                    model[offset : offset + length] = bytes(length)
                    client.send(6, cookie, offset, length)
                else:
                    expected[cookie] = bytes(model[offset : offset + length])
                    client.send(0, cookie, offset, length)
            if turn % 12 == 7:
                server.kill()
                server.wait()
                server = servers.enter_context(running(tmp_path, *command))
            for _ in range(16):
                cookie, error, data = client.receive()
                assert not error
                assert data == expected.get(cookie, b"")
        client.call(3)
        client.close()
    assert (tmp_path / "image").read_bytes() == model


BITMAP_OPTIONS = (
    "driver=nbd,server.type=unix,server.path={socket},export={export},"
    "x-dirty-bitmap=qemu:dirty-bitmap:b0"
)


def dirty_of(extents: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return (start, length) of what is dirty in a map made with x-dirty-bitmap.

    Manual of qemu-img, "map": through this hack dirty ranges are those without data.
    """
    return [(part["start"], part["length"]) for part in extents if not part["data"]]


def test_incremental_backup_pulled_from_us(tmp_path: Path, daemon_kind: str) -> None:
    """qemu-img asks our server for the dirty ranges and copies nothing else."""
    need("qemu-img", "qemu-io", "nbdinfo")
    run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
    run(tmp_path, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "disk.qcow2")
    serving = Daemon(
        daemon_kind,
        tmp_path,
        *("--blockdev", "file,node-name=f,filename=disk.qcow2"),
        *("--blockdev", "qcow2,node-name=d,file=f"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
    )
    with serving:
        serving.qmp("block-dirty-bitmap-add", node="d", name="b0", granularity=65536)
        serving.qmp(
            "block-export-add", type="nbd", id="e", node_name="d", writable=True, bitmaps=["b0"]
        )
        uri = "nbd+unix:///d?socket=nbd.sock"
        run(tmp_path, "nbdcopy", uri, "backup.raw")
        run(tmp_path, "qemu-io", "-f", "raw", "-c", "write -P 2 64k 100k", "-c", "write -P 3 3M 1",
            uri)  # fmt: skip
        options = BITMAP_OPTIONS.format(socket="nbd.sock", export="d")
        said = run(tmp_path, "qemu-img", "map", "--output=json", "--image-opts", options)
        dirty = dirty_of(json.loads(said))
        assert dirty == [(65536, 131072), (3 << 20, 65536)]
        told = run(tmp_path, "nbdinfo", "--map=qemu:dirty-bitmap:b0", uri)
        assert [line.split()[:3] for line in told.splitlines() if line.split()[2] == "1"] == [
            [str(start), str(length), "1"] for start, length in dirty
        ]
        for start, length in dirty:
            run(
                tmp_path, "qemu-img", "dd", "-f", "raw", "-O", "raw", f"bs={65536}",
                f"skip={start // 65536}", f"count={(start + length) // 65536}",
                f"if={uri}", "of=part.raw",
            )  # fmt: skip
            part = (tmp_path / "part.raw").read_bytes()[:length]
            with (tmp_path / "backup.raw").open("r+b") as backup:
                backup.seek(start)
                backup.write(part)
        run(tmp_path, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, "backup.raw")
        assert serving.quit() == 0


def test_dirty_bitmap_of_a_server(tmp_path: Path, daemon_kind: str) -> None:
    """Our client shows the bitmap of a real server as block status."""
    need("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo")
    run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
    run(tmp_path, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "disk.qcow2")
    run(tmp_path, "qemu-img", "bitmap", "--add", "-g", "65536", "-f", "qcow2", "disk.qcow2", "b0")
    for at in ("64k 100k", "3M 1"):
        run(tmp_path, "qemu-io", "-f", "qcow2", "-c", f"write -P 2 {at}", "disk.qcow2")
    command = ("qemu-nbd", "-t", "-f", "qcow2", "-B", "b0", "-k", f"{tmp_path}/n.sock")
    daemon = Daemon(
        daemon_kind,
        tmp_path,
        *("--nbd-server", "addr.type=unix,addr.path=again.sock"),
    )
    with running(tmp_path, *command, "-r", "disk.qcow2"), daemon:
        node: dict[str, Any] = {
            "driver": "nbd",
            "server": {"type": "unix", "path": "n.sock"},
            "x-dirty-bitmap": "qemu:dirty-bitmap:b0",
        }
        daemon.qmp("blockdev-add", node_name="c", read_only=True, open_timeout=20, **node)
        daemon.qmp("block-export-add", type="nbd", id="e", node_name="c")
        told = json.loads(
            run(tmp_path, "nbdinfo", "--json", "--map", "nbd+unix:///c?socket=again.sock")
        )
        dirty = [(part["offset"], part["length"]) for part in told if part["type"] & 1]
        assert dirty == [(65536, 131072), (3 << 20, 65536)]
        assert daemon.quit() == 0


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    done = subprocess.run(
        [*command_line("ours"), "pki", str(tmp_path), "--client", "alice"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_tls_both_ways(certificates: Path, daemon_kind: str) -> None:
    need("qemu-img", "nbdinfo", "nbdcopy")
    folder = certificates
    (folder / "source.raw").write_bytes(content())
    (folder / "image").write_bytes(content())
    port = free_port()
    serving = Daemon(
        daemon_kind,
        folder,
        *("--object", "tls-creds-x509,id=t,endpoint=server,dir=server"),
        *("--object", "authz-simple,id=z,identity=CN=alice"),
        *("--blockdev", "file,node-name=f,filename=image"),
        "--nbd-server",
        f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t,tls-authz=z",
        *("--export", "nbd,id=x,node-name=f,name=disk,writable=on"),
    )
    with serving:
        uri = f"nbds://localhost:{port}/disk?tls-certificates={folder}/client-alice"
        assert run(folder, "nbdinfo", "--size", uri).strip() == str(SIZE)
        run(folder, "nbdcopy", uri, "copy.raw")
        assert (folder / "copy.raw").read_bytes() == content()
        said = run(folder, "nbdinfo", "--size", f"nbd://localhost:{port}/disk", check=False)
        assert "server requires TLS encryption first" in said
        second = folder / "second"
        second.mkdir()
        where = f"server.type=inet,server.host=localhost,server.port={port},export=disk"
        creds = f"tls-creds-x509,id=c,endpoint=client,dir={folder}/client-alice"
        (second / "source.raw").write_bytes(content())
        with client_of(daemon_kind, second, f"{where},tls-creds=c", "--object", creds):
            work(second)
        assert serving.quit() == 0


def test_pre_shared_keys(tmp_path: Path, daemon_kind: str) -> None:
    need("nbdcopy")
    (tmp_path / "image").write_bytes(content())
    (tmp_path / "keys.psk").write_text("alice:00112233445566778899aabbccddeeff\n")
    port = free_port()
    serving = Daemon(
        daemon_kind,
        tmp_path,
        *("--object", "tls-creds-psk,id=t,endpoint=server,dir=."),
        *("--blockdev", "file,node-name=f,filename=image"),
        *("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t"),
        *("--export", "nbd,id=x,node-name=f,name=disk"),
    )
    with serving:
        uri = f"nbds://alice@localhost:{port}/disk?tls-psk-file={tmp_path}/keys.psk"
        run(tmp_path, "nbdcopy", uri, "copy.raw")
        assert (tmp_path / "copy.raw").read_bytes() == content()
        assert serving.quit() == 0
