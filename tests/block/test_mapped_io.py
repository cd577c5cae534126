# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import random

import pytest

from qsd.aio.loop import run
from tests.support.toyformat import CLUSTER, SIZE, add_toy, content, toy_rig


def test_parallel_writes_to_one_cluster_all_survive() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r)
            memory.fast = toy.cached = False
            model = bytearray(SIZE)
            pieces = list(range(0, 8 * CLUSTER, 512))
            random.Random(7).shuffle(pieces)
            for at in pieces:
                data = bytes([at // 512 % 255 + 1]) * 512
                model[at : at + 512] = data
                r.tasks.spawn(node.write(at, memoryview(data)), "write")
            await r.tasks.join()
            assert not r.errors
            assert await content(node) == model
            assert len(toy.table) == 8
            # No cluster was allocated twice: whoever waited found it allocated.
            assert toy.next_free == 8 * CLUSTER

    run(main())


def test_failed_data_write_gives_the_space_back_and_keeps_the_old_content() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r, backing=True)
            before = await content(node)
            memory.fail = lambda operation, offset: errno.ENOSPC if operation == "write" else 0
            with pytest.raises(OSError, match=r".") as caught:
                await node.write(100, memoryview(b"x" * 10))
            assert caught.value.errno == errno.ENOSPC
            assert toy.abandoned == [0]
            memory.fail = lambda operation, offset: 0
            assert await content(node) == before
            assert not toy.ranges.exclusive_count

    run(main())


def test_cancelled_allocation_is_abandoned() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r)
            memory.gate = asyncio.Event()
            task = r.tasks.spawn(node.write(0, memoryview(b"x" * CLUSTER)), "write")
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            memory.gate = None
            assert toy.abandoned == [0]
            assert not toy.table
            assert not len(toy.ranges)
            assert not node.in_flight

    run(main())


def test_extents_are_read_in_parallel() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r)
            await node.write(0, memoryview(b"x" * 8 * CLUSTER))
            # Scatter the clusters so that nothing can be read in one piece.
            toy.table = {index: (index * 3 % 8) * CLUSTER for index in range(8)}
            memory.gate = gate = asyncio.Event()
            memory.log.clear()
            task = r.tasks.spawn(content(node), "read")
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(memory.log) == 8
            gate.set()
            await task

    run(main())


def test_read_failure_waits_for_all_extents() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, _, memory = await add_toy(r)
            await node.write(0, memoryview(b"x" * 8 * CLUSTER))
            memory.fast = False
            memory.fail = lambda operation, offset: errno.EIO if offset == 0 else 0
            with pytest.raises(OSError, match=r".") as caught:
                await content(node)
            assert caught.value.errno == errno.EIO
            assert not len(r.tasks)
            assert not node.in_flight

    run(main())


def test_in_place_writes_wait_for_exclusive_claims_on_their_range() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, _ = await add_toy(r)
            await node.write(0, memoryview(b"x" * CLUSTER))
            hold = await toy.ranges.claim(0, CLUSTER, True)
            assert not node.write_nowait(0, memoryview(b"y"))
            task = r.tasks.spawn(node.write(0, memoryview(b"y")), "write")
            await asyncio.sleep(0)
            assert not task.done()
            toy.ranges.release(hold)
            await task
            assert (await content(node))[:2] == b"yx"

    run(main())


def test_reads_without_a_coroutine_hold_their_mapping() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r)
            await node.write(0, memoryview(b"x" * CLUSTER))
            memory.later = []
            view = memoryview(bytearray(8))
            results: list[bool] = []
            assert not node.read_later(2 * CLUSTER, view, results.append)  # a hole
            assert node.read_later(8, view, results.append)
            task = r.tasks.spawn(node.discard(0, CLUSTER), "discard")
            await asyncio.sleep(0)
            assert not task.done()  # the cluster must not be given away under the read
            assert not node.read_later(8, view, results.append)
            memory.later.pop()(True)
            await task
            assert results == [True]
            assert bytes(view) == b"x" * 8
            assert not len(toy.ranges)

    run(main())


def test_writes_without_a_coroutine_hold_their_mapping() -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r)
            await node.write(0, memoryview(b"x" * CLUSTER))
            memory.later = []
            view = memoryview(b"y" * 8)
            results: list[bool] = []
            assert not node.write_later(2 * CLUSTER, view, results.append)  # a hole
            assert node.write_later(8, view, results.append)
            task = r.tasks.spawn(node.discard(0, CLUSTER), "discard")
            await asyncio.sleep(0)
            assert not task.done()
            assert not node.write_later(8, view, results.append)
            assert memory.data.count(b"y" * 8) == 0
            memory.later.pop()(True)
            await task
            assert results == [True]
            assert memory.data.count(b"y" * 8) == 1
            assert not len(toy.ranges)

    run(main())


@pytest.mark.parametrize("backing", [False, True])
def test_fast_reads_of_several_extents_agree_with_the_plain_way(backing: bool) -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r, backing)
            memory.fast = toy.cached = True
            source = random.Random(5)
            for index in source.sample(range(64), 40):
                await node.write(index * CLUSTER, memoryview(bytes([index + 1]) * CLUSTER))
            await node.zero(3 * CLUSTER, 2 * CLUSTER)
            expected = await content(node)
            served = 0
            for _ in range(200):
                offset = source.randrange(SIZE - 1)
                length = min(source.randrange(1, 9 * CLUSTER), SIZE - offset)
                view = memoryview(bytearray(b"\xee" * length))
                if toy.read_nowait(offset, view):
                    served += 1
                    assert bytes(view) == expected[offset : offset + length]
            assert served > 50
            toy.cached = False
            assert not toy.read_nowait(0, memoryview(bytearray(9 * CLUSTER)))

    run(main())
