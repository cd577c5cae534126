# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The bitmap directory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.formats.qcow2.bitmaps import FLAG_AUTO, FLAG_IN_USE, parse_directory
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.formats.qcow2.support import RecordingFile, add_image, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need


def entry(name: bytes, flags: int = 0, kind: int = 1, extra: bytes = b"") -> bytes:
    body = struct.pack(">QIIBBHI", 0x70000, 3, flags, kind, 16, len(name), len(extra))
    body += extra + name
    return body + bytes(-len(body) % 8)


def test_entries() -> None:
    data = entry(b"one", FLAG_AUTO) + entry(b"another", FLAG_IN_USE, extra=b"12345678")
    first, second = parse_directory(data, 2)
    assert first.info() == {"flags": ["auto"], "name": "one", "granularity": 65536}
    assert second.info() == {"flags": ["in-use"], "name": "another", "granularity": 65536}
    assert second.extra_data == b"12345678"
    assert (first.position, second.position) == (0, len(entry(b"one")))


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (entry(b"a"), 2),
        (entry(b"a") + entry(b"b"), 1),
        (entry(b"a")[:20], 1),
        (entry(b""), 1),
        (entry(b"a", kind=2), 1),
        (entry(b"a" * 1024), 1),
    ],
)
def test_damage(data: bytes, count: int) -> None:
    with pytest.raises(QmpError, match="Broken bitmap directory"):
        parse_directory(data, count)


def test_the_real_tool_sees_the_mark(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")
    for name in ("one", "two"):
        tool("qemu-img", "bitmap", "--add", path, name)

    async def main() -> list[str]:
        async with rig() as graph:
            node = await add_image(graph, path)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            await node.zero(0, 65536)
            await node.flush()
            assert isinstance(driver.image.file.driver, RecordingFile)
            crashed.write_bytes(driver.image.file.driver.data)
            return [entry.name for entry in driver.bitmaps]

    crashed = tmp_path / "crashed"
    assert run(main()) == ["one", "two"]
    for image, count in ((crashed, 2), (path, 0)):
        assert tool("qemu-img", "info", image).count("in-use") == count
        tool("qemu-img", "check", image)
