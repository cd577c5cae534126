# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Images made along the way, by name and format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qsd.aio.loop import run
from qsd.commands.new_image import Backing, make_image
from qsd.daemon import StorageDaemon
from qsd.errors import QmpError
from tests.commands.images import ImageDaemon

if TYPE_CHECKING:
    from qsd.commands.new_image import Backing as BackingType

BASE = Backing("base, with comma", "raw")
NOT_OPENED = "Protocol driver 'nbd' does not support image creation, and opening the image failed: "


def make(
    folder: Path, name: str, fmt: str, size: int = 1 << 20, backing: BackingType | None = None
) -> None:
    async def main() -> None:
        async with ImageDaemon(folder) as daemon:
            await make_image(daemon.context, name, fmt, size, backing)

    run(main())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_raw_image_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.raw", "raw", 12345 * 512)
    assert (tmp_path / "a.raw").stat().st_size == 12345 * 512
    assert capsys.readouterr().out == "Formatting 'a.raw', fmt=raw size=6320640\n"


def test_a_file_is_a_format_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.img", "file", 1 << 20)
    assert (tmp_path / "a.img").stat().st_size == 1 << 20
    assert capsys.readouterr().out == "Formatting 'a.img', fmt=file size=1048576\n"


def test_a_format_that_is_a_protocol_takes_names_as_they_are(tmp_path: Path) -> None:
    for name, path in (("nbd:x", "nbd:x"), ("file:x", "x"), ("host_device:x", "host_device:x")):
        make(tmp_path, name, "file", 512)
        assert (tmp_path / path).stat().st_size == 512
    make(tmp_path, "file:nbd:x", "raw", 1024)
    assert (tmp_path / "nbd:x").stat().st_size == 1024


def test_a_format_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.qcow2", "qcow2", 1 << 20, BASE)
    data = (tmp_path / "a.qcow2").read_bytes()
    assert data.startswith(b"QFI\xfb")
    assert b"base, with comma" in data
    assert capsys.readouterr().out == (
        "Formatting 'a.qcow2', fmt=qcow2 cluster_size=65536 extended_l2=off "
        "compression_type=zlib size=1048576 backing_file=base,, with comma backing_fmt=raw "
        "lazy_refcounts=off refcount_bits=16\n"
    )


def test_what_was_there_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"old" * 100000)
    make(tmp_path, "a.raw", "raw", 512)
    assert (tmp_path / "a.raw").read_bytes() == bytes(512)


@pytest.mark.parametrize(
    ("name", "fmt", "backing", "text"),
    [
        ("x", "bogus", None, "Unknown file format 'bogus'"),
        ("json:{}", "qcow2", None, "Unknown protocol 'json'"),
        ("foo:bar", "qcow2", None, "Unknown protocol 'foo'"),
        ("x", "throttle", None, "Format driver 'throttle' does not support image creation"),
        ("x", "raw", BASE, "Backing file not supported for file format 'raw'"),
        (
            BASE.filename,
            "qcow2",
            BASE,
            "Error: Trying to create an image with the same filename as the backing file",
        ),
        ("no/x", "qcow2", None, "Could not create 'no/x': No such file or directory"),
        ("raw:x", "qcow2", None, "Unknown protocol 'raw'"),
        ("throttle:x", "throttle", None, "Unknown protocol 'throttle'"),
        ("null-co://", "raw", None, "Protocol driver 'null-co' does not support image creation"),
        ("null-aio://", "raw", BASE, "Protocol driver 'null-aio' does not support image creation"),
        ("null-co://", "null-co", None, "Format driver 'null-co' does not support image creation"),
        ("blkdebug::t", "nbd", None, "Protocol driver 'blkdebug' does not support image creation"),
        ("nbd:x", "qcow2", None, f"{NOT_OPENED}error parsing address 'x'"),
        ("nbd:x", "raw", BASE, "Backing file not supported for file format 'raw'"),
        ("x", "nbd", None, f"{NOT_OPENED}File name string for NBD must start with 'nbd:'"),
        (
            "nbd:unix:no",
            "nbd",
            None,
            f"{NOT_OPENED}Failed to connect to 'no': No such file or directory",
        ),
        (
            "file:x",
            "host_device",
            None,
            f"{NOT_OPENED.replace('nbd', 'host_device')}Could not open 'file:x': No such file or "
            "directory",
        ),
        ("host_device:/dev/null", "raw", None, "Cannot grow device files"),
        (":x", "raw", None, "Unknown protocol ''"),
    ],
)
def test_refusals(
    tmp_path: Path, name: str, fmt: str, backing: BackingType | None, text: str
) -> None:
    with pytest.raises(QmpError) as caught:
        make(tmp_path, name, fmt, 512, backing)
    assert caught.value.desc == text
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_there_will_do(tmp_path: Path) -> None:
    address = {"type": "unix", "data": {"path": str(tmp_path / "s")}}
    export = {"type": "nbd", "id": "e", "node-name": "n", "writable": True}

    async def main() -> None:
        async with StorageDaemon() as server, ImageDaemon(tmp_path) as daemon:
            await server.qmp(
                "blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20}
            )
            await server.qmp("nbd-server-start", {"addr": address})
            await server.qmp("block-export-add", export)
            name = f"nbd:unix:{tmp_path}/s:exportname=n"
            await make_image(daemon.context, name, "raw", 1 << 20)
            with pytest.raises(QmpError, match="already exists, but is too small for 2097152 "):
                await make_image(daemon.context, name, "raw", 2 << 20)

    run(main())
