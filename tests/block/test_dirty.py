# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Dirty bitmaps on nodes."""

from __future__ import annotations

import errno
import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block import dirty
from qsd.block.dirty import DirtyBitmap
from qsd.block.info import bitmaps_info
from qsd.block.runs import Runs
from qsd.errors import QmpError
from qsd.util.bitmap import Bitmap
from tests.support.extents import pairs
from tests.support.memory import Rig


def areas(bitmap: DirtyBitmap) -> list[tuple[int, int]]:
    return list(bitmap.bits.areas())


def test_writes_of_all_kinds_are_recorded() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", 1 << 20, discard="unmap")
            node = memory.node
            bitmap = DirtyBitmap(node, "b", 4096)
            bitmap.attach()
            assert node.write_nowait(5000, memoryview(b"x"))
            memory.fast = False
            assert not node.write_nowait(9000, memoryview(b"x"))
            await node.write(16384, memoryview(b"x"))
            await node.zero(65536, 1)
            await node.discard(131072, 4096)
            assert node.wr_highest_offset == 65537  # a discard does not count as a write there
            expected = [4096, 16384, 65536, 131072]
            assert areas(bitmap) == [(offset, 4096) for offset in expected]
            bitmap.enabled = False
            await node.write(0, memoryview(b"x"))
            bitmap.detach()
            bitmap.detach()
            bitmap.enabled = True
            await node.write(0, memoryview(b"x"))
            assert bitmap.bits.count() == len(expected)
            assert not node.bitmaps

    run(main())


def test_without_bitmaps_the_fast_path_is_the_drivers_own() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            assert memory.node.write_nowait == memory.write_nowait
            bitmap = DirtyBitmap(memory.node, None, 65536)
            bitmap.attach()
            assert memory.node.write_nowait != memory.write_nowait
            bitmap.detach()
            assert memory.node.write_nowait == memory.write_nowait

    run(main())


def test_resizing() -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", 1 << 20)).node
            bitmap = DirtyBitmap(node, "b", 65536)
            bitmap.attach()
            await node.write(0, memoryview(bytes(1 << 20)))
            bitmap.freeze()
            assert not bitmap.takes_writes
            await node.write(900_000, memoryview(b"x"))
            await node.truncate(100_000)
            await node.truncate(1 << 20)
            bitmap.reclaim()
            assert areas(bitmap) == [(0, 131072)]

    run(main())


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("way", ["abdicate", "reclaim"])
def test_successors(enabled: bool, way: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", 1 << 20)).node
            bitmap = DirtyBitmap(node, "b", 65536)
            bitmap.attach()
            await node.write(0, memoryview(b"x"))
            bitmap.enabled = enabled
            bitmap.freeze()
            await node.write(65536, memoryview(b"x"))
            assert areas(bitmap) == [(0, 65536)]
            with pytest.raises(QmpError, match="currently in use"):
                bitmap.check()
            new = 65536 if enabled else 0
            shown = [(info.name, info.recording, info.count) for info in bitmaps_info(node) or ()]
            assert shown == [(None, enabled, new), ("b", enabled, 65536)]
            getattr(bitmap, way)()
            old = 65536 if way == "reclaim" else 0
            assert bitmap.bits.dirty_bytes() == old + new
            bitmap.check()
            assert bitmap.enabled == enabled

    run(main())


def test_a_successor_is_as_old_as_it_is() -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", 1 << 20)).node
            bitmaps = {name: DirtyBitmap(node, name, 65536) for name in "abc"}
            bitmaps["a"].attach()
            bitmaps["b"].attach()
            bitmaps["a"].freeze()
            bitmaps["c"].attach()
            bitmaps["a"].abdicate()
            assert [bitmap.name for bitmap in dirty.bitmaps_of(node)] == ["c", "a", "b"]

    run(main())


def test_all_are_listed_by_age() -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", 1 << 20)).node
            bitmaps = {name: DirtyBitmap(node, name, 65536) for name in "abc"}
            bitmaps["a"].attach()
            work = dirty.WorkingSet(bitmaps["a"].bits, False)
            work.show(node)
            bitmaps["b"].attach()
            bitmaps["a"].freeze()
            bitmaps["c"].attach()
            names = [info.name for info in bitmaps_info(node) or ()]
            assert names == ["c", None, "b", None, "a"]
            bitmaps["a"].detach()
            work.hide(node)
            assert [info.name for info in bitmaps_info(node) or ()] == ["c", "b"]

    run(main())


def test_checks() -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n")).node
            bitmap = DirtyBitmap(node, "b", 65536)
            bitmap.read_only = True
            with pytest.raises(QmpError, match="Bitmap 'b' is readonly and cannot be modified"):
                bitmap.check()
            bitmap.check(dirty.CHECK_BUSY | dirty.CHECK_INCONSISTENT)
            bitmap.inconsistent = True
            with pytest.raises(QmpError, match="Bitmap 'b' is inconsistent") as info:
                bitmap.check(dirty.CHECK_INCONSISTENT)
            assert info.value.hint is not None
            bitmap.check(dirty.CHECK_BUSY)

    run(main())


@pytest.mark.parametrize("size", [512, 1 << 20, (1 << 20) + 512, (1 << 26) + 65536])
def test_checksum(size: int) -> None:
    """Compared with what the C daemon says: bits in words of 64, the last one filled up."""

    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", size)).node
            bitmap = DirtyBitmap(node, "b", 512)
            count = -(-size // 512)
            plain = bytearray(-(-count // 64) * 8)
            assert bitmap.sha256() == hashlib.sha256(plain).hexdigest()
            source = random.Random(size)  # fixed seed
            for bit in (0, count - 1, *(source.randrange(count) for _ in range(20))):
                bitmap.bits.set(bit * 512, 1)
                plain[bit // 8] |= 1 << bit % 8
            assert bitmap.sha256() == hashlib.sha256(plain).hexdigest()
            bitmap.resized(0)
            assert bitmap.sha256() == hashlib.sha256(bytes(8)).hexdigest()

    run(main())


def test_names_and_granularities() -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n")).node
            assert dirty.default_granularity(node) == 65536
            for wrong in (0, 256, 1000):
                with pytest.raises(QmpError, match="must be power of 2 and at least 512"):
                    dirty.check_granularity(wrong)
            dirty.check_granularity(512)
            dirty.check_new(node, "b" * 1023)
            with pytest.raises(QmpError, match="Bitmap name too long"):
                dirty.check_new(node, "b" * 1024)
            first = DirtyBitmap(node, "b", 512)
            first.attach()
            with pytest.raises(QmpError, match="Bitmap already exists: b"):
                dirty.check_new(node, "b")
            second = DirtyBitmap(node, None, 512)
            second.attach()
            assert list(dirty.bitmaps_of(node)) == [second, first]
            assert dirty.find_bitmap(rig.graph, "n", "b") is first
            with pytest.raises(QmpError, match="Dirty bitmap 'x' not found"):
                dirty.find_bitmap(rig.graph, "n", "x")
            with pytest.raises(QmpError, match="Node 'm' not found"):
                dirty.find_bitmap(rig.graph, "m", "b")

    run(main())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=8),
    st.integers(0, (5 << 20) - 1),
    st.integers(1, 6 << 20),
    st.integers(1, 12),
)
def test_runs_like_one_area_after_the_other(
    marks: list[tuple[int, int]], offset: int, length: int, limit: int
) -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", (5 << 20) - 512)
            bitmap = DirtyBitmap(memory.node, "b", 1024)
            for start, count in marks:
                bitmap.bits.set(start << 10, min(count << 10, (5 << 20) - 512 - (start << 10)))
            plain = Runs()
            at, end = offset, offset + length
            while (area := bitmap.bits.next_dirty_area(at, end)) is not None:
                if area[0] > at:
                    plain.add(area[0] - at, 0)
                plain.add(area[1], 1)
                at = area[0] + area[1]
            if at < end:
                plain.add(end - at, 0)
            plain.cut(limit)
            assert pairs(bitmap.runs(offset, length, limit)) == pairs(plain)

    run(main())


LENGTH = (5 << 20) - 512
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["write", "write", "write", "fails"]),
            st.one_of(st.integers(0, LENGTH - 1), st.integers(0, 1279).map(lambda n: n << 12)),
            st.one_of(st.sampled_from([512, 4096, 65536]), st.integers(1, 200_000)),
        ),
        st.tuples(
            st.sampled_from(["freeze", "abdicate", "reclaim", "toggle", "clear", "look", "merge"]),
            st.just(0),
            st.just(0),
        ),
    ),
    max_size=25,
)


def _fail(offset: int, view: memoryview) -> bool:
    raise OSError(errno.EIO, "no")


def _granules(offset: int, length: int, granularity: int) -> range:
    return range(offset // granularity, (offset + length - 1) // granularity + 1)


def _content(bits: Bitmap) -> set[int]:
    return {bit for area in bits.areas() for bit in _granules(*area, bits.granularity)}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([512, 2048, 4096, 65536, 1 << 20]), STEPS)
def test_writes_by_the_fast_path_against_a_set(
    granularity: int, steps: list[tuple[str, int, int]]
) -> None:
    """Through changes of where they are recorded; `own` is the bitmap, `new` its successor."""

    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", LENGTH)).node
            bitmap = DirtyBitmap(node, "b", granularity)
            bitmap.attach()
            write, fail = node.write_nowait, dirty.recording_path(_fail, bitmap)
            own, enabled = set[int](), True
            new: set[int] | None = None
            for kind, offset, wanted in steps:
                length = min(wanted, LENGTH - offset)
                if kind in ("write", "fails"):
                    view = memoryview(bytes(length))
                    if kind == "write":
                        assert write(offset, view)
                    else:
                        with pytest.raises(OSError, match="no"):
                            fail(offset, view)
                    if enabled:
                        (own if new is None else new).update(_granules(offset, length, granularity))
                elif kind == "freeze" and new is None:
                    bitmap.freeze()
                    new = set()
                elif kind in ("abdicate", "reclaim") and new is not None:
                    getattr(bitmap, kind)()
                    own, new = new if kind == "abdicate" else own | new, None
                elif kind == "toggle":
                    bitmap.enabled = enabled = not enabled
                elif kind == "clear":
                    bitmap.bits.clear_all()
                    own.clear()
                elif kind == "merge":
                    merged = bitmap.bits.copy()
                    merged.set(0, 1)
                    bitmap.bits = merged
                    own.add(0)
                elif kind == "look":
                    assert _content(bitmap.bits) == own
            assert _content(bitmap.bits) == own
            assert bitmap.bits.count() == len(own)
            assert _content(bitmap.successor or Bitmap(0, 512)) == (new or set())

    run(main())


def test_all_bitmaps_of_a_node_learn_of_a_write() -> None:
    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", 1 << 20)).node
            bitmaps = [DirtyBitmap(node, name, 4096) for name in ("a", "b", None)]
            for bitmap in bitmaps:
                bitmap.attach()
            bitmaps[1].enabled = False
            assert node.write_nowait(4096, memoryview(bytes(4096)))
            assert [bitmap.bits.count() for bitmap in bitmaps] == [1, 0, 1]

    run(main())


def test_more_marks_than_are_kept_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty, "MAX_FRESH", 5)

    async def main() -> None:
        async with Rig() as rig:
            node = (await rig.memory("n", 1 << 20)).node
            bitmap = DirtyBitmap(node, "b", 512)
            bitmap.attach()
            for unit in range(0, 28, 2):
                assert node.write_nowait(unit * 4096, memoryview(bytes(4096)))
                assert len(bitmap.bits.fresh) <= 5
            assert len(bitmap.bits.fresh) == 2
            assert bitmap.bits.count() == 14 * 8

    run(main())


@pytest.mark.parametrize("kind", ["write", "zero"])
def test_failed_changes_are_recorded(kind: str) -> None:
    """A part may have been written: an incremental backup without it would not be one."""

    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", 1 << 20)
            node = memory.node
            bitmap = DirtyBitmap(node, "b", 4096)
            bitmap.attach()
            memory.fast = False
            memory.fail = lambda operation, offset: errno.EIO
            change = node.write(8192, memoryview(b"x")) if kind == "write" else node.zero(8192, 1)
            with pytest.raises(OSError, match="Input/output"):
                await change
            assert areas(bitmap) == [(8192, 4096)]
            assert node.wr_highest_offset == 8193

    run(main())
