# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "luks" driver: content, keys, geometry; images of the real tools and for them."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from qsd.aio.loop import run
from qsd.block.mapping import ST_ALLOCATED, ST_DATA
from qsd.block.node import Node
from qsd.crypto.cipher import ALGORITHMS
from qsd.errors import QmpError
from qsd.formats.sectors import GATHER_LENGTH
from tests.formats.secrets import SecretRig
from tests.support import conformance
from tests.support.memory import MemoryDriver
from tests.support.tools import need

LENGTH = 300 * 1024
#: Bytes before the payload with keys of 128 bits.
PAYLOAD = 528384

CIPHERS: list[dict[str, Any]] = [
    {},
    {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv"},
    {"cipher-alg": "serpent-256"},
    {"cipher-alg": "twofish-128", "cipher-mode": "cbc", "ivgen-alg": "plain"},
    {"cipher-alg": "cast5-128", "cipher-mode": "cbc", "hash-alg": "sha1"},
]
#: Each cipher in each mode that the C daemon makes volumes with.  It dies of keys of 192 bits but
#: in XTS: their split material is not of whole sectors.
MATRIX: list[dict[str, Any]] = [
    {"cipher-alg": name, "cipher-mode": mode, "ivgen-alg": ivgen}
    for name, mode, ivgen in [
        *((name, "xts", "plain64") for name in ALGORITHMS if not name.startswith("cast5")),
        *((name, "cbc", "plain64") for name in ALGORITHMS if not name.endswith("-192")),
        *((name, "ecb", "plain") for name in ("aes-256", "serpent-128", "cast5-128")),
        ("twofish-256", "cbc", "essiv"),
    ]
]
SMALL = {"cipher_alg": "aes-128", "cipher_mode": "cbc", "iter_time": 0}


def on_volume(body: Callable[[SecretRig, MemoryDriver, Node], Coroutine[Any, Any, None]]) -> None:
    """Run `body` with a small volume in memory."""

    async def main() -> None:
        async with SecretRig() as rig:
            memory = await rig.memory("m", 4096)
            await rig.create("luks", file="m", size=LENGTH, key_secret="s", **SMALL)
            node = await rig.add(driver="luks", node_name="l", file="m", key_secret="s")
            await body(rig, memory, node)

    run(main())


async def failure(awaitable: Coroutine[Any, Any, Any]) -> str:
    with pytest.raises(QmpError) as caught:
        await awaitable
    return caught.value.desc


# Content


@settings(max_examples=25, deadline=None)
@given(program=conformance.programs(LENGTH))
def test_like_a_bytearray(program: list[conformance.Step]) -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await conformance.check_program(rig, node, program)

    on_volume(body)


def test_contract() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await conformance.check_contract(rig, node)

    on_volume(body)


@pytest.mark.parametrize("length", [512, 4096, 32768, 65536, LENGTH - 4096])
def test_nothing_plain_is_stored(length: int) -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        backend = conformance.attach(rig, node)
        text = bytearray(b"plainly readable" * (length // 16))
        await backend.write(4096, memoryview(text))
        assert b"readable" not in memory.data
        assert b"readable" in text  # the caller's buffer is the caller's
        assert await conformance.read(backend, 4096, length) == text
        await backend.detach()

    on_volume(body)


def test_short_requests_together() -> None:
    """What is begun in one turn of the loop is encrypted together; see test_sectors."""

    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        backend = conformance.attach(rig, node)
        ends: list[bool] = []
        text = os.urandom(3 * 4096)
        for start in range(0, len(text), 4096):
            piece = memoryview(text)[start : start + 4096]
            assert backend.write_later(4 * start, piece, ends.append)
        long = memoryview(bytearray(GATHER_LENGTH + 512))
        assert not backend.write_later(0, long, ends.append)
        assert not backend.read_later(0, long, ends.append)
        while len(ends) < 3:
            await asyncio.sleep(0)
        views = [memoryview(bytearray(4096)) for _ in range(3)]
        for number, view in enumerate(views):
            assert backend.read_later(4 * 4096 * number, view, ends.append)
        await backend.wait_idle()
        assert ends == [True] * 6
        assert b"".join(views) == text
        assert node.wr_highest_offset == 8 * 4096 + 4096
        await backend.detach()

    on_volume(body)


def test_status_and_info() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        status = await node.block_status(0, LENGTH)
        assert (status.length, status.flags) == (LENGTH, ST_DATA | ST_ALLOCATED)
        info = node.driver.image_info()
        data = info["format-specific"]["data"]
        assert info["encrypted"] is True
        assert (data["cipher-alg"], data["payload-offset"]) == ("aes-128", PAYLOAD)
        assert data["slots"][0]["stripes"] == 4000
        assert data["slots"][7] == {"active": False, "key-offset": 4096 + 7 * 65536}

    on_volume(body)


def test_resize() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await node.truncate(1 << 20)
        assert (node.length(), len(memory.data)) == (1 << 20, PAYLOAD + (1 << 20))
        most = (1 << 63) - (1 << 30)
        for length, told in ((most + 1, most + 1), (most - PAYLOAD + 512, most + 512)):
            text = await failure(node.truncate(length))
            assert text == f"offset({told}) exceeds maximum({most})"

    on_volume(body)


# Opening


@pytest.mark.parametrize(("more", "text"), [
    ({}, "Parameter 'key-secret' is required for cipher"),
    ({"key_secret": "nope"}, "No secret with id 'nope'"),
    ({"key_secret": "t"}, "Invalid password, cannot unlock any keyslot"),
    ({"key_secret": "raw"}, "Data from secret raw is not valid UTF-8"),
])  # fmt: skip
def test_wrong_keys(more: dict[str, str], text: str) -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        assert await failure(rig.add(driver="luks", node_name="x", file="m", **more)) == text

    on_volume(body)


def test_truncated() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await rig.remove("l")
        del memory.data[PAYLOAD - 512 :]
        memory.node.length_changed()
        text = await failure(rig.add(driver="luks", node_name="l", file="m", key_secret="s"))
        assert text == "Could not refresh total sector count: Input/output error"

    on_volume(body)


def test_key_is_dropped() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        volume = node.driver._sectors.volume  # type: ignore[attr-defined]
        await rig.remove("l")
        assert volume._key == b""
        assert not volume._free

    on_volume(body)


def test_header_that_cannot_be_read_or_written() -> None:
    """Whether header or key material: the C daemon's words."""

    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        def failing(operation: str, first: int) -> Callable[[str, int], int]:
            return lambda what, offset: (
                errno.ENOSPC if what == operation and first <= offset < PAYLOAD else 0
            )

        for operation, first in (("read", 0), ("read", 4096), ("write", 0), ("write", 4096)):
            memory.fail = failing(operation, first)
            if operation == "write":
                text = await failure(rig.amend("l", state="active", new_secret="t", iter_time=0))
            else:
                text = await failure(
                    rig.add(driver="luks", node_name="x", file="m", key_secret="s")
                )
            assert text == f"Could not {operation} encryption header: No space left on device"

    on_volume(body)


# Making


@pytest.mark.parametrize(("options", "text"), [
    ({"key_secret": None}, "Parameter 'key-secret' is required for cipher"),
    ({"cipher_alg": "des"}, "Algorithm 'des' not supported"),
    ({"cipher_alg": "cast5-128"}, "Unsupported cipher mode xts"),
    ({"ivgen_alg": "essiv", "ivgen_hash_alg": "sha1"}, "No AES cipher with key size 20 available"),
    ({"size": (1 << 64) - 512}, "The requested file size is too large"),
    (
        {"size": (1 << 63) - (1 << 30)},
        "offset(9223372035783102464) exceeds maximum(9223372035781033984)",
    ),
])  # fmt: skip
def test_options_that_make_no_volume(options: dict[str, Any], text: str) -> None:
    async def main() -> None:
        async with SecretRig() as rig:
            await rig.memory("m", 4096)
            merged = {"size": LENGTH, "key_secret": "s", "iter_time": 0, **options}
            given = {key: value for key, value in merged.items() if value is not None}
            assert await failure(rig.create("luks", file="m", **given)) == text

    run(main())


# Keys


def test_preallocated_metadata(tmp_path: Path) -> None:
    """The header is all there is of it; files know no such thing."""
    path = tmp_path / "volume"
    path.touch()

    async def main() -> None:
        async with SecretRig() as rig:
            await rig.create(
                "luks", file={"driver": "file", "filename": str(path)}, size=LENGTH,
                key_secret="s", preallocation="metadata", **SMALL,
            )  # fmt: skip
            node = await open_file(rig, path)
            assert node.length() == LENGTH

    run(main())


def test_more_than_a_file_can_hold(tmp_path: Path) -> None:
    """The file system says so, in words of its own."""
    path = tmp_path / "volume"
    path.touch()

    async def main() -> None:
        async with SecretRig() as rig:
            text = await failure(
                rig.create(
                    "luks", file={"driver": "file", "filename": str(path)}, size=1 << 62,
                    key_secret="s", **SMALL,
                )
            )  # fmt: skip
            assert text == "The requested file size is too large"

    run(main())


def test_add_and_erase() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await rig.amend("l", state="active", new_secret="t", iter_time=0)
        await rig.amend("l", state="inactive", old_secret="s")
        material = bytes(memory.data[4096 : 4096 + 64000])
        await rig.remove("l")
        assert "Invalid password" in await failure(
            rig.add(driver="luks", node_name="l", file="m", key_secret="s")
        )
        again = await rig.add(driver="luks", node_name="l", file="m", key_secret="t")
        slots = again.driver.image_info()["format-specific"]["data"]["slots"]
        assert [slot["active"] for slot in slots[:3]] == [False, True, False]
        assert len(set(material)) == 256  # overwritten, not just forgotten

    on_volume(body)


def test_keys_of_a_read_only_volume() -> None:
    """Keys can be changed as long as the file can be written to."""

    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await rig.remove("l")
        await rig.add(driver="luks", node_name="l", file="m", key_secret="s", read_only=True)
        await rig.amend("l", state="active", new_secret="t", iter_time=0)
        await rig.remove("l")
        await rig.add(driver="luks", node_name="l", file="m", key_secret="t")

    on_volume(body)


def test_keys_of_a_file_with_other_users() -> None:
    """Another volume over the file would bring keys back that were erased."""

    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await rig.add(driver="luks", node_name="o", file="m", key_secret="s")
        before = bytes(memory.data)
        for name, first in (("l", "o"), ("o", "l")):
            assert await failure(rig.amend(name, state="active", new_secret="t")) == (
                "Permission conflict on node 'm': permissions 'consistent read' are both required "
                f"by node '{first}' (uses node 'm' as 'file' child) and unshared by node '{name}' "
                "(uses node 'm' as 'file' child)."
            )
        assert memory.data == before
        await rig.remove("o")
        node.driver.begin_amend()
        with pytest.raises(QmpError, match=r"^Permission conflict on node 'm'"):
            await rig.add(driver="luks", node_name="o", file="m", key_secret="s")
        node.driver.end_amend()
        await rig.amend("l", state="active", new_secret="t", iter_time=0)
        other = await rig.add(driver="luks", node_name="o", file="m", key_secret="t")
        assert other.length() == LENGTH

    on_volume(body)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
    (
        {"state": "active", "new-secret": "t", "old-secret": "s"},
        "'old-secret' must not be given when activating keyslots",
    ),
    (
        {"state": "active", "new-secret": "t", "keyslot": 0},
        "Refusing to overwrite active keyslot 0 - please erase it first",
    ),
    (
        {"state": "active", "new-secret": "t", "keyslot": -1},
        "Invalid keyslot 4294967295 specified, must be between 0 and 7",
    ),
    (
        {"state": "active", "new-secret": "t", "secret": "t"},
        "Invalid password, cannot unlock any keyslot",
    ),
    ({"state": "active", "new-secret": "nope"}, "No secret with id 'nope'"),
    (
        {"state": "inactive"},
        "To erase keyslot(s), either explicit keyslot index or the password currently contained "
        "in them must be given",
    ),
    (
        {"state": "inactive", "new-secret": "t"},
        "'new-secret' must not be given when erasing keyslots",
    ),
    (
        {"state": "inactive", "iter-time": 10},
        "'iter-time' must not be given when erasing keyslots",
    ),
    (
        {"state": "inactive", "keyslot": -1},
        "Invalid keyslot -1 specified, must be between 0 and 7",
    ),
    (
        {"state": "inactive", "keyslot": 9, "secret": "nope"},
        "'secret' must not be given when erasing keyslots",
    ),
    ({"state": "inactive", "keyslot": 1}, "Given keyslot 1 is already erased (inactive) "),
    (
        {"state": "inactive", "keyslot": 1, "old-secret": "s"},
        "Given keyslot 1 doesn't contain the given old password for erase operation",
    ),
    (
        {"state": "inactive", "keyslot": 0, "old-secret": "t"},
        "Given keyslot 0 doesn't contain the given old password for erase operation",
    ),
    (
        {"state": "inactive", "keyslot": 0},
        "Attempt to erase the only active keyslot 0 which will erase all the data in the image "
        "irreversibly - refusing operation",
    ),
    (
        {"state": "inactive", "old-secret": "t"},
        "No keyslots match given (old) password for erase operation",
    ),
    (
        {"state": "inactive", "old-secret": "s"},
        "All the active keyslots match the (old) password that was given and erasing them will "
        "erase all the data in the image irreversibly - refusing operation",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSALS)
def test_refused_changes_of_keys(options: dict[str, Any], text: str) -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        before = bytes(memory.data)
        assert await failure(rig.amend("l", **options)) == text
        assert memory.data == before

    on_volume(body)


def test_force() -> None:
    async def body(rig: SecretRig, memory: MemoryDriver, node: Node) -> None:
        await rig.amend("l", force=True, state="inactive", keyslot=0)
        text = await failure(rig.amend("l", state="active", new_secret="s", iter_time=0))
        assert text == "Invalid password, cannot unlock any keyslot"
        await rig.amend("l", force=True, state="inactive", keyslot=0)  # once more does no harm

    on_volume(body)


# The real tools

SECRET = "secret,id=s,data=one"


def tool(*command: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def open_file(rig: SecretRig, path: Path) -> Node:
    return await rig.add(
        driver="luks", node_name="l", key_secret="s",
        file={"driver": "file", "filename": str(path)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cipher", [*CIPHERS, *MATRIX], ids=lambda one: "-".join(one.values()))
def test_interop_with_qemu_img(cipher: dict[str, str], tmp_path: Path) -> None:
    need("qemu-img")
    theirs, ours, raw = tmp_path / "theirs", tmp_path / "ours", tmp_path / "raw"
    content = os.urandom(LENGTH)
    raw.write_bytes(content)
    options = "".join(f",{key}={value}" for key, value in cipher.items())
    tool(
        "qemu-img", "create", "-q", "-f", "luks", "--object", SECRET, "-o",
        f"key-secret=s,iter-time=10{options}", theirs, str(LENGTH),
    )  # fmt: skip

    def target(path: Path) -> str:
        return f"driver=luks,key-secret=s,file.filename={path}"

    tool(
        "qemu-img", "convert", "-n", "--object", SECRET, "--target-image-opts",
        raw, target(theirs),
    )  # fmt: skip

    async def main() -> None:
        async with SecretRig() as rig:
            backend = conformance.attach(rig, await open_file(rig, theirs))
            assert await conformance.read_all(backend) == content
            await backend.detach()
            await rig.remove("l")
            ours.touch()
            await rig.create(
                "luks", file={"driver": "file", "filename": str(ours)}, size=LENGTH,
                key_secret="s", iter_time=0, **cipher,
            )  # fmt: skip
            backend = conformance.attach(rig, await open_file(rig, ours))
            await backend.write(0, memoryview(bytearray(content)))
            await backend.detach()

    run(main())
    tool(
        "qemu-img", "compare", "--object", SECRET, "--image-opts",
        f"driver=raw,file.filename={raw}", target(ours),
    )  # fmt: skip


@pytest.mark.slow
def test_interop_with_cryptsetup(tmp_path: Path) -> None:
    """Each knows the other's passwords; the content would need the device mapper."""
    need("cryptsetup")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.write_bytes(bytes(4 << 20))
    tool(
        "cryptsetup", "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000",
        "--key-file", "-", theirs, stdin="one",
    )  # fmt: skip

    async def main() -> None:
        async with SecretRig() as rig:
            await open_file(rig, theirs)
            await rig.amend("l", state="active", new_secret="t", iter_time=0)
            ours.touch()
            await rig.create(
                "luks", file={"driver": "file", "filename": str(ours)}, size=LENGTH,
                key_secret="s", iter_time=0,
            )  # fmt: skip

    run(main())
    for path, password in ((theirs, "one"), (theirs, "two"), (ours, "one")):
        tool(
            "cryptsetup", "open", "--test-passphrase", "--type", "luks1", "--key-file", "-", path,
            stdin=password,
        )  # fmt: skip
    assert "xts-plain64" in tool("cryptsetup", "luksDump", ours)
