# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One queue: batches, polling, calls, and any requests against a model of the disk."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.exports import vhost_user_blk
from qsd.exports.virtio_blk import VirtioBlk
from qsd.wire.virtio import blk
from tests.exports.export_rig import ExportRig
from tests.support import vhost_frontend as vf
from tests.support.memory import MemoryDriver
from tests.support.vhost_frontend import (
    D_NEXT,
    D_WRITE,
    DISCARD,
    FLUSH,
    GUEST_BASE,
    IN,
    OUT,
    WRITE_ZEROES,
    Frontend,
)

OK, IOERR = 0, 1
SECTORS = 2048
#: Bytes of guest memory for one request: header, status, table, payload.
SLOT = 32768
STATUS, TABLE, PAYLOAD = 64, 512, 4096


class Batch:
    """Requests that are offered together.

    Attributes:
        heads: Where their chains begin.
    """

    def __init__(self, frontend: Frontend, queue: vf.Queue) -> None:
        self.frontend = frontend
        self.queue = queue
        self.heads: list[int] = []
        self._next = 0
        self._places: list[tuple[int, int]] = []

    def add(
        self, kind: int, sector: int, data: bytes = b"", read: int = 0, pieces: int = 1, **how: bool
    ) -> None:
        """Add a request; `how` may be indirect=True."""
        mem = self.frontend.mem
        at = self.frontend.data + SLOT * len(self.heads)
        struct.pack_into("<IIQ", mem, at, kind, 0, sector)
        mem[at + STATUS] = 0xFF
        length = read or len(data)
        mem[at + PAYLOAD : at + PAYLOAD + length] = data or b"\xaa" * length
        parts = [(at, 16, 0)]
        step = -(-length // pieces) or 1
        write = D_WRITE if read else 0
        parts += [
            (at + PAYLOAD + start, min(step, length - start), write)
            for start in range(0, length, step)
        ]
        parts.append((at + STATUS, 1, D_WRITE))
        head = self._next
        self.heads.append(head)
        self._places.append((at, read))
        if how.get("indirect"):
            for index, (place, size, flags) in enumerate(parts):
                more = D_NEXT if index + 1 < len(parts) else 0
                entry = GUEST_BASE + place, size, flags | more, index + 1
                struct.pack_into("<QIHH", mem, at + TABLE + 16 * index, *entry)
            table = GUEST_BASE + at + TABLE
            self.queue.put_desc(head, table, 16 * len(parts), vf.D_INDIRECT)
            self._next += 1
            return
        for index, (place, size, flags) in enumerate(parts):
            more = D_NEXT if index + 1 < len(parts) else 0
            self.queue.put_desc(
                head + index, GUEST_BASE + place, size, flags | more, head + index + 1
            )
        self._next += len(parts)

    def run(self) -> list[tuple[int, bytes]]:
        """Offer all at once; return (status, what was read) of each."""
        self.queue.offer(*self.heads)
        done = self.queue.wait_used(len(self.heads))
        assert sorted(head for head, _ in done) == sorted(self.heads)
        mem = self.frontend.mem
        return [
            (mem[at + STATUS], mem[at + PAYLOAD : at + PAYLOAD + read]) for at, read in self._places
        ]


def with_queue(
    use: Callable[[Frontend], None],
    prepare: Callable[[MemoryDriver], None] = lambda driver: None,
    want: int = vf.F_VERSION_1 | vf.F_INDIRECT | vf.F_PROTOCOL,
    **options: Any,
) -> MemoryDriver:
    """Run `use` with a front end of a writable export of 1 MiB; return the node's driver."""

    async def main() -> MemoryDriver:
        async with ExportRig() as rig:
            driver = await rig.memory("m", discard="unmap")
            prepare(driver)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address, writable=True, **options)

            def client() -> None:
                with Frontend(rig.path("s")) as frontend:
                    frontend.negotiate(want=want)
                    frontend.set_memory()
                    frontend.add_queue(128)
                    use(frontend)

            await asyncio.to_thread(client)
            assert not rig.reports
            return driver

    return loop.run(main())


def slow(driver: MemoryDriver) -> None:
    driver.fast = False


@pytest.mark.parametrize("prepare", [lambda driver: None, slow], ids=["fast", "slow"])
@pytest.mark.parametrize("want", [0, vf.F_EVENT_IDX], ids=["flags", "event index"])
@pytest.mark.parametrize("indirect", [False, True], ids=["ring", "tables"])
def test_a_batch(prepare: Callable[[MemoryDriver], None], want: int, indirect: bool) -> None:
    def use(frontend: Frontend) -> None:
        for turn in range(20):
            batch = Batch(frontend, frontend.queues[0])
            for index in range(30):
                batch.add(OUT, 8 * index, bytes([turn + index]) * 4096, indirect=indirect)
            assert batch.run() == [(OK, b"")] * 30
            batch = Batch(frontend, frontend.queues[0])
            for index in range(30):
                batch.add(IN, 8 * index, read=4096, indirect=indirect)
            assert batch.run() == [(OK, bytes([turn + index]) * 4096) for index in range(30)]

    bits = vf.F_VERSION_1 | vf.F_INDIRECT | vf.F_PROTOCOL
    with_queue(use, prepare, bits | want)


def test_one_call_for_each_batch_on_the_fast_path() -> None:
    """Twenty chains are two batches."""

    def use(frontend: Frontend) -> None:
        queue = frontend.queues[0]
        Batch(frontend, queue).run()  # the call with which a queue begins
        batch = Batch(frontend, queue)
        for index in range(20):
            batch.add(IN, index, read=512)
        queue.offer(*batch.heads)
        queue.wait_used(20)
        assert calls(queue) <= 2

    with_queue(use)


def calls(queue: vf.Queue) -> int:
    """Return how often the driver was called and has not noticed."""
    try:
        return os.eventfd_read(queue.call)
    except BlockingIOError:
        return 0


def test_polling_sees_what_comes_without_a_kick() -> None:
    def use(frontend: Frontend) -> None:
        queue = frontend.queues[0]
        word = queue.used

        def wants_kicks() -> bool:
            return not frontend.mem[word] & 1

        silent = 0
        for index in range(3000):
            batch = Batch(frontend, queue)
            batch.add(OUT, index % 64, bytes([index & 0xFF]) * 512)
            queue.offer(*batch.heads, kick=False)
            if wants_kicks():
                os.eventfd_write(queue.kick, 1)
            else:
                silent += 1
            queue.wait_used()
        assert frontend.request(IN, 2999 % 64, read=512) == (OK, bytes([2999 & 0xFF]) * 512)

    with_queue(use)


def test_requests_that_wait_end_without_a_coroutine() -> None:
    """All but those that the node gave back: these take the plain path."""
    plain: list[int] = []

    class Counted(VirtioBlk):
        __slots__ = ()

        async def perform(self, request: blk.Request) -> tuple[int, int]:
            plain.append(request.sector)
            return await super().perform(request)

    def client(path: str) -> list[tuple[int, bytes]]:
        with Frontend(path) as frontend:
            frontend.set_up(1, 128)
            batch = Batch(frontend, frontend.queues[0])
            for index in range(10):
                batch.add(OUT, index, bytes([index]) * 512)
                batch.add(IN, 100 + index, read=512)
            return batch.run()

    async def main() -> None:
        async with ExportRig() as rig:
            driver = await rig.memory("m")
            driver.fast = False
            driver.later = []
            driver.data[51200:] = b"r" * (len(driver.data) - 51200)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address, writable=True)
            answer = rig.tasks.spawn(asyncio.to_thread(client, rig.path("s")), "client")
            while len(driver.later) < 20:
                await asyncio.sleep(0)
            for index in (5, 19, 0, *range(1, 5), *range(6, 19)):
                driver.later[index](index not in (5, 8))
            assert await answer == [(OK, b""), (OK, b"r" * 512)] * 10
            for index in range(10):
                assert driver.data[512 * index : 512 * index + 512] == bytes([index]) * 512
            assert not rig.reports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vhost_user_blk, "VirtioBlk", Counted)
        loop.run(main())
    assert sorted(plain) == [4, 102]


# The model: whatever requests do, a byte array does the same.

_SECTOR = st.integers(0, SECTORS - 16)
_COUNT = st.integers(1, 16)
_STEP = st.tuples(
    st.sampled_from([IN, IN, OUT, OUT, OUT, WRITE_ZEROES, DISCARD, FLUSH]),
    _SECTOR,
    _COUNT,
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 255),
)


@pytest.mark.parametrize("fast", [True, False])
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.lists(_STEP, min_size=1, max_size=12), max_size=8))
def test_any_requests_against_a_model(fast: bool, steps: list[list[tuple[Any, ...]]]) -> None:
    model = bytearray(SECTORS * 512)
    known = bytearray(b"\1" * SECTORS)  # 0 where a discard has left anything

    def prepare(driver: MemoryDriver) -> None:
        driver.fast = fast

    def one(frontend: Frontend, step: tuple[Any, ...], batch: Batch) -> None:
        kind, sector, count, pieces, indirect, byte = step
        start, end = 512 * sector, 512 * (sector + count)
        if kind == IN:
            batch.add(IN, sector, read=end - start, pieces=pieces, indirect=indirect)
        elif kind == OUT:
            data = bytes([byte, 255 - byte]) * ((end - start) // 2)
            model[start:end] = data
            known[sector : sector + count] = b"\1" * count
            batch.add(OUT, sector, data, pieces=pieces, indirect=indirect)
        elif kind == FLUSH:
            batch.add(FLUSH, 0, indirect=indirect)
        else:
            model[start:end] = bytes(end - start)
            known[sector : sector + count] = bytes([kind == WRITE_ZEROES]) * count
            flags = byte & 1 if kind == WRITE_ZEROES else 0
            data = struct.pack("<QII", sector, count, flags)
            batch.add(kind, 0, data, pieces=pieces, indirect=indirect)

    def use(frontend: Frontend) -> None:
        for group in steps:
            taken: set[int] = set()
            batch = Batch(frontend, frontend.queues[0])
            reads: dict[int, tuple[int, int]] = {}
            for step in group:
                sectors = range(step[1], step[1] + step[2])
                if not taken.isdisjoint(sectors):
                    continue  # what overlaps in flight has no defined order
                taken.update(sectors)
                if step[0] == IN:
                    reads[len(batch.heads)] = step[1], step[2]
                one(frontend, step, batch)
            for index, (status, data) in enumerate(batch.run()):
                assert status == OK
                if index in reads:
                    check(data, *reads[index])
        for sector in range(0, SECTORS, 32):
            check(frontend.request(IN, sector, read=32 * 512)[1], sector, 32)

    def check(data: bytes, sector: int, count: int) -> None:
        for index in range(count):
            if known[sector + index]:
                start = 512 * (sector + index)
                assert data[512 * index : 512 * index + 512] == model[start : start + 512]

    with_queue(use, prepare)
