# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is refused when an image is opened, in the words of the C daemon."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.create import make_header
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.qapi.schema.block_create import BlockdevCreateOptionsQcow2
from tests.formats.qcow2.support import add_image, file_of, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def image_bytes(**options: Any) -> bytearray:
    """An empty image, made without other tools."""
    header = make_header(BlockdevCreateOptionsQcow2(file="f", size=64 << 20, **options))
    header.extensions.append(layout.Extension(layout.EXT_FEATURES, layout.pack_features()))
    header.size = min(64 << 20, 1 << (2 * header.cluster_bits - 3))  # what one L2 table maps
    header.l1_size, header.l1_table_offset = 1, 3 << header.cluster_bits
    data = bytearray(4 << header.cluster_bits)
    packed = header.pack()
    data[: len(packed)] = packed
    return data


def open_error(path: Path, data: bytearray, *, read_only: bool = False) -> str:
    path.write_bytes(data)

    async def main() -> str:
        async with rig() as graph:
            try:
                await add_image(graph, path, read_only=read_only)
            except QmpError as exc:
                return exc.desc
        return ""

    return run(main())


CASES = [
    (0, b"QFIX", "Image is not in qcow2 format"),
    (4, u32(1), "Unsupported qcow2 version 1"),
    (4, u32(4), "Unsupported qcow2 version 4"),
    (20, u32(8), "Unsupported cluster size: 2^8"),
    (20, u32(22), "Unsupported cluster size: 2^22"),
    (100, u32(8), "qcow2 header too short"),
    (100, u32(70000), "qcow2 header exceeds cluster size"),
    (100, u32(108), "Header extension too large"),
    (8, u64(1 << 20), "Invalid backing file offset"),
    (8, u64(600) + u32(1024), "Backing file name too long"),
    (72, u64(1 << 5), "Unsupported qcow2 feature(s): Unknown incompatible feature: 20"),
    (72, u64(2), "qcow2: Image is corrupt; cannot be opened read/write"),
    (72, u64(4), "'data-file' is required for this image"),
    (72, u64(8), "qcow2: Compression type incompatible feature bit must not be set"),
    (96, u32(7), "Reference count entry width too large; may not exceed 64 bits"),
    (32, u32(3), "Unsupported encryption method 3"),
    (32, u32(2), "Missing CRYPTO header for crypt method 2"),
    (36, u32(0), "L1 table is too small"),
    (36, u32(4 * 1024 * 1024 + 1), "Active L1 table too large"),
    (40, u64(0x30001), "Active L1 table offset invalid"),
    (40, u64(1 << 63), "Active L1 table offset invalid"),
    (48, u64(0x10001), "Reference count table offset invalid"),
    (56, u32(0), "Image does not contain a reference count table"),
    (56, u32(129), "Reference count table too large"),
    (60, u32(70000), "Snapshot table too large"),
    (60, u32(1) + u64(0x30001), "Snapshot table offset invalid"),
    (24, u64(1 << 60), "Image is too big"),
    (24, u64((1 << 64) - 1), "Could not refresh total sector count: File too large"),
    (104, b"\x02", "qcow2: unknown compression type: 2"),
    (104, b"\x01", "qcow2: Compression type incompatible feature bit must be set"),
    (112, u32(0x1234) + u32(0x7FFFFFFF), "Header extension too large"),
    (112, u32(layout.EXT_BITMAPS) + u32(8), "bitmaps_ext: Invalid extension length"),
    (112, u32(layout.EXT_BACKING_FORMAT) + u32(100),
     "ERROR: ext_backing_format: len=100 too large (>=16)"),
    (112, u32(layout.EXT_CRYPTO) + u32(16),
     "CRYPTO header extension only expected with LUKS encryption method"),
]  # fmt: skip


@pytest.mark.parametrize(("offset", "patch", "message"), CASES)
def test_damaged_headers(tmp_path: Path, offset: int, patch: bytes, message: str) -> None:
    data = image_bytes()
    assert open_error(tmp_path / "image", data) == ""
    data[offset : offset + len(patch)] = patch
    assert open_error(tmp_path / "image", data) == message


def test_small_subclusters(tmp_path: Path) -> None:
    data = image_bytes(cluster_size=4096)
    data[72:80] = u64(16)
    assert open_error(tmp_path / "image", data) == "Unsupported subcluster size: 128"


def test_a_corrupt_image_can_be_read(tmp_path: Path) -> None:
    data = image_bytes()
    data[79] = 2
    assert open_error(tmp_path / "image", data, read_only=True) == ""


def test_unknown_features_have_the_names_of_the_image(tmp_path: Path) -> None:
    data = image_bytes()
    names = (layout.Feature(0, 7, "time travel"), layout.Feature(0, 9, "telepathy"))
    header = layout.Header.parse(bytes(data[:512]))
    header.extensions = [layout.Extension(layout.EXT_FEATURES, layout.pack_features(names))]
    header.incompatible_features = 1 << 7 | 1 << 9 | 1 << 63
    packed = header.pack()
    data[: len(packed)] = packed
    assert open_error(tmp_path / "image", data) == (
        "Unsupported qcow2 feature(s): time travel, telepathy, "
        "Unknown incompatible feature: 8000000000000000"
    )


def test_unknown_extensions_fields_and_autoclear_bits(tmp_path: Path) -> None:
    """Unknown extensions and fields survive a rewrite; unknown autoclear bits do not."""
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "backing_file=x,backing_fmt=raw", "-u")
    header = layout.Header.parse(path.read_bytes()[:512])

    async def read() -> layout.Header:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True, backing=None)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            return driver.image.header

    header = run(read())
    header.extensions.append(layout.Extension(0x12345678, b"private"))
    header.unknown_fields = b"8 bytes!"
    header.autoclear_features = 1 << 40
    packed = header.pack()
    with path.open("r+b") as file:
        file.write(packed.ljust(4096, b"\0"))

    async def rewrite() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, backing=None)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            assert not driver.image.header.autoclear_features
            driver.image.header.backing_file = "y"
            await header_io.write_whole(file_of(node).node, driver.image.header)

    run(rewrite())
    again = run(read())
    assert again.extension(0x12345678) == b"private"
    assert again.unknown_fields == b"8 bytes!"
    assert again.backing_file == "y"
    assert not again.autoclear_features
    assert "backing file: y" in tool("qemu-img", "info", path)


def test_a_header_that_does_not_fit(tmp_path: Path) -> None:
    data = image_bytes(cluster_size=512)
    path = tmp_path / "image"
    path.write_bytes(data)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            driver.image.header.backing_file = "x" * 400
            with pytest.raises(OSError, match="No space left"):
                await header_io.write_whole(driver.image.file, driver.image.header)

    run(main())
