# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encrypted sectors: long requests in threads, short ones at once or gathered."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.node import Node
from qsd.crypto.rows import SECTOR
from qsd.crypto.volume import CipherSpec, Volume
from qsd.formats.sectors import (
    _ENOUGH,
    _HOLD_OFF,
    _TOGETHER,
    CHUNK,
    GATHER_LENGTH,
    INLINE_LENGTH,
    Sectors,
)
from tests.support.memory import MemoryDriver, Rig

LENGTH = 1 << 20
#: Bytes before the first sector in the node.
PLACE = 8192
KEY = bytes(range(64))
SPEC = CipherSpec("aes-256", "xts", "plain64", None)


class Bench:
    """Sectors over memory, and what should be in them."""

    def __init__(self, rig: Rig, memory: MemoryDriver) -> None:
        self.memory = memory
        self.node: Node = memory.node
        self.sectors = Sectors(Volume(SPEC, KEY), rig.pool)
        self.plain = bytearray(os.urandom(LENGTH))
        encrypted = bytearray(LENGTH)
        Volume(SPEC, KEY).encrypt(0, self.plain, encrypted)
        memory.data[PLACE : PLACE + LENGTH] = encrypted

    def check(self) -> None:
        """Compare what is stored with what should be."""
        stored = bytearray(LENGTH)
        Volume(SPEC, KEY).decrypt(0, bytes(self.memory.data[PLACE : PLACE + LENGTH]), stored)
        assert stored == self.plain

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        return self.sectors.read_later(self.node, offset, PLACE + offset, view, done)

    def write_later(self, offset: int, data: bytes, done: Callable[[bool], None]) -> None:
        view = memoryview(data)
        assert self.sectors.write_later(self.node, offset, PLACE + offset, view, done)


def on_bench(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m", PLACE + LENGTH)
            await body(Bench(rig, memory))

    run(main())


class Ends:
    """Collects how requests end."""

    def __init__(self) -> None:
        self.results: dict[int, bool] = {}
        self._changed = asyncio.Event()

    def expect(self, number: int) -> Callable[[bool], None]:
        def done(full: bool) -> None:
            assert number not in self.results
            self.results[number] = full
            self._changed.set()

        return done

    async def wait(self, count: int) -> None:
        while len(self.results) < count:
            self._changed.clear()
            await self._changed.wait()


@pytest.mark.parametrize("threads", [0, 2])
def test_long_requests(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads, or in pieces on the loop."""
    monkeypatch.setattr("qsd.formats.sectors._THREADS", threads)

    async def body(bench: Bench) -> None:
        sectors = bench.sectors
        text = os.urandom(CHUNK + INLINE_LENGTH + 512)
        stored = bytearray(len(text))
        pieces: list[int] = []

        async def store(start: int, piece: memoryview) -> None:
            stored[start : start + len(piece)] = piece
            pieces.append(len(piece))

        await sectors.write(5120, memoryview(text), store)
        assert pieces == [CHUNK, INLINE_LENGTH + 512]
        expected = bytearray(len(text))
        Volume(SPEC, KEY).encrypt(10, text, expected)
        assert stored == expected
        await sectors.decrypt(5120, memoryview(stored))
        assert stored == text

    on_bench(body)


@pytest.mark.parametrize("length", [512, 4096, INLINE_LENGTH])
def test_at_once(length: int) -> None:
    async def body(bench: Bench) -> None:
        view = memoryview(bytearray(length))
        assert bench.sectors.read_nowait(bench.node, 1024, PLACE + 1024, view)
        assert view == bench.plain[1024 : 1024 + length]
        text = os.urandom(length)
        assert bench.sectors.write_nowait(bench.node, 1024, PLACE + 1024, memoryview(text))
        bench.plain[1024 : 1024 + length] = text
        bench.check()
        bench.memory.fast = False
        assert not bench.sectors.read_nowait(bench.node, 1024, PLACE + 1024, view)
        assert not bench.sectors.write_nowait(bench.node, 1024, PLACE + 1024, view)

    on_bench(body)


def test_what_cannot_be_served_at_once_is_deferred() -> None:
    async def body(bench: Bench) -> None:
        defers = bench.sectors.defers
        assert defers(1, 512)
        assert defers(512, 511)
        assert defers(0, 0)
        assert defers(0, INLINE_LENGTH + 512)
        assert not defers(0, INLINE_LENGTH)
        assert not defers(512, 512)

    on_bench(body)


def test_slow_ciphers_go_to_threads_earlier() -> None:
    async def main() -> None:
        async with Rig() as rig:
            volume = Volume(CipherSpec("twofish-256", "xts", "plain64", None), KEY)
            sectors = Sectors(volume, rig.pool)
            assert sectors.defers(0, INLINE_LENGTH)
            assert not sectors.defers(0, GATHER_LENGTH)

    run(main())


def test_gathering_starts_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests close together start it; a turn of the loop with a single one ends it."""
    now = 1.0
    monkeypatch.setattr("qsd.formats.sectors.monotonic", lambda: now)

    async def body(bench: Bench) -> None:
        nonlocal now
        sectors = bench.sectors
        view = memoryview(bytearray(4096))

        def at_once() -> bool:
            return not sectors.defers(0, 4096) and sectors.read_nowait(bench.node, 0, PLACE, view)

        for _ in range(3 * _ENOUGH):
            now += 1
            assert at_once()
        assert [at_once() for _ in range(_ENOUGH + 1)] == [True] * (_ENOUGH - 1) + [False] * 2
        # One that is too long for that goes to a thread if it has company, else not.
        assert sectors.defers(0, GATHER_LENGTH + 512)
        now += 1
        assert not sectors.defers(0, GATHER_LENGTH + 512)
        ends = Ends()
        for turn in range(2):
            assert bench.read_later(0, view, ends.expect(turn))
            await ends.wait(turn + 1)
        now += 1
        assert at_once()

    on_bench(body)


def test_no_gathering_for_who_does_not_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that takes the plain way when refused is refused once in a long time."""
    monkeypatch.setattr("qsd.formats.sectors.monotonic", lambda: 1.0)

    async def body(bench: Bench) -> None:
        sectors = bench.sectors
        refused = 0
        view = memoryview(bytearray(512))
        for _ in range(3 * _HOLD_OFF):
            if sectors.defers(0, 512):
                refused += 1
                await asyncio.sleep(0)
            else:
                assert sectors.read_nowait(bench.node, 0, PLACE, view)
        assert 1 <= refused <= 4

    on_bench(body)


_UNITS = LENGTH // GATHER_LENGTH
requests = st.lists(
    st.tuples(st.booleans(), st.integers(0, _UNITS - 1), st.integers(0, 7), st.integers(1, 24)),
    min_size=1,
    max_size=40,
    unique_by=lambda request: request[1],
)


@settings(max_examples=40, deadline=None)
@given(requests=requests, fast=st.booleans())
def test_together_like_one_by_one(requests: list[tuple[bool, int, int, int]], fast: bool) -> None:
    """Requests that do not overlap, in one turn of the loop; the node below waits, or does not."""

    async def body(bench: Bench) -> None:
        memory = bench.memory
        memory.fast = fast
        memory.later = []
        ends = Ends()
        reads = []
        for number, (writing, unit, sector, count) in enumerate(requests):
            offset, length = unit * GATHER_LENGTH + sector * SECTOR, count * SECTOR
            if writing:
                text = os.urandom(length)
                bench.plain[offset : offset + length] = text
                bench.write_later(offset, text, ends.expect(number))
            else:
                view = memoryview(bytearray(length))
                assert bench.read_later(offset, view, ends.expect(number))
                reads.append((offset, view))
        assert not ends.results
        while len(ends.results) < len(requests):
            await asyncio.sleep(0)
            while memory.later:
                memory.later.pop()(True)
        assert all(ends.results.values())
        for offset, view in reads:
            assert view == bench.plain[offset : offset + len(view)]
        bench.check()

    on_bench(body)


def test_much_takes_several_turns() -> None:
    """More than goes through the cipher together does not hold the loop up."""

    async def body(bench: Bench) -> None:
        ends = Ends()
        count = 2 * _TOGETHER // GATHER_LENGTH
        views = [memoryview(bytearray(GATHER_LENGTH)) for _ in range(count)]
        for number, view in enumerate(views):
            assert bench.read_later(number * GATHER_LENGTH, view, ends.expect(number))
        await ends.wait(1)
        assert len(ends.results) == count // 2
        await ends.wait(count)
        assert b"".join(views) == bench.plain[: count * GATHER_LENGTH]

    on_bench(body)


def test_failures_are_left_to_the_plain_way() -> None:
    async def body(bench: Bench) -> None:
        memory = bench.memory
        ends = Ends()
        view = memoryview(bytearray(4096))
        # What begins, and fails.
        memory.fast, memory.later = False, []
        assert bench.read_later(0, view, ends.expect(0))
        memory.later.pop()(False)
        bench.write_later(0, bytes(4096), ends.expect(1))
        while not memory.later:
            await asyncio.sleep(0)
        memory.later.pop()(False)
        # What cannot begin.
        memory.later = None
        assert not bench.read_later(0, view, ends.expect(2))
        bench.write_later(0, bytes(4096), ends.expect(3))
        await ends.wait(3)
        assert ends.results == {0: False, 1: False, 3: False}

        # What fails at once.
        def fail(offset: int, view: memoryview) -> bool:
            raise OSError(errno.EIO, "Input/output error")

        bench.node.read_nowait = bench.node.write_nowait = fail
        assert not bench.read_later(0, view, ends.expect(4))
        bench.write_later(0, bytes(4096), ends.expect(5))
        await ends.wait(4)
        assert ends.results[5] is False
        bench.check()

    on_bench(body)


def test_forget() -> None:
    async def body(bench: Bench) -> None:
        bench.sectors.forget()
        with pytest.raises(ValueError, match="key"):
            bench.sectors.read_nowait(bench.node, 0, PLACE, memoryview(bytearray(512)))

    on_bench(body)
