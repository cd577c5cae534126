# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Records of the write log."""

from __future__ import annotations

import pytest

from qsd.errors import QmpError
from qsd.filters.log_layout import ENTRY_SIZE, SUPER_SIZE, LogEntry, LogSuper


def test_superblock() -> None:
    """As the C daemon writes it."""
    packed = LogSuper(10, 512).pack()
    assert packed.hex() == ("7268737766736a0001000000000000000a0000000000000000020000")
    assert len(packed) == SUPER_SIZE
    assert LogSuper.parse(packed) == (10, 512)


@pytest.mark.parametrize(
    ("at", "text"), [(0, "Invalid log superblock magic"), (8, "Unsupported log version 254")]
)
def test_refusals(at: int, text: str) -> None:
    packed = bytearray(LogSuper(10, 512).pack())
    packed[at] ^= 0xFF
    with pytest.raises(QmpError) as info:
        LogSuper.parse(bytes(packed))
    assert info.value.desc == text


@pytest.mark.parametrize("numbers", [(0, 0, 0), (1, 2, 3), ((1 << 64) - 1, 1 << 40, 4)])
def test_entries(numbers: tuple[int, int, int]) -> None:
    packed = LogEntry(*numbers).pack()
    assert len(packed) == ENTRY_SIZE
    assert LogEntry.parse(packed) == numbers
