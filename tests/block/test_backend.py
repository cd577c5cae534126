# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend, BackendListener
from qsd.block.drain import Drained
from qsd.block.node import Node
from tests.support.memory import Rig


def test_a_detached_backend_has_no_medium() -> None:
    async def main() -> None:
        async with Rig() as rig:
            user = Backend(rig.graph, "u", "user")
            with pytest.raises(OSError, match=r".") as caught:
                await user.read(0, memoryview(bytearray(1)))
            assert caught.value.errno == errno.ENOMEDIUM
            assert not user.read_nowait(0, memoryview(bytearray(1)))
            await user.detach()

    run(main())


def test_writethrough_flushes_every_write() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            user = Backend(rig.graph, "u", "user")
            user.force_writethrough = True
            user.attach(memory.node, perms.WRITE, perms.ALL)
            assert not user.write_nowait(0, memoryview(b"x"))
            await user.write(0, memoryview(b"x"))
            assert [entry[0] for entry in memory.log] == ["write", "flush"]
            await user.detach()

    run(main())


def test_detach_waits_for_requests() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            user = Backend(rig.graph, "u", "user")
            user.attach(memory.node, perms.WRITE, perms.ALL)
            memory.gate = gate = asyncio.Event()
            rig.tasks.spawn(user.write(0, memoryview(b"x")), "write")
            await asyncio.sleep(0)
            done = rig.tasks.spawn(user.detach(), "detach")
            await asyncio.sleep(0)
            assert not done.done()
            gate.set()
            await rig.tasks.join()
            assert memory.data[:1] == b"x"
            assert user.edge is None

    run(main())


def test_resizing_is_told() -> None:
    class Listener(BackendListener):
        sizes: list[int]

        def resized(self) -> None:
            self.sizes.append(user.length())

    listener = Listener()
    listener.sizes = []

    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", 4096)
            user.graph = rig.graph
            user.attach(memory.node, perms.CONSISTENT_READ, perms.ALL)
            await memory.node.truncate(8192)
            assert listener.sizes == [8192]
            await user.detach()

    user = Backend(None, "u", "user", listener)  # type: ignore[arg-type]  # set in main
    run(main())


def test_changing_instrumentation_rebinds_the_fast_paths() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            user = Backend(rig.graph, "u", "user")
            user.attach(memory.node, perms.WRITE, perms.ALL)
            assert user.write_nowait(0, memoryview(b"x"))
            memory.node.write_threshold = 1
            memory.node.refresh_fast_paths()
            assert not user.write_nowait(0, memoryview(b"x"))
            await user.detach()

    run(main())


def test_reads_without_a_coroutine_are_counted_and_drained() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            memory.data[:4] = b"data"
            user = Backend(rig.graph, "u", "user")
            user.attach(memory.node, perms.CONSISTENT_READ, perms.ALL)
            view = memoryview(bytearray(4))
            results: list[bool] = []
            assert not user.read_later(0, view, results.append)
            memory.later = []
            assert user.read_later(0, view, results.append)
            assert user.read_later(0, view, results.append)
            assert user.in_flight == 2
            drain = rig.tasks.spawn(_drain(memory.node), "drain")
            await asyncio.sleep(0)
            assert not drain.done()
            assert not user.read_later(0, view, results.append)
            memory.later[0](True)
            memory.later[1](False)
            await drain
            assert results == [True, False]
            assert bytes(view) == b"data"
            await user.detach()

    run(main())


def test_writes_without_a_coroutine_are_counted_and_noted() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            user = Backend(rig.graph, "u", "user")
            user.attach(memory.node, perms.WRITE, perms.ALL)
            bitmap: Any = Marks()
            memory.node.bitmaps["b"] = bitmap
            view = memoryview(b"data")
            results: list[bool] = []
            assert not user.write_later(8, view, results.append)
            memory.later = []
            assert user.write_later(8, view, results.append)
            assert user.write_later(80, view, results.append)
            assert user.in_flight == 2
            assert bitmap.marks == []
            drain = rig.tasks.spawn(_drain(memory.node), "drain")
            await asyncio.sleep(0)
            assert not drain.done()
            assert not user.write_later(0, view, results.append)
            memory.later[0](True)
            memory.later[1](False)
            await drain
            assert results == [True, False]
            assert bitmap.marks == [(8, 4)]
            assert memory.data[8:12] == b"data"
            assert memory.node.wr_highest_offset == 12
            assert memory.node.unflushed
            await user.detach()

    run(main())


def test_writes_without_a_coroutine_keep_to_the_rules_of_the_node() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            node = memory.node
            memory.later = []
            view = memoryview(bytearray(512))
            user = Backend(rig.graph, "u", "user")
            user.attach(node, perms.WRITE, perms.ALL)
            results: list[bool] = []

            def begins(offset: int = 0) -> bool:
                return user.write_later(offset, view, results.append)

            for name, value in (
                ("read_only", True),
                ("write_threshold", 100),
                ("detect_zeroes", "on"),
            ):
                plain = getattr(node, name)
                setattr(node, name, value)
                assert not begins()
                setattr(node, name, plain)
            user.force_writethrough = True
            assert not begins()
            user.force_writethrough = False
            node.driver.limits.request_alignment = 512
            node.refresh_fast_paths()
            assert not begins(100)
            assert begins()
            # Who changes a part of a block waits for it.
            unaligned = rig.tasks.spawn(node.write(5, memoryview(b"x")), "write")
            await asyncio.sleep(0)
            assert not unaligned.done()
            assert not begins()
            memory.later.pop()(True)
            await unaligned
            assert results == [True]
            assert memory.data[5:6] == b"x"
            node.driver.limits.request_alignment = 1
            await user.detach()

    run(main())


class Marks:
    """Notes what a dirty bitmap would."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, int]] = []

    def mark(self, offset: int, length: int) -> None:
        self.marks.append((offset, length))

    def resized(self, length: int) -> None:
        raise AssertionError


async def _drain(node: Node) -> None:
    async with Drained([node]):
        pass


def test_unaligned_reads_are_not_begun_without_a_coroutine() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            memory.limits.request_alignment = 512
            memory.limits.max_transfer = 4096
            memory.later = []
            for offset, length in ((1, 512), (0, 511), (0, 8192)):
                view = memoryview(bytearray(length))
                assert not memory.node.read_later(offset, view, lambda full: None)
            assert memory.node.read_later(512, memoryview(bytearray(512)), lambda full: None)

    run(main())
