# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The file system's own table.  Temporary directories may be on a file system that has none."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

import pytest

from qsd.protocols.file.extent_map import data_extents

KIB = 1024
LAST, UNWRITTEN, MERGED = 0x1, 0x800, 0x1000


class Table:
    """Answers as the kernel does.  Attributes: extents: (start, length, flags) of each."""

    def __init__(self, *extents: tuple[int, int, int]) -> None:
        self.extents = extents

    def ioctl(self, fd: int, request: int, table: bytearray) -> int:
        assert request == 0xC020660B
        start, length, flags, _, limit, _ = struct.unpack_from("=QQIIII", table)
        assert len(table) == 32 + 56 * limit
        assert not flags
        here = [
            extent
            for extent in self.extents
            if extent[0] < start + length and extent[0] + extent[1] > start
        ][:limit]
        struct.pack_into("=I", table, 20, len(here))
        for index, (logical, size, more) in enumerate(here):
            struct.pack_into("=QQQ16xI12x", table, 32 + 56 * index, logical, 0x123000, size, more)
        return 0


def look(
    monkeypatch: pytest.MonkeyPatch, table: Table, start: int, end: int, limit: int = 10
) -> tuple[Sequence[int], Sequence[int], Sequence[int]] | None:
    monkeypatch.setattr(fcntl, "ioctl", table.ioctl)
    told = data_extents(-1, start, end, limit)
    return told and (told.starts, told.ends, list(told.lengths))


def test_extents_and_what_is_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table((100, 50, 0), (200, 10, MERGED), (300, 100, LAST))
    assert look(monkeypatch, table, 0, 1000) == (
        *([100, 200, 300], [150, 210, 400]),
        [100, 50, 50, 10, 90, 100],
    )
    assert look(monkeypatch, table, 400, 1000) == ([], [], [])


def test_a_range_cuts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table((100, 50, 0), (200, 10, 0), (300, 100, LAST))
    assert look(monkeypatch, table, 120, 350) == (
        *([120, 200, 300], [150, 210, 350]),
        [0, 30, 50, 10, 90, 50],
    )
    assert look(monkeypatch, table, 310, 320) == ([310], [320], [0, 10])


def test_of_the_last_one_that_fits_the_end_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table((100, 50, 0), (200, 10, 0), (210, 100, LAST))
    assert look(monkeypatch, table, 0, 1000, 2) == ([100], [150], [100, 50])


@pytest.mark.parametrize(
    "extents",
    [
        [(100, 50, 0), (200, 50, UNWRITTEN | LAST)],
        [(100, 50, 0), (150, 50, 0), (300, 50, LAST)],
    ],
)
def test_what_is_not_simple(
    monkeypatch: pytest.MonkeyPatch, extents: list[tuple[int, int, int]]
) -> None:
    assert look(monkeypatch, Table(*extents), 0, 1000) is None


def test_a_file_without_a_table() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match=r"ioctl|supported"):
            data_extents(read_end, 0, 1000, 2)
    finally:
        os.close(read_end)
        os.close(write_end)
