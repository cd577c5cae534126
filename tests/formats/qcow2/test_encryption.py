# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encrypted qcow2 images."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from qsd.aio.loop import run
from qsd.block.mapping import COMPRESSED, ST_ALLOCATED, ST_DATA
from qsd.block.node import Node, refuse_view
from qsd.errors import QmpError
from tests.formats.secrets import SecretRig
from tests.support import conformance
from tests.support.tools import need

LENGTH = 600 * 1024
LUKS = {"format": "luks", "key-secret": "s", "iter-time": 0}
AES = {"format": "qcow", "key-secret": "s"}
METHODS = pytest.mark.parametrize("encrypt", [LUKS, AES], ids=["luks", "aes"])
SECRET = "secret,id=s,data=one"


def opening(encrypt: dict[str, Any]) -> dict[str, Any]:
    """Return the options that open what `encrypt` made."""
    return {
        "format": "aes" if encrypt["format"] == "qcow" else "luks",
        "key-secret": encrypt["key-secret"],
    }


async def add(rig: SecretRig, path: Path, encrypt: dict[str, Any], name: str = "q") -> Node:
    return await rig.add(
        driver="qcow2", node_name=name, encrypt=opening(encrypt), discard="unmap",
        file={"driver": "file", "filename": str(path)},
    )  # fmt: skip


def on_image(
    path: Path,
    encrypt: dict[str, Any],
    body: Callable[[SecretRig, Node], Coroutine[Any, Any, None]],
    **more: Any,
) -> None:
    """Run `body` with a new image."""
    path.unlink(missing_ok=True)
    path.touch()

    async def main() -> None:
        async with SecretRig() as rig:
            await rig.create(
                "qcow2", file={"driver": "file", "filename": str(path)}, size=LENGTH,
                encrypt=encrypt, **more,
            )  # fmt: skip
            await body(rig, await add(rig, path, encrypt))

    run(main())


def tool(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def image_opts(path: Path, encrypt: dict[str, Any]) -> str:
    kind = opening(encrypt)["format"]
    return f"driver=qcow2,file.filename={path},encrypt.format={kind},encrypt.key-secret=s"


@METHODS
@pytest.mark.parametrize("more", [
    {"cluster-size": 4096}, {"cluster-size": 16384, "extended-l2": True},
], ids=["4k", "extended"])  # fmt: skip
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=conformance.programs(LENGTH))
def test_like_a_bytearray(
    encrypt: dict[str, Any],
    more: dict[str, Any],
    program: list[conformance.Step],
    tmp_path: Path,
) -> None:
    async def body(rig: SecretRig, node: Node) -> None:
        await conformance.check_program(rig, node, program)

    on_image(tmp_path / "q", encrypt, body, **more)


@METHODS
def test_reopening(encrypt: dict[str, Any], tmp_path: Path) -> None:
    """The encryption can neither be left out nor be another one; a secret may have a new name."""

    async def body(rig: SecretRig, node: Node) -> None:
        with pytest.raises(QmpError, match="cannot be reset to its default value"):
            await rig.reopen(node, encrypt=None)
        real = opening(encrypt)["format"]
        other = "luks" if real == "aes" else "aes"
        text = f"Header reported '{real}' encryption format but options specify '{other}'"
        with pytest.raises(QmpError, match=text):
            await rig.reopen(node, encrypt={"format": other, "key-secret": "s"})
        await rig.add_secret("again", data="one")
        await rig.reopen(node, encrypt={"format": real, "key-secret": "again"})

    on_image(tmp_path / "image", encrypt, body)


@METHODS
def test_nobody_sees_the_file(encrypt: dict[str, Any], tmp_path: Path) -> None:
    """There are no views of encrypted data, so that nobody tries to get one."""

    async def body(rig: SecretRig, node: Node) -> None:
        assert node.view_nowait is refuse_view

    on_image(tmp_path / "image", encrypt, body)


@METHODS
def test_contract(encrypt: dict[str, Any], tmp_path: Path) -> None:
    async def body(rig: SecretRig, node: Node) -> None:
        await conformance.check_contract(rig, node)

    on_image(tmp_path / "q", encrypt, body)


@METHODS
@pytest.mark.parametrize("gathered", [False, True], ids=["at once", "gathered"])
def test_fast_paths(encrypt: dict[str, Any], gathered: bool, tmp_path: Path) -> None:
    """Only what is allocated, in one piece and whole sectors is served without a coroutine."""

    async def body(rig: SecretRig, node: Node) -> None:
        backend = conformance.attach(rig, node)
        ends: list[bool] = []

        async def fast(offset: int, view: memoryview, *, writing: bool) -> bool:
            if not gathered:
                action = backend.write_nowait if writing else backend.read_nowait
                return action(offset, view)
            later = backend.write_later if writing else backend.read_later
            begun = later(offset, view, ends.append)
            await backend.wait_idle()
            return begun

        text = memoryview(os.urandom(65536))
        view = memoryview(bytearray(4096))
        assert not await fast(0, text[:4096], writing=True)
        await backend.write(0, text)
        await backend.write(131072, text)
        assert await fast(4096, text[:4096], writing=True)
        assert await fast(4096, view, writing=False)
        assert view == text[:4096]
        assert await conformance.read(backend, 0, 12288) == b"".join(
            (text[:4096], text[:4096], text[8192:12288])
        )
        for offset, length in ((65536 - 512, 1024), (65536, 512), (1, 512), (0, 511)):
            assert not await fast(offset, view[:length], writing=True)
            assert not await fast(offset, view[:length], writing=False)
        assert all(ends)
        await backend.detach()

    on_image(tmp_path / "q", encrypt, body)


@METHODS
def test_a_gathered_write_keeps_its_place(encrypt: dict[str, Any], tmp_path: Path) -> None:
    """A discard that comes in the same turn waits for it, and wins."""

    async def body(rig: SecretRig, node: Node) -> None:
        backend = conformance.attach(rig, node)
        await backend.write(0, memoryview(bytes(65536)))
        order: list[str] = []
        assert backend.write_later(4096, memoryview(b"x" * 4096), lambda _: order.append("write"))
        await backend.discard(0, 65536)
        order.append("discard")
        assert order == ["write", "discard"]
        assert await conformance.read(backend, 0, 65536) == bytes(65536)
        await backend.detach()

    on_image(tmp_path / "q", encrypt, body)


@METHODS
def test_nothing_plain_is_stored(encrypt: dict[str, Any], tmp_path: Path) -> None:
    text = memoryview(bytearray(b"plainly readable" * 8192))

    async def body(rig: SecretRig, node: Node) -> None:
        backend = conformance.attach(rig, node)
        await backend.write(0, text)
        await backend.write(70000, text)
        await backend.flush()
        status = await node.block_status(0, 65536)
        assert status.flags == ST_DATA | ST_ALLOCATED
        assert node.driver.locate_nowait(0, 512) is None
        with pytest.raises(OSError, match="not supported"):
            await node.write(0, text[:65536], COMPRESSED)
        await backend.detach()

    on_image(tmp_path / "q", encrypt, body)
    assert b"readable" not in (tmp_path / "q").read_bytes()


@METHODS
@pytest.mark.slow
def test_interop_with_qemu_img(encrypt: dict[str, Any], tmp_path: Path) -> None:
    need("qemu-img")
    ours, theirs, raw = tmp_path / "ours", tmp_path / "theirs", tmp_path / "raw"
    content = os.urandom(LENGTH)
    raw.write_bytes(content)
    kind = "luks,encrypt.iter-time=10" if encrypt is LUKS else "aes"
    tool(
        "qemu-img", "convert", "-O", "qcow2", "--object", SECRET,
        "-o", f"encrypt.key-secret=s,encrypt.format={kind}", raw, theirs,
    )  # fmt: skip

    async def body(rig: SecretRig, node: Node) -> None:
        backend = conformance.attach(rig, node)
        await backend.write(0, memoryview(bytearray(content)))
        await backend.detach()
        backend = conformance.attach(rig, await add(rig, theirs, encrypt, "theirs"))
        assert await conformance.read_all(backend) == content
        await backend.detach()

    on_image(ours, encrypt, body, **{"cluster-size": 4096})
    tool(
        "qemu-img", "compare", "--object", SECRET, "--image-opts",
        f"driver=raw,file.filename={raw}", image_opts(ours, encrypt),
    )  # fmt: skip
    found = tool("qemu-img", "check", "--object", SECRET, "--image-opts", image_opts(ours, encrypt))
    assert "No errors were found" in found


@pytest.mark.parametrize(("made", "options", "text"), [
    (LUKS, None, "Parameter 'encrypt.key-secret' is required for cipher"),
    (AES, None, "Parameter 'encrypt.key-secret' is required for cipher"),
    (
        LUKS, {"format": "aes", "key-secret": "s"},
        "Header reported 'luks' encryption format but options specify 'aes'",
    ),
    (
        AES, {"format": "luks", "key-secret": "s"},
        "Header reported 'aes' encryption format but options specify 'luks'",
    ),
    (LUKS, {"format": "luks", "key-secret": "t"}, "Invalid password, cannot unlock any keyslot"),
])  # fmt: skip
def test_refused(
    made: dict[str, Any], options: dict[str, Any] | None, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "q"

    async def body(rig: SecretRig, node: Node) -> None:
        await rig.remove("q")
        more = {} if options is None else {"encrypt": options}
        with pytest.raises(QmpError) as caught:
            await rig.add(
                driver="qcow2", node_name="x", file={"driver": "file", "filename": str(path)},
                **more,
            )  # fmt: skip
        assert caught.value.desc == text

    on_image(path, made, body)


@pytest.mark.parametrize(("encrypt", "text"), [
    ({"format": "luks"}, "Parameter 'encrypt.key-secret' is required for cipher"),
    ({"format": "luks", "key-secret": "nope"}, "No secret with id 'nope'"),
    (
        {**LUKS, "cipher-alg": "cast5-128"},
        "Unsupported cipher mode xts",
    ),
])  # fmt: skip
def test_refused_creation_leaves_a_plain_image(
    encrypt: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """What is wrong with the encryption is told last, as the C daemon does it last."""
    path = tmp_path / "q"
    path.touch()
    file = {"driver": "file", "filename": str(path)}

    async def main() -> None:
        async with SecretRig() as rig:
            with pytest.raises(QmpError) as caught:
                await rig.create("qcow2", file=file, size=LENGTH, encrypt=encrypt)
            assert text in caught.value.desc
            node = await rig.add(driver="qcow2", node_name="q", file=file)
            assert node.length() == LENGTH
            assert "encrypt" not in node.driver.image_info()["format-specific"]["data"]

    run(main())


def test_options_for_a_plain_image(tmp_path: Path) -> None:
    path = tmp_path / "q"
    path.touch()

    async def main() -> None:
        async with SecretRig() as rig:
            place = {"driver": "file", "filename": str(path)}
            await rig.create("qcow2", file=place, size=LENGTH)
            with pytest.raises(QmpError, match=r"^No encryption in image header, but options"):
                await add(rig, path, LUKS)
            await rig.add(driver="qcow2", node_name="q", file=place)
            await rig.amend("q")
            with pytest.raises(QmpError, match=r"^image is not encrypted, can't amend$"):
                await rig.amend(
                    "q", encrypt={"format": "luks", "state": "active", "new-secret": "t"}
                )

    run(main())


def test_amend(tmp_path: Path) -> None:
    path = tmp_path / "q"

    async def body(rig: SecretRig, node: Node) -> None:
        await rig.amend(
            "q",
            encrypt={"format": "luks", "state": "active", "new-secret": "t", "iter-time": 0},
        )
        with pytest.raises(QmpError, match=r"^Amend can't be used to change the qcow2 encryption"):
            await rig.amend("q", encrypt={"format": "qcow"})
        await rig.remove("q")
        again = await add(rig, path, {**LUKS, "key-secret": "t"})
        info = again.driver.image_info()
        assert info["encrypted"] is True
        slots = info["format-specific"]["data"]["encrypt"]["slots"]
        assert [slot["active"] for slot in slots] == [True, True] + [False] * 6

    on_image(path, LUKS, body)


def test_header_that_cannot_be_written() -> None:
    """The C daemon says "read" here."""

    async def main() -> None:
        async with SecretRig() as rig:
            memory = await rig.memory("m", 4 << 20)
            await rig.create("qcow2", file="m", size=LENGTH, encrypt=LUKS)
            await rig.add(driver="qcow2", node_name="q", file="m", encrypt=opening(LUKS))
            first = memory.data.index(b"LUKS\xba\xbe")
            memory.fail = lambda what, offset: (
                errno.EIO if what == "write" and offset >= first else 0
            )
            change = {"format": "luks", "state": "active", "new-secret": "t", "iter-time": 0}
            text = r"^Could not read encryption header: Input/output error$"
            with pytest.raises(QmpError, match=text):
                await rig.amend("q", encrypt=change)

    run(main())


def test_amend_aes(tmp_path: Path) -> None:
    async def body(rig: SecretRig, node: Node) -> None:
        with pytest.raises(QmpError, match=r"^Only LUKS encryption options can be amended"):
            await rig.amend("q", encrypt={"format": "luks", "state": "active", "new-secret": "t"})
        assert node.driver.image_info()["format-specific"]["data"]["encrypt"] == {"format": "aes"}

    on_image(tmp_path / "q", AES, body)


@pytest.mark.parametrize(("at", "data", "text"), [
    (112, b"\0\0\0\0\0\0\2\0", "Encryption header offset '512' is not a multiple of cluster"),
    (112, b"\xff\xff\0\0\0\0\0\0", "Encryption header is misplaced or too long"),
    (120, b"\x7f\0\0\0\0\0\0\0", "Encryption header is misplaced or too long"),
    (120, b"\0\0\0\0\0\0\0\x10", "LUKS header is longer than the space for it"),
    (104, b"\x12\x34\x56\x78", "Missing CRYPTO header for crypt method 2"),
])  # fmt: skip
def test_damaged_pointer(at: int, data: bytes, text: str, tmp_path: Path) -> None:
    """The extension is the first one, behind the 104 bytes of the header and its padding."""
    path = tmp_path / "q"

    async def body(rig: SecretRig, node: Node) -> None:
        await rig.remove("q")
        image = bytearray(path.read_bytes())
        start = image.index(b"\x05\x37\xbe\x77") - 104
        image[start + at : start + at + len(data)] = data
        path.write_bytes(image)
        with pytest.raises(QmpError) as caught:
            await add(rig, path, LUKS)
        assert caught.value.desc.startswith(text)

    on_image(path, LUKS, body)
