# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import random

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import FUA, MAY_UNMAP, NO_FALLBACK
from tests.support.memory import MemoryDriver, Rig


class Aligned(MemoryDriver):
    """A driver that insists on blocks of 512 bytes, and says so."""

    async def open(self, options: object, opener: object) -> None:
        await super().open(options, opener)
        self.limits.request_alignment = 512
        self.limits.max_transfer = 4096

    def _check(self, offset: int, length: int) -> None:
        assert offset % 512 == length % 512 == 0
        assert length <= 4096

    async def read(self, offset: int, view: memoryview) -> None:
        self._check(offset, len(view))
        await super().read(offset, view)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        self._check(offset, len(view))
        await asyncio.sleep(0)
        await super().write(offset, view, flags)


def test_unaligned_requests_become_read_modify_write() -> None:
    async def main() -> None:
        async with Rig(null_co=Aligned) as rig:
            node = (await rig.memory("n", 1 << 16)).node
            model = bytearray(1 << 16)
            source = random.Random(1)  # fixed seed
            for _ in range(200):
                offset = source.randrange(1 << 16)
                length = source.randrange(1, min(9000, (1 << 16) - offset + 1) + 1)
                length = min(length, (1 << 16) - offset)
                data = source.randbytes(length)
                await node.write(offset, memoryview(data))
                model[offset : offset + length] = data
                view = memoryview(bytearray(length + 100))[: min(length + 100, (1 << 16) - offset)]
                await node.read(offset, view)
                assert view == model[offset : offset + len(view)]

    run(main())


def test_parallel_unaligned_writes_to_one_block_do_not_lose_bytes() -> None:
    async def main() -> None:
        async with Rig(null_co=Aligned) as rig:
            memory = await rig.memory("n", 4096)
            for at in range(0, 512, 8):
                rig.tasks.spawn(memory.node.write(at, memoryview(bytes([at // 8 + 1] * 8))), "w")
            await rig.tasks.join()
            assert memory.data[:512] == b"".join(bytes([i + 1] * 8) for i in range(64))
            assert not rig.errors

    run(main())


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (1 << 20, 1), ((1 << 20) - 1, 2)])
def test_requests_outside_the_image_fail_with_eio(offset: int, length: int) -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            memory.fast = False
            for call in (
                memory.node.read(offset, memoryview(bytearray(length))),
                memory.node.write(offset, memoryview(bytes(length))),
                memory.node.zero(offset, length),
                memory.node.discard(offset, length),
            ):
                with pytest.raises(OSError, match=r".") as caught:
                    await call
                assert caught.value.errno == errno.EIO
            assert memory.log == []

    run(main())


def test_a_read_only_node_refuses_every_change() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", read_only=True)
            data = memoryview(b"x" * 512)
            assert not memory.node.write_nowait(0, data)
            for call in (
                memory.node.write(0, data),
                memory.node.zero(0, 512),
                memory.node.discard(0, 512),
            ):
                with pytest.raises(PermissionError):
                    await call
            assert memory.log == []

    run(main())


def test_zeroes_are_written_where_the_driver_has_no_better_way() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", 4 << 20)
            memory.can_zero = memory.fast = False
            memory.data[:] = b"x" * (4 << 20)
            await memory.node.zero(100, 3 << 20)
            assert memory.data[:100] == b"x" * 100
            assert not any(memory.data[100 : 100 + (3 << 20)])
            assert memory.data[100 + (3 << 20) :] == b"x" * ((1 << 20) - 100)
            with pytest.raises(OSError, match=r".") as caught:
                await memory.node.zero(0, 512, NO_FALLBACK)
            assert caught.value.errno == errno.ENOTSUP

    run(main())


def test_zeroes_that_cannot_be_fast_leave_all_as_it_was() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            memory.limits.request_alignment = 4096
            memory.data[:] = b"x" * (1 << 20)
            for start, length in ((4096, 8193), (4095, 8193)):
                with pytest.raises(OSError, match=r".") as caught:
                    await memory.node.zero(start, length, NO_FALLBACK)
                assert caught.value.errno == errno.ENOTSUP
            assert memory.data == b"x" * (1 << 20)
            await memory.node.zero(4096, 8192, NO_FALLBACK)
            assert memory.data[4096:12288] == bytes(8192)

    run(main())


def test_zero_requests_are_cut_to_the_drivers_granularity() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            memory.limits.zero_alignment = 4096
            memory.limits.max_zero = 16384
            memory.fast = False
            memory.data[:] = b"x" * (1 << 20)
            await memory.node.zero(1000, 40000)
            assert [entry for entry in memory.log if entry[0] == "zero"] == [
                ("zero", 4096, 16384),
                ("zero", 20480, 16384),
                ("zero", 36864, 4096),
            ]
            assert memory.data.count(0) == 40000
            assert not any(memory.data[1000:41000])

    run(main())


def test_detect_zeroes_turns_writes_into_zero_requests() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", discard="unmap", detect_zeroes="unmap")
            await memory.node.write(0, memoryview(bytes(4096)))
            await memory.node.write(0, memoryview(bytes(4095) + b"x"))
            assert [entry[0] for entry in memory.log] == ["zero", "write"]

    run(main())


def test_fua_is_a_write_and_a_flush() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            await memory.node.write(0, memoryview(b"x"), FUA)
            await memory.node.zero(0, 512, FUA | MAY_UNMAP)
            assert [entry[0] for entry in memory.log] == ["write", "flush", "zero", "flush"]

    run(main())


def test_threshold_fires_once_with_the_excess_and_restores_the_fast_path() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            node = memory.node
            seen: list[int] = []
            node.write_threshold = 1000
            node.on_threshold = seen.append
            node.refresh_fast_paths()
            assert not node.write_nowait(0, memoryview(b"x"))
            await node.write(0, memoryview(bytes(1000)))
            assert seen == []
            await node.write(500, memoryview(bytes(600)))
            await node.write(500, memoryview(bytes(600)))
            assert seen == [100]
            assert node.write_threshold == 0
            assert node.write_nowait(0, memoryview(b"x"))

    run(main())


def test_discard_reaches_the_driver_only_when_unmap_was_asked_for() -> None:
    async def main() -> None:
        async with Rig() as rig:
            ignoring = await rig.memory("a")
            passing = await rig.memory("b", discard="unmap")
            for memory in (ignoring, passing):
                await memory.node.discard(0, 4096)
            assert ignoring.log == []
            assert passing.log == [("discard", 0, 4096)]

    run(main())


def test_lengths_are_rounded_up_to_sectors_and_the_rest_reads_as_zeroes() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", 1000)
            assert memory.node.length() == 1024
            memory.data[:] = b"x" * 1000
            view = memoryview(bytearray(b"y" * 24))
            await memory.node.read(1000, view)
            assert bytes(view) == bytes(24)

    run(main())
