# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The order in which metadata reaches the disk, by replaying write logs with losses.

A random load is recorded as writes and flushes of the file below.  Power fails after any of them:
what was flushed is there, and of the rest any subset.  Whatever is left must be an image without
corruption that holds everything the guest flushed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import MAY_UNMAP
from qsd.formats.qcow2 import check as checker
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.formats.qcow2.support import (
    RecordingFile,
    Unseen,
    add_image,
    check,
    content,
    file_of,
    make,
    rig,
)
from tests.formats.qcow2.support import run as tool
from tests.support.memory import Rig
from tests.support.tools import need

SIZE = 512 << 10
#: Power failures per variant; the environment asks for more.
FAILURES = int(os.environ.get("QSD_POWER_FAILURES", "24"))
SECTOR = 512

#: (options for qemu-img create, options of the node)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("", {}),
    "tiny": ("cluster_size=512", {}),
    "tiny-small-caches": (
        "cluster_size=512",
        {"l2_cache_size": 1024, "refcount_cache_size": 1024},
    ),
    "refcount64": ("cluster_size=512,refcount_bits=64", {}),
    "refcount1": ("cluster_size=4k,refcount_bits=1", {}),
    "v2": ("cluster_size=4k,compat=0.10", {}),
    "extended": ("cluster_size=16k,extended_l2=on", {}),
    "slices": ("cluster_size=16k", {"l2_cache_entry_size": 512}),
    "lazy": ("cluster_size=4k,lazy_refcounts=on", {}),
    "snapshot": ("cluster_size=2k", {}),
    "compressed": ("cluster_size=4k", {}),
    "discard": ("cluster_size=2k", {"pass_discard_other": True, "pass_discard_request": True}),
}


class Load:
    """A random load on one node, with all that a crash may leave of it.

    Attributes:
        allowed: Per sector, contents that a crash may leave: the last flushed one and all later.
        points: (number of log entries, contents allowed from then on).
    """

    def __init__(self, path: Path, before: bytes, seed: int) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.model = bytearray(before)
        self.allowed: list[set[bytes]] = [
            {before[at : at + SECTOR]} for at in range(0, len(before), SECTOR)
        ]
        self.points: list[tuple[int, list[set[bytes]]]] = []

    def change(self, offset: int, data: bytes) -> None:
        """Note a change before it is made."""
        self.model[offset : offset + len(data)] = data
        for at in range(offset, offset + len(data), SECTOR):
            self.allowed[at // SECTOR].add(bytes(self.model[at : at + SECTOR]))

    def point(self, log: list[Any]) -> None:
        self.points.append((len(log), [set(values) for values in self.allowed]))

    async def step(self, node: Any, log: list[Any]) -> None:
        pick = self.random
        start = pick.randrange(SIZE // SECTOR)
        length = min(pick.choice((1, 2, 8, 40, 200)), SIZE // SECTOR - start) * SECTOR
        start *= SECTOR
        kind = pick.choice("wwwwwzzdf")
        if kind == "w":
            data = bytes([pick.randrange(1, 256)]) * length
            self.change(start, data)
            self.point(log)
            views = memoryview(data)[:SECTOR], memoryview(data)[SECTOR:]
            # Some writes come in two parts, some unseen, if the image takes them so.
            way = start // SECTOR % 3
            if not (
                (way == 0 and node.driver.write_views_nowait(start, views, length))
                or (way == 1 and node.receive_nowait(start, Unseen(data)))
            ):
                await node.write(start, memoryview(data))
        elif kind == "z":
            self.change(start, bytes(length))
            self.point(log)
            await node.zero(start, length, pick.choice((0, MAY_UNMAP)))
        elif kind == "d":
            # Whole clusters become zero, what is left at the ends stays: both may be found.
            self.change(start, bytes(length))
            self.point(log)
            await node.discard(start, length)
            view = bytearray(length)
            await node.read(start, memoryview(view))
            self.change(start, bytes(view))
        else:
            await node.flush()
            for number in range(len(self.allowed)):
                at = number * SECTOR
                self.allowed[number] = {bytes(self.model[at : at + SECTOR])}
        self.point(log)


def crashed(before: bytes, log: list[Any], end: int, pick: random.Random) -> bytes:
    """Return the file after a power failure: all flushed writes, and a subset of the others."""
    flushed = max((n for n in range(end) if log[n] is None), default=-1) + 1
    keep = pick.choice((0.0, 0.3, 0.7, 1.0))
    data = bytearray(before)
    for number in range(end):
        entry = log[number]
        if entry is None or (number >= flushed and pick.random() >= keep):
            continue
        offset, written = entry
        if written is None:
            del data[offset:]
            data.extend(bytes(offset - len(data)))
            continue
        data.extend(bytes(max(0, offset + len(written) - len(data))))
        data[offset : offset + len(written)] = written
    return bytes(data)


async def look(path: Path) -> tuple[bytes, checker.CheckResult]:
    """Read all content of an image, and check it, by a reader that writes nothing."""
    async with rig() as graph:
        node = await add_image(graph, path, read_only=True)
        driver = node.driver
        assert isinstance(driver, Qcow2Driver)
        result = await checker.check(driver.image, driver.bitmaps)
        view = bytearray(node.length())
        await node.read(0, memoryview(view))
        return bytes(view), result


def prepare(tmp_path: Path, variant: str) -> tuple[Path, bytes]:
    options, _ = VARIANTS[variant]
    path = make(tmp_path / "image", SIZE, options)
    if variant == "snapshot":
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 300k", path)
        tool("qemu-img", "snapshot", "-c", "one", path)
    if variant == "compressed":
        tool("qemu-io", "-f", "qcow2", "-c", "write -c -P 7 0 256k", path)
    return path, content(path, tmp_path)


async def record(path: Path, load: Load, steps: int, options: dict[str, Any]) -> RecordingFile:
    async with rig() as graph:
        node = await add_image(graph, path, discard="unmap", **options)
        node.children["file"].node.discard_unmap = True
        below = file_of(node)
        load.point(below.writes)
        for _ in range(steps):
            await load.step(node, below.writes)
    return below


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_power_failure(tmp_path: Path, variant: str) -> None:
    need("qemu-img", "qemu-io")
    for seed in range(-(-FAILURES // 24)):
        path, before = prepare(tmp_path, variant)
        load = Load(path, before, seed)
        below = run(record(path, load, 60, VARIANTS[variant][1]))
        check(path)
        assert content(path, tmp_path) == bytes(load.model)
        survive(tmp_path, variant, load, below, seed)


def survive(tmp_path: Path, variant: str, load: Load, below: RecordingFile, seed: int) -> None:
    """Let the power fail at many points of a recorded load."""
    pick = random.Random(seed)
    log = below.writes
    broken = tmp_path / "broken"
    flushes = [at for at, entry in enumerate(log) if entry is None]
    for number in range(24):
        # Most is at stake when much waits for a flush.
        end = pick.choice(flushes) if number % 2 else pick.randrange(len(log) + 1)
        allowed = [values for start, values in load.points if start <= end][-1]
        # A request that was running is allowed from the point before it on.
        later = [values for start, values in load.points if start > end][:1]
        broken.write_bytes(crashed(below.before, log, end, pick))
        found, result = run(look(broken))
        if variant != "lazy":
            assert not result.corruptions, (variant, seed, end)
        if number % 12 == 0 or variant == "lazy":
            if variant == "lazy":
                tool("qemu-img", "check", "-q", "-r", "all", broken)
            check(broken, leaks=True)
        for sector, values in enumerate(allowed):
            got = found[sector * SECTOR : (sector + 1) * SECTOR]
            extra = later[0][sector] if later else set()
            assert got in values or got in extra, (variant, seed, end, sector, got[:4])


def test_an_unclean_lazy_image_is_repaired_when_opened(tmp_path: Path) -> None:
    need("qemu-img")
    path, before = prepare(tmp_path, "lazy")
    load = Load(path, before, 3)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            for _ in range(30):
                await load.step(node, file_of(node).writes)
            await node.flush()
            (tmp_path / "unclean").write_bytes(file_of(node).data)

    run(main())
    unclean = tmp_path / "unclean"
    assert unclean.read_bytes()[79] & 1

    async def reopen() -> None:
        async with rig() as graph:
            node = await add_image(graph, unclean)
            assert not file_of(node).data[79] & 1

    run(reopen())
    check(unclean)
    assert content(unclean, tmp_path) == bytes(load.model)


@pytest.mark.parametrize("variant", ["plain", "tiny", "extended"])
def test_failing_writes_lose_nothing_that_was_flushed(tmp_path: Path, variant: str) -> None:
    """Every write below may fail; the image stays sound and later flushes make up for it."""
    need("qemu-img")
    path, before = prepare(tmp_path, variant)
    pick = random.Random(5)
    model = bytearray(before)

    async def main() -> None:
        async with rig() as graph:
            await hammer(graph)

    async def hammer(graph: Rig) -> None:
        node = await add_image(graph, path)
        below = file_of(node)
        for _ in range(80):
            below.fail = lambda op, at: (
                28 if op in ("write", "flush") and pick.random() < 0.1 else 0
            )
            start = pick.randrange(SIZE // SECTOR) * SECTOR
            data = bytes([pick.randrange(1, 256)]) * min(20 * SECTOR, SIZE - start)
            taken = pick.choice((1 << 30, SECTOR, 5000))
            try:
                if start & SECTOR or not node.receive_nowait(start, Unseen(data, taken)):
                    await node.write(start, memoryview(data))
            except OSError:
                below.fail = lambda op, at: 0
                await node.write(start, memoryview(data))
            model[start : start + len(data)] = data
            if pick.random() < 0.2:
                try:
                    await node.flush()
                except OSError:
                    pass
        below.fail = lambda op, at: 0
        await node.flush()

    run(main())
    check(path, leaks=True)
    assert content(path, tmp_path) == bytes(model)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "tiny", "extended", "snapshot"])
def test_power_failure_while_resizing(tmp_path: Path, variant: str) -> None:
    """The size is the old or the new one at any instant, and what both hold is there."""
    need("qemu-img", "qemu-io")
    path, _ = prepare(tmp_path, variant)
    sizes = (SIZE, 8 << 20, 3 * SIZE, SIZE // 2)

    async def main() -> RecordingFile:
        async with rig() as graph:
            node = await add_image(graph, path)
            below = file_of(node)
            await node.write(0, memoryview(b"k" * (SIZE // 2)))
            await node.flush()
            below.start_recording()
            for size in sizes[1:]:
                await node.truncate(size)
                if size > SIZE:
                    await node.write(size - 70000, memoryview(b"x" * 70000))
        return below

    below = run(main())
    check(path)
    pick = random.Random(1)
    log = below.writes
    broken = tmp_path / "broken"
    for end in sorted({pick.randrange(len(log) + 1) for _ in range(16)}):
        broken.write_bytes(crashed(below.before, log, end, pick))
        found, result = run(look(broken))
        assert not result.corruptions, end
        assert len(found) in sizes
        assert found[: SIZE // 2] == b"k" * (SIZE // 2)


def test_a_new_table_that_fits_the_cache_waits_for_nothing(tmp_path: Path) -> None:
    """Else filling an image would stop for all data so far at each of its tables."""
    need("qemu-img")
    path = make(tmp_path / "image", 8 << 20, "cluster_size=4k")

    async def main() -> list[Any]:
        async with rig() as graph:
            node = await add_image(graph, path)
            below = file_of(node)
            for offset in range(0, 8 << 20, 1 << 20):
                await node.write(offset, memoryview(b"x" * 4096))
            return list(below.writes)

    assert None not in run(main())
    check(path)
