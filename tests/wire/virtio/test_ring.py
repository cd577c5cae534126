# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Split rings: honest drivers are served, the others are refused."""

from __future__ import annotations

import random
import struct

import pytest

from qsd.errors import PeerError
from qsd.wire.virtio.memory import GuestMemory, Region
from qsd.wire.virtio.ring import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NOTIFY_ON_EMPTY,
    Chain,
    SplitRing,
    area_sizes,
)

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 8
TABLE = 4096


class Driver:
    """The other side: memory of 64 KiB from address 0, the ring at its beginning."""

    def __init__(self, features: int = F_INDIRECT_DESC, size: int = SIZE) -> None:
        self.mem = bytearray(65536)
        view = memoryview(self.mem)
        desc, avail, used = area_sizes(size)
        self.avail = desc
        self.used = (desc + avail + 3) & ~3
        self.size = size
        self.ring = SplitRing(
            size,
            (view[:desc], view[desc : desc + avail], view[self.used : self.used + used]),
            GuestMemory([Region(0, len(view), 0, view)]),
            features,
            0,
        )
        self.idx = 0

    def desc(self, index: int, address: int, length: int, flags: int = 0, link: int = 0) -> None:
        struct.pack_into("<QIHH", self.mem, 16 * index, address, length, flags, link)

    def indirect(self, index: int, address: int, length: int, flags: int, link: int) -> None:
        struct.pack_into("<QIHH", self.mem, TABLE + 16 * index, address, length, flags, link)

    def offer(self, head: int) -> None:
        struct.pack_into("<H", self.mem, self.avail + 4 + 2 * (self.idx % self.size), head)
        self.idx = (self.idx + 1) & 0xFFFF
        struct.pack_into("<H", self.mem, self.avail + 2, self.idx)

    def pop(self) -> Chain | None:
        heads = self.ring.take(1)
        return self.ring.chain(heads[0]) if heads else None

    def used_event(self, index: int) -> None:
        struct.pack_into("<H", self.mem, self.avail + 4 + 2 * self.size, index)

    def word(self, offset: int) -> int:
        (value,) = struct.unpack_from("<H", self.mem, offset)
        return int(value)


def test_a_chain_goes_there_and_back() -> None:
    driver = Driver()
    driver.desc(2, 10000, 16, NEXT, 5)
    driver.desc(5, 20000, 512, NEXT | WRITE, 1)
    driver.desc(1, 30000, 1, WRITE)
    assert driver.pop() is None
    driver.offer(2)
    chain = driver.pop()
    assert chain is not None
    readable, writable, head = chain
    assert ([len(v) for v in readable], [len(v) for v in writable], head) == ([16], [512, 1], 2)
    writable[0][:3] = b"abc"
    assert driver.mem[20000:20003] == b"abc"
    driver.ring.push(head, 513)
    assert driver.word(driver.used + 2) == 1
    assert struct.unpack_from("<II", driver.mem, driver.used + 4) == (2, 513)
    assert driver.pop() is None


def test_indirect_and_wrapping_indexes() -> None:
    driver = Driver()
    for round_ in range(3 * SIZE + 0x10000 // 64):
        driver.indirect(0, 10000, 16, NEXT, 2)
        driver.indirect(2, 20000, 1, WRITE, 0)
        driver.desc(0, TABLE, 48, INDIRECT)
        driver.offer(0)
        chain = driver.pop()
        assert chain is not None
        assert [len(chain[0]), len(chain[1])] == [1, 1]
        driver.ring.push(0, 1)
        assert driver.word(driver.used + 2) == round_ + 1


def test_taking_many_around_the_end() -> None:
    driver = Driver()
    for head in (3, 1, 4, 1, 5):
        driver.offer(head)
    assert driver.ring.take(2) == [3, 1]
    for head in (2, 6, 5, 3, 7):
        driver.offer(head)
    assert driver.ring.take(100) == [4, 1, 5, 2, 6, 5, 3, 7]
    assert driver.ring.take(100) == []
    assert driver.ring.last_avail == 10


BAD = {
    "loop": [(0, 0, 16, NEXT, 1), (1, 0, 16, NEXT, 0)],
    "itself": [(0, 0, 16, NEXT, 0)],
    "link beyond": [(0, 0, 16, NEXT, SIZE)],
    "outside": [(0, 65530, 16, 0, 0)],
    "far outside": [(0, (1 << 64) - 8, 16, 0, 0)],
    "huge": [(0, 0, 0xFFFFFFFF, 0, 0)],
    "empty": [(0, 0, 0, 0, 0)],
    "read after write": [(0, 0, 16, NEXT | WRITE, 1), (1, 0, 16, 0, 0)],
    "indirect with next": [(0, TABLE, 16, INDIRECT | NEXT, 1)],
    "indirect of nothing": [(0, TABLE, 0, INDIRECT, 0)],
    "indirect of halves": [(0, TABLE, 24, INDIRECT, 0)],
    "indirect outside": [(0, 65528, 16, INDIRECT, 0)],
    "indirect far too long": [(0, 0, 16 * 1025, INDIRECT, 0)],
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_chains(name: str) -> None:
    driver = Driver()
    for entry in BAD[name]:
        driver.desc(*entry)
    driver.offer(0)
    with pytest.raises(PeerError):
        driver.pop()


@pytest.mark.parametrize("flags", [INDIRECT, NEXT])
def test_damaged_indirect_tables(flags: int) -> None:
    driver = Driver()
    driver.indirect(0, 0, 16, flags, 0)
    driver.desc(0, TABLE, 16, INDIRECT)
    driver.offer(0)
    with pytest.raises(PeerError):
        driver.pop()


def test_indirect_needs_the_feature() -> None:
    driver = Driver(features=0)
    driver.indirect(0, 0, 16, 0, 0)
    driver.desc(0, TABLE, 16, INDIRECT)
    driver.offer(0)
    with pytest.raises(PeerError, match="indirect"):
        driver.pop()


def test_damaged_available_ring() -> None:
    driver = Driver()
    driver.offer(SIZE)
    with pytest.raises(PeerError, match="beyond"):
        driver.pop()
    driver = Driver()
    driver.idx = SIZE
    driver.offer(0)
    with pytest.raises(PeerError, match="more chains"):
        driver.pop()


@pytest.mark.parametrize("count", range(SIZE + 1))
@pytest.mark.parametrize("start", [*range(SIZE), 0xFFFE])
def test_pushing_many_is_pushing_each(start: int, count: int) -> None:
    one, all_at_once = Driver(), Driver()
    for driver in (one, all_at_once):
        driver.ring.used_idx = start
    pairs = [(index * 3 % SIZE, index * 512) for index in range(count)]
    for head, written in pairs:
        one.ring.push(head, written)
    all_at_once.ring.push_all([number for pair in pairs for number in pair])
    assert all_at_once.ring.used_idx == one.ring.used_idx
    if count:
        assert all_at_once.mem == one.mem


@pytest.mark.parametrize("size", [0, 3, 65536, -8])
def test_sizes(size: int) -> None:
    with pytest.raises(PeerError, match="descriptors"):
        SplitRing(size, (memoryview(b""),) * 3, GuestMemory([]), 0, 0)


def test_calls_and_kicks_without_event_index() -> None:
    driver = Driver(features=0)
    assert driver.ring.wants_call()
    assert not driver.ring.wants_call()  # nothing is new
    driver.ring.push(0, 1)
    driver.mem[driver.avail] = 1
    assert not driver.ring.wants_call()
    driver.ring.stop_kicks()
    assert driver.word(driver.used) == 1
    assert not driver.ring.want_kicks()
    assert driver.word(driver.used) == 0
    driver.offer(0)
    assert driver.ring.want_kicks()


def test_calls_and_kicks_with_event_index() -> None:
    driver = Driver(features=F_EVENT_IDX)
    ring = driver.ring
    ring.push(0, 1)
    assert ring.wants_call()  # nothing is known of the driver yet
    driver.used_event(2)
    ring.push(0, 1)
    assert not ring.wants_call()
    ring.push(0, 1)
    assert ring.wants_call()
    assert not ring.wants_call()
    driver.desc(0, 0, 16)
    driver.offer(0)
    assert driver.pop() is not None
    assert not ring.want_kicks()
    assert driver.word(driver.used + 4 + 8 * SIZE) == 1


def test_an_empty_ring_is_always_told_of_if_that_was_agreed() -> None:
    driver = Driver(features=F_NOTIFY_ON_EMPTY)
    driver.mem[driver.avail] = 1  # no calls, please
    driver.ring.push(0, 1)
    assert driver.ring.wants_call()
    driver.offer(0)
    driver.ring.push(0, 1)
    assert not driver.ring.wants_call()


def test_random_memory_never_does_more_than_raise() -> None:
    source = random.Random(7)
    for _ in range(400):
        driver = Driver(features=F_INDIRECT_DESC | F_EVENT_IDX)
        driver.mem[: 16 * SIZE] = source.randbytes(16 * SIZE)
        for index in range(SIZE):
            if source.random() < 0.8:
                driver.desc(
                    index,
                    source.randrange(70000),
                    source.randrange(600),
                    source.randrange(8),
                    source.randrange(SIZE + 1),
                )
        driver.offer(source.randrange(SIZE + 1))
        try:
            chain = driver.pop()
        except PeerError:
            continue
        assert chain is not None
        assert sum(map(len, chain[0] + chain[1])) <= 65536 * SIZE
