# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Many reads and writes at once, around the page cache, do what single ones do."""

from __future__ import annotations

import asyncio
import errno
import random
import subprocess
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.aio.operations import PooledOperation
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.late import Route
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.support.marks import Marks
from tests.support.memory import Rig
from tests.support.rings import HeldRing
from tests.support.tools import need

LENGTH = 1 << 20
PAGE = 4096


class LateRig(Rig):
    """A backend of a node over a file that is opened with O_DIRECT."""

    def __init__(self, path: Path) -> None:
        super().__init__(file=FileDriver, raw=RawDriver, qcow2=Qcow2Driver)
        self.path = path
        self.user = Backend(self.graph, "u", "user")
        self.ended: list[PooledOperation] = []

    async def open(self, fmt: str = "raw", **more: Any) -> None:
        cache = {"direct": True}
        try:
            file = await self.add(
                driver="file", node_name="f", filename=str(self.path), cache=cache, locking="off"
            )
        except Exception as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EINVAL:
                pytest.skip("no O_DIRECT here")
            raise
        node = file
        if fmt != "file":
            node = await self.add(driver=fmt, node_name="n", file="f", cache=cache, **more)
        self.user.attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)

    async def __aexit__(self, exc_type: object, *rest: object) -> None:
        await self.user.detach()
        await super().__aexit__(exc_type, *rest)

    def route(self, is_write: bool = False) -> Route:
        route = self.user.route(is_write, self.ended.extend)
        if route is None and self.pool.ring() is None:
            pytest.skip("the kernel gives no io_uring here")
        assert route is not None
        return route

    async def wait(self, count: int) -> list[PooledOperation]:
        while len(self.ended) < count:
            await asyncio.sleep(0)
        ended, self.ended = self.ended[:], []
        return ended


def make_image(path: Path, fmt: str) -> bytes:
    data = random.Random(5).randbytes(LENGTH)
    if fmt == "qcow2":
        need("qemu-img")
        raw = path.with_suffix(".source")
        raw.write_bytes(data)
        command = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2"]
        subprocess.run([*command, str(raw), str(path)], check=True)
    else:
        path.write_bytes(data)
    return data


def with_image(
    path: Path, body: Callable[[LateRig], Coroutine[Any, Any, None]], fmt: str = "raw", **more: Any
) -> None:
    async def main() -> None:
        make_image(path, fmt)
        async with LateRig(path) as rig:
            await rig.open(fmt, **more)
            await body(rig)

    loop.run(main())


REQUESTS = st.tuples(
    st.booleans(),
    st.integers(0, LENGTH // 512 - 1),
    st.integers(1, 40),
    st.sampled_from([0, 0, 0, 0, 1, 511]),  # mostly aligned
)


@pytest.mark.parametrize("fmt", ["file", "raw", "qcow2"])
def test_like_a_bytearray(fmt: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.mktemp("late")))
    content = make_image(folder / "image", fmt)

    @settings(max_examples=15)
    @given(st.lists(st.lists(REQUESTS, max_size=12), max_size=6))
    def check(batches: list[list[tuple[bool, int, int, int]]]) -> None:
        async def main() -> None:
            async with LateRig(folder / "image") as rig:
                await rig.open(fmt)
                # Every example finds what the one before has left; so it is put right first.
                await rig.user.write(0, memoryview(content))
                expected = bytearray(content)
                for batch in batches:
                    await run_batch(rig, expected, batch)
                whole = bytearray(LENGTH)
                await rig.user.read(0, memoryview(whole))
                assert whole == expected
                assert rig.user.in_flight == 0

        loop.run(main())

    check()


async def run_batch(
    rig: LateRig, expected: bytearray, batch: list[tuple[bool, int, int, int]]
) -> None:
    """Do what does not overlap all at once; what is refused, the plain way."""
    taken: list[tuple[int, int]] = []
    operations: dict[bool, list[PooledOperation]] = {False: [], True: []}
    for number, (is_write, sector, count, skew) in enumerate(batch):
        offset = sector * 512 + skew
        length = min(count * 512, LENGTH - offset)
        if length <= 0 or any(offset < end and start < offset + length for start, end in taken):
            continue
        taken.append((offset, offset + length))
        operation = rig.route(is_write).take(length, offset)
        if is_write:
            operation.payload()[:] = bytes([number + 1]) * length
        operations[is_write].append(operation)
    begun = 0
    plain: list[tuple[bool, PooledOperation]] = []
    for is_write, several in operations.items():
        for operation in several:
            operation.sink = rig.route(is_write)
        refused = rig.route(is_write).begin(several)
        begun += len(several) - len(refused)
        plain += [(is_write, operation) for operation in refused]
    plain += [
        (operation in operations[True], operation)
        for operation in await rig.wait(begun)
        if not operation.is_full
    ]
    for is_write, operation in plain:
        move = rig.user.write if is_write else rig.user.read
        await move(operation.origin, operation.payload())
    for operation in operations[False]:
        end = operation.origin + operation.length
        assert operation.payload() == expected[operation.origin : end]
    for operation in operations[True]:
        expected[operation.origin : operation.origin + operation.length] = operation.payload()
    for operation in operations[False] + operations[True]:
        assert not operation.holds
        operation.drop()


def test_draining_waits_and_ends_the_route(tmp_path: Path) -> None:
    async def body(rig: LateRig) -> None:
        ring: Any = HeldRing()
        rig.pool._ring = ring
        route = rig.route()
        operation = route.take(PAGE, 0)
        assert route.begin([operation]) == []
        assert rig.user.in_flight == 1
        generation = rig.user.generation
        entered: list[int] = []

        async def drain() -> None:
            async with Drained([rig.user.node]):
                entered.append(rig.user.in_flight)
                assert rig.user.route(False, rig.ended.extend) is None
                assert route.begin([late]) == [late]

        late = route.take(PAGE, PAGE)
        draining = rig.tasks.spawn(drain(), "drain")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not entered
        ring.end()
        await draining
        assert entered == [0]
        assert rig.ended == [operation]
        assert rig.user.generation != generation
        assert rig.route().begin([]) == []

    with_image(tmp_path / "image", body)


@pytest.mark.parametrize("result", [None, 512, -errno.EIO])
def test_writes_are_accounted_for_if_they_end_well(tmp_path: Path, result: int | None) -> None:
    async def body(rig: LateRig) -> None:
        ring: Any = HeldRing()
        rig.pool._ring = ring
        node = rig.user.node
        marks: Any = Marks()
        node.bitmaps["b"] = marks
        route = rig.route(True)
        operation = route.take(PAGE, 2 * PAGE)
        assert route.begin([operation]) == []
        assert not marks.ranges
        ring.end(result)
        assert rig.ended == [operation]
        well = result is None
        assert operation.is_full is well
        assert marks.ranges == ([(2 * PAGE, PAGE)] if well else [])
        assert node.wr_highest_offset == (3 * PAGE if well else 0)
        assert node.unflushed is well
        assert not operation.holds
        del node.bitmaps["b"]

    with_image(tmp_path / "image", body)


def test_unaligned_writes_take_turns_with_these(tmp_path: Path) -> None:
    async def body(rig: LateRig) -> None:
        ring: Any = HeldRing()
        rig.pool._ring = ring
        route = rig.route(True)
        operation = route.take(PAGE, 0)
        assert route.begin([operation]) == []
        rig.pool._ring = None
        writing = rig.tasks.spawn(rig.user.write(10, memoryview(b"x")), "write")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not writing.done()
        other = route.take(PAGE, 0)
        assert route.begin([other]) == [other]  # it is the other one's turn
        assert not other.holds
        ring.end()
        await writing
        byte = bytearray(1)
        await rig.user.read(10, memoryview(byte))
        assert byte == b"x"

    with_image(tmp_path / "image", body)


def test_what_is_refused(tmp_path: Path) -> None:
    """What is not aligned, and what would make the file longer; the others go ahead."""

    async def body(rig: LateRig) -> None:
        ring: Any = HeldRing()
        rig.pool._ring = ring
        route = rig.route(True)
        good = route.take(PAGE, 0)
        odd = route.take(PAGE, PAGE + 1)
        beyond = route.take(PAGE, LENGTH)
        assert route.begin([odd, good, beyond]) == [odd, beyond]
        assert ring.held == [good]
        assert rig.user.in_flight == 1
        assert [len(each.holds) for each in (odd, beyond)] == [0, 0]
        ring.end()
        assert rig.user.in_flight == 0

    with_image(tmp_path / "image", body)


def test_clusters_that_are_not_there_are_refused(tmp_path: Path) -> None:
    need("qemu-img")
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)

    async def main() -> None:
        async with LateRig(path) as rig:
            await rig.open("qcow2")
            page = memoryview(b"x" * PAGE)
            await rig.user.write(0, page)
            ring: Any = HeldRing()
            rig.route()
            rig.pool._ring, real = ring, rig.pool._ring
            for is_write in (False, True):
                route = rig.route(is_write)
                here, missing = route.take(PAGE, 0), route.take(PAGE, 512 << 10)
                assert route.begin([missing, here]) == [missing]
                assert here.offset != here.origin == 0
                assert missing.offset == missing.origin
                assert not missing.holds
                ring.end()
            rig.pool._ring = real

    loop.run(main())


@pytest.mark.parametrize(
    ("prepare", "reads"),
    [
        (lambda node: setattr(node, "detect_zeroes", "on"), True),
        (lambda node: setattr(node, "write_threshold", 1), True),
        (lambda node: setattr(node, "read_only", True), True),
        (lambda node: setattr(node.driver.limits, "max_transfer", PAGE), False),
        (lambda node: setattr(node, "closed", True), False),
    ],
)
def test_no_route(tmp_path: Path, prepare: Callable[[Any], None], reads: bool) -> None:
    async def body(rig: LateRig) -> None:
        rig.route()
        rig.route(True)
        node = rig.user.node
        closed, read_only = node.closed, node.read_only
        prepare(node)
        assert (rig.user.route(False, rig.ended.extend) is not None) is reads
        assert rig.user.route(True, rig.ended.extend) is None
        node.closed, node.read_only = closed, read_only

    with_image(tmp_path / "image", body)


def test_no_route_for_windows_and_writethrough(tmp_path: Path) -> None:
    async def body(rig: LateRig) -> None:
        assert rig.user.route(False, rig.ended.extend) is None

    with_image(tmp_path / "window", body, offset=512)

    async def through(rig: LateRig) -> None:
        rig.user.force_writethrough = True
        assert rig.user.route(True, rig.ended.extend) is None
        rig.user.edge, edge = None, rig.user.edge
        assert rig.user.route(False, rig.ended.extend) is None
        rig.user.edge = edge

    with_image(tmp_path / "through", through)


def test_no_route_without_io_uring(tmp_path: Path) -> None:
    async def body(rig: LateRig) -> None:
        rig.pool._can_ring = False
        assert rig.user.route(False, rig.ended.extend) is None

    with_image(tmp_path / "image", body)


def test_buffered_writes_have_no_route(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "image"
        make_image(path, "raw")
        async with LateRig(path) as rig:
            node = await rig.add(driver="file", node_name="f", filename=str(path), locking="off")
            rig.user.attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
            assert not rig.route().is_direct
            assert rig.user.route(True, rig.ended.extend) is None

    loop.run(main())
