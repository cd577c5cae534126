# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests of the usual shape: what is recognised means what the plain path says."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.errors import PeerError
from qsd.wire.virtio import blk
from qsd.wire.virtio.memory import GuestMemory, Region
from qsd.wire.virtio.ring import F_INDIRECT_DESC, SplitRing, area_sizes
from qsd.wire.virtio.usual import Scattered, Shape, UsualRequests

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 8
BASE = 0x1000
TABLE = 2048


class Memory:
    """8 KiB of guest memory that begin at BASE, with a ring."""

    def __init__(self, *, indirect: bool = True) -> None:
        self.mem = bytearray(8192)
        view = memoryview(self.mem)
        desc, avail, used = area_sizes(SIZE)
        region = Region(BASE, len(view), 0, view)
        areas = view[:desc], view[512 : 512 + avail], view[1024 : 1024 + used]
        features = F_INDIRECT_DESC if indirect else 0
        self.ring = SplitRing(SIZE, areas, GuestMemory([region]), features, 0)
        self.usual = UsualRequests(areas[0], region, indirect=indirect)

    def desc(self, at: int, address: int, length: int, flags: int, link: int) -> None:
        struct.pack_into("<QIHH", self.mem, at, address, length, flags, link)

    def request(self, table: int, index: int, *, write: int = WRITE) -> None:
        """Put a request of the usual shape into a table."""
        at = table + 16 * index
        self.desc(at, BASE + 4096, 16, NEXT, index + 1)
        self.desc(at + 16, BASE + 5120, 1024, NEXT | write, index + 2)
        self.desc(at + 32, BASE + 4200, 1, WRITE, 0)

    def find(self, head: int) -> Shape | None:
        return self.usual.find(self.usual.descriptors(), head)

    def same(self, head: int, shape: Shape) -> None:
        """Check that the plain path understands the chain in the same way."""
        struct.pack_into("<IIQ", self.mem, shape.header, 4711, 0, 99)
        self.mem[shape.status] = 0xEE
        request = blk.request(self.ring.chain(head))
        assert self.usual.request(shape, head) == request
        payload = request.writable if shape.is_read else request.readable
        assert (request.kind, request.sector) == (4711, 99)
        assert request.status[0] == 0xEE
        assert not (request.readable if shape.is_read else request.writable)
        assert [len(view) for view in payload] == [shape.length] == [len(shape.payload)]
        shape.payload[0] = 1
        payload[0][0] += 1
        assert shape.payload[0] == 2


@pytest.mark.parametrize("write", [0, WRITE])
@pytest.mark.parametrize("head", [0, 3, SIZE - 3])
def test_in_the_ring(head: int, write: int) -> None:
    memory = Memory()
    memory.request(0, head, write=write)
    for _ in range(2):  # taken apart, then remembered
        shape = memory.find(head)
        assert shape is not None
        assert shape.is_read == bool(write)
        memory.same(head, shape)


@pytest.mark.parametrize("head", [0, SIZE - 1])
def test_in_a_table(head: int) -> None:
    memory = Memory()
    memory.request(TABLE, 0)
    memory.desc(16 * head, BASE + TABLE, 48, INDIRECT, 0)
    shape = memory.find(head)
    assert shape is not None
    memory.same(head, shape)


def test_tables_need_the_feature() -> None:
    memory = Memory(indirect=False)
    memory.request(TABLE, 0)
    memory.desc(0, BASE + TABLE, 48, INDIRECT, 0)
    assert memory.find(0) is None


def test_the_same_bytes_elsewhere_link_to_other_descriptors() -> None:
    memory = Memory()
    memory.request(0, 0)
    assert memory.find(0) is not None
    memory.mem[16 * 4 : 16 * 7] = memory.mem[: 16 * 3]
    assert memory.find(4) is None
    memory.desc(64, BASE + TABLE, 48, INDIRECT, 0)
    memory.mem[TABLE : TABLE + 48] = memory.mem[:48]
    assert memory.find(4) is not None


@pytest.mark.parametrize("head", [SIZE - 2, SIZE - 1, SIZE, 65535])
def test_at_the_end_and_beyond(head: int) -> None:
    memory = Memory()
    memory.request(0, SIZE - 3)
    memory.mem[16 * SIZE : 16 * SIZE + 32] = memory.mem[16 * SIZE - 48 : 16 * SIZE - 16]
    assert memory.find(head) is None


UNUSUAL = {
    "long header": (0, BASE + 4096, 32, NEXT, 1),
    "header before the memory": (0, BASE - 1, 16, NEXT, 1),
    "header across the end": (0, BASE + 8192 - 15, 16, NEXT, 1),
    "odd payload": (1, BASE + 5120, 1000, NEXT | WRITE, 2),
    "payload of nothing": (1, BASE + 5120, 0, NEXT | WRITE, 2),
    "payload before the memory": (1, 0, 1024, NEXT | WRITE, 2),
    "payload across the end": (1, BASE + 8192 - 512, 1024, NEXT | WRITE, 2),
    "payload far away": (1, (1 << 64) - 512, 1024, NEXT | WRITE, 2),
    "payload elsewhere": (1, BASE + 5120, 1024, NEXT | WRITE, 5),
    "long status": (2, BASE + 4200, 2, WRITE, 0),
    "status to read": (2, BASE + 4200, 1, 0, 0),
    "status outside": (2, BASE + 8192, 1, WRITE, 0),
    "more follows": (2, BASE + 4200, 1, WRITE | NEXT, 3),
    "unknown flag": (1, BASE + 5120, 1024, NEXT | WRITE | 8, 2),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_left_to_the_plain_path(name: str) -> None:
    memory = Memory()
    memory.request(0, 0)
    index, *rest = UNUSUAL[name]
    memory.desc(16 * index, *rest)
    assert memory.find(0) is None
    assert memory.find(0) is None  # nothing wrong is remembered


def test_so_many_shapes_that_some_are_forgotten() -> None:
    memory = Memory()
    memory.request(0, 0)
    for address in range(6000):
        memory.desc(16, BASE + 1024 + address, 512, NEXT | WRITE, 2)
        assert memory.find(0) is not None
    shape = memory.find(0)
    assert shape is not None
    memory.same(0, shape)


PIECES = [(5120, 1000), (7000, 24), (6144, 512)]


def scattered(memory: Memory, table: int, index: int, write: int = WRITE) -> None:
    """Put a request with its payload in several places into a table."""
    at = table + 16 * index
    memory.desc(at, BASE + 4096, 16, NEXT, index + 1)
    for number, (place, length) in enumerate(PIECES, 1):
        memory.desc(at + 16 * number, BASE + place, length, NEXT | write, index + number + 1)
    memory.desc(at + 64, BASE + 4200, 1, WRITE, 0)


def find_scattered(memory: Memory, head: int) -> Scattered | None:
    return memory.usual.find_scattered(memory.usual.descriptors(), head)


def same_scattered(memory: Memory, head: int, found: Scattered) -> None:
    """Check that the plain path understands the chain in the same way."""
    struct.pack_into("<IIQ", memory.mem, found.header, 4711, 0, 99)
    memory.mem[found.status] = 0xEE
    request = blk.request(memory.ring.chain(head))
    assert (request.kind, request.sector, request.status[0]) == (4711, 99, 0xEE)
    assert (request.writable if found.is_read else request.readable) == found.pieces
    assert not (request.readable if found.is_read else request.writable)
    assert sum(map(len, found.pieces)) == found.length
    for place, piece in zip(found.places, found.pieces, strict=True):
        memory.mem[place] ^= 0xFF
        assert piece[0] == memory.mem[place]


@pytest.mark.parametrize("write", [0, WRITE])
@pytest.mark.parametrize("indirect", [False, True])
def test_several_pieces(write: int, indirect: bool) -> None:
    memory = Memory()
    scattered(memory, TABLE if indirect else 0, 0 if indirect else 2, write)
    memory.desc(0, BASE + TABLE, 80, INDIRECT, 0)
    head = 0 if indirect else 2
    assert memory.find(head) is None
    for _ in range(2):  # taken apart, then remembered
        found = find_scattered(memory, head)
        assert found is not None
        assert found.is_read == bool(write)
        assert found.places == [place for place, _ in PIECES]
        same_scattered(memory, head, found)


def test_pieces_elsewhere_link_to_other_descriptors() -> None:
    memory = Memory()
    scattered(memory, 0, 0)
    assert find_scattered(memory, 0) is not None
    memory.mem[48:128] = memory.mem[:80]
    assert find_scattered(memory, 3) is None


def test_tables_with_pieces_need_the_feature() -> None:
    memory = Memory(indirect=False)
    scattered(memory, TABLE, 0)
    memory.desc(0, BASE + TABLE, 80, INDIRECT, 0)
    assert find_scattered(memory, 0) is None


def test_so_many_scattered_ones_that_some_are_forgotten() -> None:
    memory = Memory()
    scattered(memory, 0, 0)
    for address in range(1100):
        memory.desc(16, BASE + 5120 + address, 1000, NEXT | WRITE, 2)
        assert find_scattered(memory, 0) is not None


DAMAGED = {
    "long header": (0, BASE + 4096, 32, NEXT, 1),
    "header outside": (0, BASE - 1, 16, NEXT, 1),
    "odd payload": (1, BASE + 5120, 999, NEXT | WRITE, 2),
    "empty piece": (2, BASE + 5120, 0, NEXT | WRITE, 3),
    "piece outside": (2, BASE + 8192 - 23, 24, NEXT | WRITE, 3),
    "piece far away": (2, (1 << 64) - 24, 24, NEXT | WRITE, 3),
    "piece elsewhere": (2, BASE + 7000, 24, NEXT | WRITE, 5),
    "other direction": (2, BASE + 7000, 24, NEXT, 3),
    "nested table": (2, BASE + 7000, 24, NEXT | WRITE | INDIRECT, 3),
    "long status": (4, BASE + 4200, 2, WRITE, 0),
    "status to read": (4, BASE + 4200, 1, 0, 0),
    "status outside": (4, BASE + 8192, 1, WRITE, 0),
    "table with a link": (0, BASE + TABLE, 80, INDIRECT | NEXT, 1),
    "odd table": (0, BASE + TABLE, 79, INDIRECT, 0),
    "endless table": (0, BASE, 16 * 1025, INDIRECT, 0),
    "table outside": (0, BASE + 8192 - 64, 80, INDIRECT, 0),
    "table before the memory": (0, BASE - 16, 80, INDIRECT, 0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_pieces_that_are_left_to_the_plain_path(name: str) -> None:
    memory = Memory()
    scattered(memory, 0, 0)
    scattered(memory, TABLE, 0)
    index, *rest = DAMAGED[name]
    memory.desc(16 * index, *rest)
    assert find_scattered(memory, 0) is None


@pytest.mark.parametrize("head", [SIZE - 1, SIZE, 65535])
def test_pieces_at_the_end_and_beyond(head: int) -> None:
    memory = Memory()
    memory.desc(16 * (SIZE - 1), BASE + 4096, 16, NEXT, 0)
    assert find_scattered(memory, head) is None


_DESCRIPTOR = st.tuples(
    st.sampled_from([BASE + 4096, BASE + 5120, BASE + TABLE, BASE + 8192 - 512, BASE - 16, 0]),
    st.sampled_from([16, 1, 512, 1024, 48, 0]),
    st.sampled_from([NEXT, NEXT | WRITE, WRITE, 0, INDIRECT]),
    st.integers(0, SIZE),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_DESCRIPTOR, min_size=SIZE, max_size=SIZE), st.integers(0, SIZE), st.integers())
def test_whatever_is_recognised_is_a_request_for_the_plain_path(
    descriptors: list[tuple[int, int, int, int]], head: int, seed: int
) -> None:
    memory = Memory()
    source = random.Random(seed)
    for index, descriptor in enumerate(descriptors):
        memory.desc(16 * index, *descriptor)
    for index in range(3):
        memory.desc(TABLE + 16 * index, *source.choice(descriptors))
    if source.random() < 0.7:
        memory.request(TABLE, 0)
        memory.request(0, source.randrange(SIZE - 2))
    shape = memory.find(head)
    found = find_scattered(memory, head)
    if shape is None and found is None:
        return
    try:
        memory.ring.chain(head)
    except PeerError:
        pytest.fail("recognised what is damaged")
    if shape is None:
        return
    if not TABLE - 16 <= shape.header <= TABLE + 48 and shape.header > 16 * SIZE:
        memory.same(head, shape)
