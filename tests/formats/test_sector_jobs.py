# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Long requests on encrypted sectors of a file, in threads."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.node import Node
from qsd.crypto.rows import SECTOR
from qsd.crypto.volume import CipherSpec, Volume
from qsd.formats.sector_jobs import PIECE
from qsd.formats.sectors import GATHER_LENGTH, INLINE_LENGTH, Sectors
from qsd.protocols.file.driver import FileDriver
from tests.support.memory import Rig

#: Bytes between the starts of requests, which do not overlap.
UNIT = 2 * PIECE
UNITS = 4
LENGTH = UNITS * UNIT
#: Bytes before the first sector in the file.
PLACE = 8192
KEY = bytes(range(64))
SPEC = CipherSpec("aes-256", "xts", "plain64", None)


class Bench:
    """Sectors over a file, and what should be in them."""

    def __init__(self, rig: Rig, node: Node, path: Path) -> None:
        self.node = node
        self.path = path
        self.sectors = Sectors(Volume(SPEC, KEY), rig.pool)
        self.plain = bytearray(os.urandom(SECTOR) * (LENGTH // SECTOR))
        encrypted = bytearray(LENGTH)
        Volume(SPEC, KEY).encrypt(0, self.plain, encrypted)
        with path.open("r+b") as file:
            file.seek(PLACE)
            file.write(encrypted)
        self.ends: dict[int, bool] = {}
        self._changed = asyncio.Event()

    def begin(self, is_write: bool, offset: int, view: memoryview) -> bool:
        number = len(self.ends)
        self.ends[number] = False

        def done(full: bool) -> None:
            self.ends[number] = full
            self.left -= 1
            self._changed.set()

        begin = self.sectors.write_later if is_write else self.sectors.read_later
        self.left = getattr(self, "left", 0) + 1
        return begin(self.node, offset, PLACE + offset, view, done)

    async def wait(self) -> None:
        while self.left:
            self._changed.clear()
            await self._changed.wait()

    def check(self) -> None:
        """Compare what is stored with what should be."""
        stored = bytearray(LENGTH)
        encrypted = self.path.read_bytes()[PLACE : PLACE + LENGTH]
        Volume(SPEC, KEY).decrypt(0, encrypted, stored)
        assert stored == self.plain


def on_bench(body: Callable[[Rig, Bench], Awaitable[None]]) -> None:
    async def main(path: Path) -> None:
        path.touch()
        os.truncate(path, PLACE + LENGTH)
        async with Rig(file=FileDriver) as rig:
            node = await rig.add(driver="file", node_name="f", filename=str(path))
            await body(rig, Bench(rig, node, path))

    with tempfile.TemporaryDirectory() as folder:
        run(main(Path(folder) / "image"))


sizes = st.integers(GATHER_LENGTH // SECTOR + 1, 200) | st.integers(200, UNIT // SECTOR)
requests = st.lists(
    st.tuples(st.booleans(), st.integers(0, UNITS - 1), sizes),
    min_size=1,
    max_size=UNITS,
    unique_by=lambda request: request[1],
)


@settings(max_examples=30, deadline=None)
@given(requests=requests)
def test_like_a_bytearray(requests: list[tuple[bool, int, int]]) -> None:
    """Requests that do not overlap, all at once; short ones go through the cipher together."""

    async def body(rig: Rig, bench: Bench) -> None:
        reads = []
        for is_write, unit, count in requests:
            offset, length = unit * UNIT + UNIT - count * SECTOR, count * SECTOR
            if is_write:
                text = os.urandom(length)
                bench.plain[offset : offset + length] = text
                assert bench.begin(True, offset, memoryview(text))
            else:
                view = memoryview(bytearray(length))
                assert bench.begin(False, offset, view)
                reads.append((offset, view))
        await bench.wait()
        assert all(bench.ends.values())
        for offset, view in reads:
            assert view == bench.plain[offset : offset + len(view)]
        bench.check()

    on_bench(body)


def test_company_goes_to_threads() -> None:
    """A request of medium length is deferred while threads are at work."""

    async def body(rig: Rig, bench: Bench) -> None:
        assert not bench.sectors.defers(0, INLINE_LENGTH)
        assert bench.begin(False, 0, memoryview(bytearray(UNIT)))
        assert bench.sectors.defers(0, INLINE_LENGTH)
        await bench.wait()
        while bench.sectors.defers(0, INLINE_LENGTH):
            await asyncio.sleep(0)

    on_bench(body)


def test_writes_are_made_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush after one has something to do, and the end of the highest write is known."""
    synced: list[int] = []
    monkeypatch.setattr("os.fdatasync", synced.append)

    async def body(rig: Rig, bench: Bench) -> None:
        await bench.node.flush()
        before = len(synced)
        await bench.node.flush()
        assert len(synced) == before
        assert bench.begin(True, UNIT, memoryview(bytes(UNIT)))
        await bench.wait()
        await bench.node.flush()
        assert len(synced) == before + 1
        assert bench.node.wr_highest_offset == PLACE + 2 * UNIT

    on_bench(body)


def test_who_must_see_writes_sees_them() -> None:
    """A threshold on the node below: the plain way tells of it."""

    async def body(rig: Rig, bench: Bench) -> None:
        bench.node.write_threshold = 1
        bench.node.refresh_fast_paths()
        assert not bench.begin(True, 0, memoryview(bytes(UNIT)))

    on_bench(body)


def test_nothing_grows() -> None:
    """What ends behind the end of the file is for the plain way, which knows what to do."""

    async def body(rig: Rig, bench: Bench) -> None:
        assert not bench.begin(True, LENGTH - SECTOR, memoryview(bytes(UNIT)))
        assert not bench.begin(False, LENGTH - SECTOR, memoryview(bytearray(UNIT)))

    on_bench(body)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("is_write", [False, True])
def test_failures_are_left_to_the_plain_way(
    is_write: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone or in company: an error, and a file that became shorter."""

    async def body(rig: Rig, bench: Bench) -> None:
        def refuse(*_: object) -> int:
            raise OSError(5, "Input/output error")

        async def all_fail() -> None:
            for unit in range(count):
                assert bench.begin(is_write, unit * UNIT, memoryview(bytearray(2 * GATHER_LENGTH)))
            await bench.wait()
            assert not any(bench.ends.values())

        with monkeypatch.context() as patch:
            patch.setattr(f"os.{'pwrite' if is_write else 'preadv'}", refuse)
            await all_fail()
        if not is_write:
            os.truncate(bench.path, PLACE)
            await all_fail()

    on_bench(body)
