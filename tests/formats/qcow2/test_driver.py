# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Whole images: random operations against a byte array, concurrency, options, damage."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.dirty import bitmaps_of
from qsd.block.mapping import MAY_UNMAP, NO_FALLBACK, ST_ALLOCATED, ST_DATA, ST_OFFSET, ST_ZERO
from qsd.block.node import Node
from qsd.block.reopen import reopen
from qsd.errors import QmpError
from qsd.formats.qcow2.bitmaps import FLAG_IN_USE
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_options import BlockdevOptions
from tests.formats.qcow2.support import (
    RecordingFile,
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

SIZE = 2 << 20

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("", {}),
    "v2": ("compat=0.10,cluster_size=4k", {}),
    "512": ("cluster_size=512", {}),
    "512-tiny-cache": (
        "cluster_size=512",
        {"l2_cache_size": 1024, "refcount_cache_size": 2048},
    ),
    "2M": ("cluster_size=2M", {}),
    "slices": ("cluster_size=64k", {"l2_cache_entry_size": 512}),
    "refcount1": ("refcount_bits=1,cluster_size=1k", {}),
    "refcount2": ("refcount_bits=2,cluster_size=8k", {}),
    "refcount64": ("refcount_bits=64,cluster_size=512", {}),
    "lazy": ("lazy_refcounts=on,cluster_size=4k", {}),
    "extended": ("extended_l2=on,cluster_size=16k", {}),
    "extended-64k": ("extended_l2=on", {"l2_cache_entry_size": 1024}),
    "zstd": ("compression_type=zstd,cluster_size=4k", {}),
    "metadata": ("preallocation=metadata,cluster_size=4k", {}),
    "data-file": ("data_file={tmp}/data,cluster_size=4k", {}),
    "data-file-raw": ("data_file={tmp}/data,data_file_raw=on,cluster_size=4k", {}),
    "backing": ("backing_file={tmp}/base,backing_fmt=qcow2,cluster_size=4k", {}),
    "backing-v2": ("backing_file={tmp}/base,backing_fmt=qcow2,compat=0.10,cluster_size=4k", {}),
    "backing-extended": (
        "backing_file={tmp}/base,backing_fmt=qcow2,extended_l2=on,cluster_size=16k",
        {},
    ),
    "snapshot": ("cluster_size=4k", {}),
    "snapshot-extended": ("extended_l2=on,cluster_size=16k", {}),
    "compressed": ("cluster_size=4k", {}),
    "compressed-extended": ("extended_l2=on,cluster_size=16k", {}),
}


def prepare(tmp: Path, variant: str) -> tuple[Path, bytearray]:
    """Make an image of a variant; return it and its content."""
    options, _ = VARIANTS[variant]
    if variant.startswith("backing"):
        # Shorter than the overlay: what lies behind its end reads as zeroes.
        make(tmp / "base", SIZE - 300 * 512, "cluster_size=8k")
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 3 100k 900k", tmp / "base")
    path = make(tmp / "image", SIZE, options.format(tmp=tmp))
    if variant.startswith("snapshot"):
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1000k", path)
        tool("qemu-img", "snapshot", "-c", "one", path)
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 8 100k 30k", path)
    if variant.startswith("compressed"):
        tool("qemu-io", "-f", "qcow2", "-c", "write -c -P 7 64k 1M", path)
    return path, bytearray(content(path, tmp))


class Model:
    """One image and what it must hold."""

    def __init__(self, rig: Rig, path: Path, model: bytearray, options: dict[str, Any]) -> None:
        self.rig = rig
        self.path = path
        self.model = model
        self.options = options
        self.node: Node

    async def open(self) -> None:
        self.node = await add_image(self.rig, self.path, discard="unmap", **self.options)

    async def step(self, operation: str, offset: int, length: int, value: int) -> None:
        node, model = self.node, self.model
        offset %= len(model)
        length = min(length, len(model) - offset)
        end = offset + length
        if operation == "write":
            data = bytes([value]) * length
            await node.write(offset, memoryview(data))
            model[offset:end] = data
        elif operation in ("zero", "unmap"):
            await node.zero(offset, length, MAY_UNMAP if operation == "unmap" else 0)
            model[offset:end] = bytes(length)
        elif operation == "read":
            assert await self.read(offset, length) == model[offset:end]
        elif operation == "discard":
            await node.discard(offset, length)
            after = await self.read(offset, length)
            # Discarded clusters read as zeroes; others keep what they had.
            assert all(a in (0, b) for a, b in zip(after, model[offset:end], strict=True))
            model[offset:end] = after
        elif operation == "flush":
            await node.flush()
        elif operation == "resize":
            await self.resize(offset - offset % 512)
        else:
            await self.rig.graph.release(node)
            await self.open()

    async def read(self, offset: int, length: int) -> bytes:
        view = bytearray(length)
        await self.node.read(offset, memoryview(view))
        return bytes(view)

    async def resize(self, offset: int) -> None:
        size = max(SIZE // 2 + offset, 65536)
        try:
            await self.node.truncate(size)
        except QmpError as exc:
            # Old images have no zero clusters to hide a longer backing file with.
            assert str(exc) in (  # noqa: PT017
                "Can't resize a v2 image which has snapshots",
                "Failed to zero out new clusters: Operation not supported",
            )
            return
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))


OPERATIONS = st.tuples(
    st.sampled_from(
        ["write"] * 6 + ["zero", "unmap", "read", "read", "discard", "flush", "resize", "reopen"]
    ),
    st.integers(0, SIZE),
    st.one_of(st.sampled_from([1, 511, 512, 4096, 65536, 300000]), st.integers(1, 70000)),
    st.integers(1, 255),
)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_model(tmp_path_factory: pytest.TempPathFactory, variant: str) -> None:
    need("qemu-img", "qemu-io")

    @settings(
        max_examples=4,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # each step writes files: shrinking takes for ever
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(OPERATIONS, min_size=20, max_size=50))
    def random_operations(steps: list[tuple[str, int, int, int]]) -> None:
        tmp = tmp_path_factory.mktemp("model")
        path, model = prepare(tmp, variant)

        async def main() -> None:
            async with rig() as graph:
                image = Model(graph, path, model, VARIANTS[variant][1])
                await image.open()
                for step in steps:
                    await image.step(*step)
                assert await image.read(0, len(model)) == model

        run(main())
        check(path)
        assert content(path, tmp) == model
        if variant.startswith("snapshot"):
            tool("qemu-img", "snapshot", "-a", "one", path)
            old = content(path, tmp)
            assert old[: 1000 << 10] == b"\x07" * (1000 << 10)
            check(path)

    random_operations()


# Concurrency


class SlowFile(RecordingFile):
    """A file whose requests take turns at random."""

    pick = random.Random(0)

    async def _enter(self, operation: str, offset: int, length: int) -> None:
        for _ in range(self.pick.randrange(4)):
            await asyncio.sleep(0)
        await super()._enter(operation, offset, length)


@pytest.mark.parametrize(
    "variant", ["default", "512", "extended", "snapshot", "compressed", "lazy"]
)
def test_parallel_requests(tmp_path: Path, variant: str) -> None:
    """Requests that touch, in one cluster and across clusters, each come out whole."""
    need("qemu-img", "qemu-io")
    path, model = prepare(tmp_path, variant)
    pick = random.Random(7)
    SlowFile.pick = random.Random(8)

    async def main() -> None:
        async with Rig(qcow2=Qcow2Driver, file=SlowFile) as graph:
            node = await add_image(graph, path, discard="unmap")
            file_of(node).fast = False
            for _ in range(10):
                tasks = []
                # Pieces that share clusters but not bytes.
                cuts = sorted(pick.sample(range(0, SIZE, 512), 30))
                for start, end in itertools.pairwise(cuts):
                    tasks.append(graph.tasks.spawn(one(node, start, end), "request"))
                tasks.append(graph.tasks.spawn(node.flush(), "flush"))
                await asyncio.wait(tasks)
                for task in tasks:
                    task.result()
                view = bytearray(SIZE)
                await node.read(0, memoryview(view))
                assert view == model

    async def one(node: Node, start: int, end: int) -> None:
        end = min(end, start + 40000)
        kind = pick.randrange(4)
        if kind == 0:
            view = bytearray(end - start)
            expected = bytes(model[start:end])
            await node.read(start, memoryview(view))
            assert view == expected
            return
        data = bytes(end - start) if kind == 1 else bytes([pick.randrange(1, 256)]) * (end - start)
        model[start:end] = data
        if kind == 1:
            await node.zero(start, end - start, pick.choice((0, MAY_UNMAP)))
        else:
            await node.write(start, memoryview(data))

    run(main())
    check(path)
    assert content(path, tmp_path) == model


def test_overlapping_writes_leave_one_of_them(tmp_path: Path) -> None:
    need("qemu-img")
    path, _ = prepare(tmp_path, "default")

    async def main() -> None:
        async with Rig(qcow2=Qcow2Driver, file=SlowFile) as graph:
            node = await add_image(graph, path)
            file_of(node).fast = False
            payloads = [bytes([n + 1]) * 200000 for n in range(8)]
            tasks = [
                graph.tasks.spawn(node.write(1000, memoryview(data)), "write") for data in payloads
            ]
            await asyncio.wait(tasks)
            for task in tasks:
                task.result()
            view = bytearray(200000)
            await node.read(1000, memoryview(view))
            # Inside one cluster, one of them won.
            for start in range(0, 200000 - 65536, 65536):
                inside = view[-(start + 1000) % 65536 :][:65536]
                assert len(set(inside)) == 1

    run(main())
    check(path)


# What the engine and clients see


def statuses(node: Node, end: int) -> Any:
    async def collect() -> list[tuple[int, int, int, int]]:
        found = []
        at = 0
        while at < end:
            status = await node.block_status(at, end - at)
            found.append((at, status.length, status.flags, status.host_offset))
            at += status.length
        return found

    return collect()


def test_zeroes_and_discards_look_as_the_real_daemon_leaves_them(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "4M")
    k64 = 65536

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, discard="unmap")
            await node.write(0, memoryview(b"x" * 8 * k64))
            await node.zero(k64, k64)
            await node.zero(3 * k64, k64, MAY_UNMAP)
            await node.discard(5 * k64, k64)
            await node.zero(20 * k64 + 100, 1000)
            await node.discard(30 * k64, k64)
            data = ST_DATA | ST_ALLOCATED | ST_OFFSET
            zero = ST_ZERO | ST_ALLOCATED
            found = [
                (at // k64, n // k64, flags & 15)
                for at, n, flags, _ in await statuses(node, 4 << 20)
            ]
            assert found == [
                (0, 1, data),
                (1, 1, zero | ST_OFFSET),
                (2, 1, data),
                (3, 1, zero),
                (4, 1, data),
                (5, 1, zero),
                (6, 2, data),
                (8, 12, 0),
                (20, 1, zero),
                (21, 43, 0),
            ]
            with pytest.raises(OSError, match="not supported"):
                await node.zero(100, 1000, NO_FALLBACK)

    run(main())
    check(path)


def test_large_writes_to_fresh_space_are_one_write(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "64M")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            await node.write(0, memoryview(b"x" * 65536))
            below = file_of(node)
            below.start_recording()
            await node.write(1 << 20, memoryview(b"y" * (1 << 20)))
            assert [len(entry[1] or b"") for entry in below.writes if entry] == [1 << 20]
            below.start_recording()
            await node.write(8 << 20, memoryview(b"z" * 512))
            # Fresh space reads as zeroes: no need to write the rest of the cluster.
            assert [len(entry[1] or b"") for entry in below.writes if entry] == [512]
            below.start_recording()
            await node.flush()
            await node.flush()
            assert sum(entry is None for entry in below.writes) == 4

    run(main())
    check(path)


def test_fast_and_slow_lookup_agree(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    pick = random.Random(1)
    for variant in ("512", "extended", "snapshot", "compressed", "slices", "data-file"):
        (tmp_path / variant).mkdir()
        path, _ = prepare(tmp_path / variant, variant)

        async def main(path: Path = path) -> None:
            async with rig() as graph:
                node = await add_image(graph, path, discard="unmap")
                for _ in range(60):
                    start = pick.randrange(SIZE - 70000)
                    await node.write(start, memoryview(b"a" * pick.randrange(1, 70000)))
                    await node.zero(pick.randrange(SIZE - 9000), 9000)
                driver = node.driver
                assert isinstance(driver, Qcow2Driver)
                await node.read(0, memoryview(bytearray(SIZE)))
                hits = 0
                for _ in range(2000):
                    offset, length = pick.randrange(SIZE - 9000), pick.randrange(1, 9000)
                    plain = driver.locate_data_nowait(offset, length)
                    writable = driver.locate_writable_nowait(offset, length)
                    mapping = await driver.map(offset, length)
                    if plain >= 0:
                        hits += 1
                        assert (mapping.kind, mapping.host_offset) == (0, plain)
                        assert mapping.length == length
                    if writable >= 0:
                        assert writable == plain
                        assert mapping.writable
                assert hits > 100

        run(main())


def test_info(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "lazy_refcounts=on,refcount_bits=8,extended_l2=on")
    tool("qemu-img", "snapshot", "-c", "snap", path)
    tool("qemu-img", "bitmap", "--add", path, "b0")

    async def main() -> dict[str, Any]:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            return node.driver.image_info()

    info = run(main())
    assert info["cluster-size"] == 65536
    assert info["dirty-flag"] is False
    assert info["format-specific"] == {
        "type": "qcow2",
        "data": {
            "compat": "1.1",
            "compression-type": "zlib",
            "lazy-refcounts": True,
            "bitmaps": [{"flags": ["auto"], "name": "b0", "granularity": 65536}],
            "refcount-bits": 8,
            "corrupt": False,
            "extended-l2": True,
        },
    }
    (snapshot,) = info["snapshots"]
    assert (snapshot["id"], snapshot["name"], snapshot["vm-state-size"]) == ("1", "snap", 0)


def test_reopen_changes_caches_and_writability(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "8M", "lazy_refcounts=on")

    def options(**more: Any) -> BlockdevOptions:
        tree = {"driver": "qcow2", "node-name": "q", "file": "f", **more}
        return from_json(BlockdevOptions, tree)

    async def main() -> None:
        async with rig() as graph:
            await graph.add(driver="file", node_name="f", filename=str(path))
            node = await graph.add(driver="qcow2", node_name="q", file="f")
            await node.write(0, memoryview(b"a" * 100000))
            await reopen(graph.graph, [options(**{"l2-cache-entry-size": 512})])
            await node.write(100000, memoryview(b"b" * 100000))
            await reopen(graph.graph, [options(**{"read-only": True})])
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            assert not driver.image.header.incompatible_features
            with pytest.raises(OSError, match="not permitted"):
                await node.write(0, memoryview(b"c"))
            await reopen(graph.graph, [options()])
            await node.write(200000, memoryview(b"c" * 100000))
            with pytest.raises(QmpError, match="L2 cache entry size must be"):
                await reopen(graph.graph, [options(**{"l2-cache-entry-size": 100})])
            view = bytearray(300000)
            await node.read(0, memoryview(view))
            assert view == b"a" * 100000 + b"b" * 100000 + b"c" * 100000

    run(main())
    check(path)


def test_bitmaps_are_in_use_while_they_may_change(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")
    tool("qemu-img", "bitmap", "--add", path, "b0")

    async def main(write: bool) -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=not write)
            if write:
                await node.write(0, memoryview(b"a"))
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            assert [entry.flags & FLAG_IN_USE for entry in driver.bitmaps] == [write * FLAG_IN_USE]
            (bitmap,) = bitmaps_of(node)
            assert bitmap.bits.dirty_bytes() == (bitmap.granularity if write else 0)

    run(main(write=False))
    assert "in-use" not in tool("qemu-img", "info", path)
    run(main(write=True))
    assert "in-use" not in tool("qemu-img", "info", path)
    check(path)


# Damage


def l2_of(path: Path) -> int:
    """Return the offset of the first L2 table."""
    data = path.read_bytes()
    (l1,) = struct.unpack_from(">Q", data, 40)
    (l2,) = struct.unpack_from(">Q", data, l1)
    return int(l2 & 0x00FFFFFFFFFFFE00)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (1 << 63 | 0x50200, "Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, "
         "L2 index: 0)"),
        (1 << 63 | 0x50201, "Cluster allocation offset 0x50200 unaligned (L2 offset: "
         "0x40000, L2 index: 0)"),
        (1 << 63 | 0x10000, "Preventing invalid write on metadata (overlaps with refcount table)"),
        (1 << 63 | 0x40000, "Preventing invalid write on metadata (overlaps with active L2 table)"),
    ],
)  # fmt: skip
def test_damage_is_reported_and_marks_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: int, message: str
) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 64k", path)
    patch(path, l2_of(path), struct.pack(">Q", entry))

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            with pytest.raises(OSError, match="Input/output error"):
                await node.write(0, memoryview(b"a" * 512))
            (event,) = graph.events.events
            assert event.NAME == "BLOCK_IMAGE_CORRUPTED"
            assert event.msg == message
            assert event.fatal
            assert event.node_name == "q"
            if "Preventing" in message:
                assert (event.offset, event.size) == (entry & ~(1 << 63), 512)
            with pytest.raises(QmpError, match="Block device q is ejected"):
                node.driver.image_info()
            with pytest.raises(OSError, match="No medium found"):
                await node.read(0, memoryview(bytearray(10)))
            await node.flush()

    run(main())
    assert path.read_bytes()[79] & 2
    assert capsys.readouterr().err == (
        f"qcow2: Marking image as corrupt: {message}; further corruption events will be "
        "suppressed\n"
    )


def test_tables_that_were_only_read_are_looked_at_when_changes_begin(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 128k", path)
    patch(path, l2_of(path), struct.pack(">Q", 1 << 63 | 0x10000))  # the refcount table

    async def main() -> None:
        async with rig() as graph:
            driver = (await add_image(graph, path)).driver
            assert isinstance(driver, Qcow2Driver)
            assert (await driver.map(0, 512)).writable
            assert driver.image.l2.hot
            await driver.write(65536, memoryview(b"a" * 512), 0)
            assert not (await driver.map(0, 512)).writable
            assert not driver.image.l2.hot
            assert driver.locate_writable_nowait(0, 512) == -1

    run(main())


@pytest.mark.slow
def test_random_damage_does_no_harm(tmp_path: Path) -> None:
    """Whatever bits flip in the metadata: errors, but no crash, no hang, no huge allocation."""
    need("qemu-img", "qemu-io")
    pick = random.Random(42)
    originals = []
    for variant in ("512", "extended", "snapshot", "compressed", "refcount1"):
        (tmp_path / variant).mkdir()
        path, _ = prepare(tmp_path / variant, variant)
        tool("qemu-img", "bitmap", "--add", path, "b") if variant == "extended" else None
        originals.append(path.read_bytes())
    target = tmp_path / "damaged"
    opened = 0
    for number in range(250):
        data = bytearray(pick.choice(originals))
        for _ in range(pick.choice((1, 3, 30))):
            area = pick.choice((200, 4096, len(data)))
            data[pick.randrange(min(area, len(data)))] ^= 1 << pick.randrange(8)
        target.write_bytes(data)
        opened += run(abuse(target, random.Random(number)))
    assert opened > 50


async def abuse(path: Path, pick: random.Random) -> bool:
    async with rig() as graph:
        try:
            node = await asyncio.wait_for(add_image(graph, path, backing=None), 10)
        except QmpError:
            return False
        end = min(node.length(), SIZE)
        for _ in range(20):
            offset = pick.randrange(max(end - 5000, 1))
            length = min(5000, end - offset)
            try:
                kind = pick.randrange(5)
                if kind == 0:
                    await node.write(offset, memoryview(b"a" * length))
                elif kind == 1:
                    await node.zero(offset, length, MAY_UNMAP)
                elif kind == 2:
                    await node.flush()
                elif kind == 3:
                    await node.read(offset, memoryview(bytearray(length)))
                elif length:
                    await node.block_status(offset, length)
            except OSError:
                pass
        file_of(node).data = file_of(node).data[: 64 << 20]
    return True
