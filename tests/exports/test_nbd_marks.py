# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What batches of NBD requests write, recorded in dirty bitmaps as in a plain set."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.block.dirty import DirtyBitmap
from qsd.formats.raw import RawDriver
from qsd.util.bitmap import Bitmap
from tests.exports.rig import FUA, READ, WRITE, Client, NbdRig
from tests.exports.test_nbd_runs import K4, KINDS, UNIT, Rig, on_image

MIB = 1 << 20
SIZE = 3 * MIB
#: What cannot be written, of the node below.
BAD = range(MIB, MIB + 65536)

PLACES = st.one_of(st.integers(0, SIZE // 512 - 1), st.integers(0, 767).map(lambda n: n * 8))
REQUESTS = st.tuples(
    st.sampled_from([WRITE, WRITE, WRITE, READ, "fua", "beyond"]),
    PLACES.map(lambda n: n * 512),
    st.sampled_from([512, 4096, 4096, 40960, 65536, 131072]),
    st.integers(1, 6),  # how many, one behind the other
)
STEPS = st.lists(
    st.one_of(
        st.lists(REQUESTS, min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(["freeze", "abdicate", "reclaim", "toggle", "clear"]),
            st.sampled_from([0, 1, 2]),
        ),
    ),
    max_size=10,
)


class Expected:
    """A bitmap, and what it should say."""

    def __init__(self, bitmap: DirtyBitmap) -> None:
        self.bitmap = bitmap
        self.own = set[int]()
        self.new: set[int] | None = None
        bitmap.attach()

    def change(self, kind: str) -> None:
        bitmap = self.bitmap
        if kind == "freeze" and self.new is None:
            bitmap.freeze()
            self.new = set()
        elif kind in ("abdicate", "reclaim") and self.new is not None:
            getattr(bitmap, kind)()
            self.own, self.new = self.new if kind == "abdicate" else self.own | self.new, None
        elif kind == "toggle":
            bitmap.enabled = not bitmap.enabled
        elif kind == "clear":
            bitmap.bits.clear_all()
            self.own.clear()

    def wrote(self, offset: int, length: int) -> None:
        if self.bitmap.enabled:
            unit = self.bitmap.granularity
            marks = range(offset // unit, (offset + length - 1) // unit + 1)
            (self.own if self.new is None else self.new).update(marks)

    def check(self) -> None:
        assert content(self.bitmap.bits) == self.own
        assert content(self.bitmap.successor or Bitmap(0, 512)) == (self.new or set())


def content(bits: Bitmap) -> set[int]:
    return {
        bit
        for offset, length in bits.areas()
        for bit in range(offset // bits.granularity, -(-(offset + length) // bits.granularity))
    }


def fail_there(way: str) -> Callable[[str, int], int]:
    """Fail writes to BAD; the fast path says that it cannot, or fails itself."""

    def fail(operation: str, offset: int) -> int:
        if operation != "write" or offset not in BAD:
            return 0
        if way == "raises":
            raise OSError(errno.EIO, "no")
        return errno.EIO

    return fail


async def serve(client: Client, requests: list[tuple[Any, int, int, int]]) -> list[tuple[int, int]]:
    """Send requests together; return what was asked to be written, and lies in the export."""
    asked, lengths = [], {}
    for kind, first, length, count in requests:
        for offset in range(first, first + count * length, length):
            is_read, at = kind == READ, offset + (SIZE if kind == "beyond" else 0)
            cookie = client.request(
                READ if is_read else WRITE,
                at,
                length,
                FUA if kind == "fua" else 0,
                b"" if is_read else b"x" * length,
            )
            is_inside = at + length <= SIZE
            lengths[cookie] = length if is_read and is_inside else 0
            if is_inside and not is_read:
                asked.append((at, length))
    for _ in range(len(lengths)):
        await take_reply(client, lengths)
    return asked


async def take_reply(client: Client, lengths: dict[int, int]) -> None:
    """Receive a simple reply, of any request."""
    head = await client.get(16)
    cookie = int.from_bytes(head[8:], "big")
    if head[4:8] == bytes(4):
        await client.get(lengths[cookie])


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([512, 2048, 4096, 65536]),
    st.sampled_from(["raises", "refuses"]),
    st.sampled_from(["bitmaps of both", "of the upper", "of the lower"]),
    STEPS,
)
def test_against_a_set(granularity: int, way: str, whose: str, steps: list[Any]) -> None:
    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            disk = await rig.memory("m", SIZE)
            top = await rig.add(driver="raw", node_name="n", file="m")
            disk.fail = fail_there(way)
            bitmaps = []
            if whose != "of the lower":
                bitmaps += [DirtyBitmap(top, "a", granularity), DirtyBitmap(top, "b", 4096)]
            if whose != "of the upper":
                bitmaps.append(DirtyBitmap(disk.node, "c", granularity))
            all_expected = [Expected(bitmap) for bitmap in bitmaps]
            await rig.export("n", writable=True)
            client = await rig.go("n")
            for step in steps:
                if isinstance(step, list):
                    for offset, length in await serve(client, step):
                        for expected in all_expected:
                            expected.wrote(offset, length)
                else:
                    all_expected[step[1] % len(bitmaps)].change(step[0])
                for expected in all_expected:
                    expected.check()

    loop.run(main())


def test_adjacent_writes_are_joined() -> None:
    """By one call for each node, which records one range, also if it fails."""

    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            disk = await rig.memory("m", SIZE)
            node = await rig.add(driver="raw", node_name="n", file="m")
            bitmaps = [DirtyBitmap(one, "b", 4096) for one in (node, disk.node)]
            for bitmap in bitmaps:
                bitmap.attach()
            export = await rig.export("n", writable=True)
            write = export.backend.views_path()
            assert write is not None
            assert write(0, [memoryview(bytes(K4))] * 3, 3 * K4)
            disk.fail = fail_there("raises")
            with pytest.raises(OSError, match="no"):
                write(MIB, [memoryview(bytes(K4))] * 3, 3 * K4)
            for bitmap in bitmaps:
                assert list(bitmap.bits.areas()) == [(0, 3 * K4), (MIB, 3 * K4)]

    loop.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_encrypted_requests(kind: str) -> None:
    """They are served together, and recorded."""

    async def body(rig: Rig) -> None:
        client = await rig.go("n")
        assert await client.ask(WRITE, 0, MIB, data=bytes(MIB)) == ["ok"]
        node = rig.graph.find("n")
        expected = Expected(DirtyBitmap(node, "b", 4096))
        path = rig.registry.find("exp-n").backend.run_path()
        assert path is not None
        views = [(at, memoryview(bytearray(K4))) for at in range(0, 4 * K4, K4)]
        assert path.read_run(views) == 4
        expected.check()
        assert path.write_run(views) == 4
        expected.wrote(0, 4 * K4)
        expected.check()
        for offset, length in await serve(
            client, [(WRITE, at, K4, 1) for at in range(0, MIB, UNIT)]
        ):
            expected.wrote(offset, length)
        expected.check()

    on_image(kind, body)
