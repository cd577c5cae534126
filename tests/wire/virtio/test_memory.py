# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Guest memory: what lies in a region is found, nothing else is."""

from __future__ import annotations

import pytest

from qsd.errors import PeerError
from qsd.wire.virtio.memory import GuestMemory, Region


def region(guest: int, size: int, user: int, fill: bytes) -> Region:
    return Region(guest, size, user, memoryview(bytearray(fill * size)))


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(
        [region(4096, 4096, 90000, b"b"), region(0, 4096, 50000, b"a"), region(20000, 10, 7, b"c")]
    )


def test_find(memory: GuestMemory) -> None:
    found = memory.find(4090, 6)
    assert found is not None
    assert found.tobytes() == b"aaaaaa"
    assert memory.find(4090, 7) is None  # crosses into the next region
    assert memory.find(20009, 1) is not None
    for guest, length in [(20009, 2), (9000, 1), (1 << 63, 1), (19999, 1), (0, 1 << 40)]:
        assert memory.find(guest, length) is None


def test_pieces(memory: GuestMemory) -> None:
    assert [piece.tobytes() for piece in memory.pieces(4094, 4)] == [b"aa", b"bb"]
    for guest, length in [(8190, 4), (20005, 100), (10000, 1), ((1 << 64) - 1, 2)]:
        with pytest.raises(PeerError, match="no guest memory"):
            memory.pieces(guest, length)


def test_find_user(memory: GuestMemory) -> None:
    assert memory.find_user(90000, 4096).tobytes() == b"b" * 4096
    for user, length in [(90000, 4097), (49999, 1), (8, 10), (0, 1)]:
        with pytest.raises(PeerError, match="ring"):
            memory.find_user(user, length)


def test_bad_tables() -> None:
    with pytest.raises(PeerError, match="overlap"):
        GuestMemory([region(0, 10, 0, b"x"), region(9, 10, 0, b"x")])
    with pytest.raises(PeerError, match="empty"):
        GuestMemory([region(0, 0, 0, b"x")])
    assert GuestMemory([]).find(0, 1) is None
