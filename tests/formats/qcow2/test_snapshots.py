# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The snapshot table."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.snapshots import Snapshot
from tests.formats.qcow2.support import add_image, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need


def entry(id_str: bytes, name: bytes, extra: bytes = b"") -> bytes:
    fixed = struct.pack(
        ">QIHHIIQII", 0x50000, 2, len(id_str), len(name), 100, 200, 3_000_000_007, 9, len(extra)
    )
    body = fixed + extra + id_str + name
    return body + bytes(-len(body) % 8)


def test_entries_one_after_the_other() -> None:
    extra = struct.pack(">QQQ", 1 << 40, 1 << 30, 77) + b"later"
    data = entry(b"1", b"first") + entry(b"22", b"second", extra)
    found = Snapshot.parse(data, 0)
    assert found is not None
    first, at = found
    assert (first.id_str, first.name, first.l1_table_offset, first.l1_size) == (
        "1", "first", 0x50000, 2,
    )  # fmt: skip
    assert first.disk_size is None
    found = Snapshot.parse(data, at)
    assert found is not None
    second, end = found
    assert end == len(data)
    assert first.length + second.length == len(data)
    assert (second.vm_state_size, second.disk_size, second.icount) == (1 << 40, 1 << 30, 77)
    assert second.unknown_extra == b"later"
    assert second.info() == {
        "icount": 77,
        "vm-clock-nsec": 7,
        "name": "second",
        "date-sec": 100,
        "date-nsec": 200,
        "vm-clock-sec": 3,
        "id": "22",
        "vm-state-size": 1 << 40,
    }


def test_every_truncation_is_noticed() -> None:
    data = entry(b"1", b"7 bytes")
    for length in range(len(data)):
        assert Snapshot.parse(data[:length], 0) is None


def test_unknown_icount_is_not_shown() -> None:
    found = Snapshot.parse(entry(b"1", b"n", struct.pack(">QQQ", 0, 0, (1 << 64) - 1)), 0)
    assert found is not None
    assert "icount" not in found[0].info()


def test_too_much_extra_data() -> None:
    with pytest.raises(QmpError, match="Too much extra metadata"):
        Snapshot.parse(entry(b"1", b"n", bytes(2000)), 0)


def test_many_snapshots_of_the_real_tool(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")
    names = [f"{'long' * 20}-{number}" for number in range(12)]
    for name in names:
        tool("qemu-img", "snapshot", "-c", name, path)

    async def main() -> list[str]:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            return [snapshot.name for snapshot in driver.image.snapshots]

    assert run(main()) == names
