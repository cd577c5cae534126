# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reads of a guest that are copied from memory maps of the image: like all others."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.aio.fdio import FileIO
from qsd.aio.pagemap import PageMaps
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.node import refuse_view
from qsd.catalog import find_driver
from qsd.exports import virtio_views
from qsd.exports.virtio_views import CachedReads
from tests.exports.export_rig import ExportRig
from tests.support.tools import need
from tests.support.vhost_frontend import D_NEXT, D_WRITE, GUEST_BASE, IN, OUT, Frontend
from tests.support.views import need_views

MIB = 1 << 20
K4 = 4096
LENGTH = 3 * MIB
#: Bytes of guest memory for a request: header and status, then the payload.
SLOT = K4 + (256 << 10)
STATUS = 64

#: Where, what (bytes to write, or how many to read), in how many pieces.
Request = tuple[int, bytes | int, int]


class Seen:
    """What was copied from maps.

    Attributes:
        reads: How many reads.
        unseen: How many could not be.
        losses: Batches that were not believed.
        reader: Who copies.
    """

    def __init__(self) -> None:
        self.reads = self.unseen = self.losses = 0
        self.reader: CachedReads


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    noted = Seen()
    end = CachedReads.end

    def spy(self: CachedReads, count: int, unseen: int) -> bool:
        good = end(self, count, unseen)
        noted.reads += count if good else 0
        noted.unseen += unseen
        noted.losses += not good
        noted.reader = self
        return good

    monkeypatch.setattr(CachedReads, "end", spy)
    # Slow copies would be looked into.
    monkeypatch.setattr(virtio_views, "_SLOW", 60.0)
    return noted


@pytest.fixture
def content() -> bytes:
    return random.Random(5).randbytes(LENGTH)


@pytest.fixture
def raw(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(content)
    need_views(path)
    return path


class Guest:
    """A front end that does several requests at once."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend

    def offer(self, requests: list[Request]) -> list[int]:
        """Make requests available; return where their status bytes lie."""
        frontend = self.frontend
        queue, mem = frontend.queues[0], frontend.mem
        heads, places = [], []
        index = 0
        for number, (offset, what, pieces) in enumerate(requests):
            at = frontend.data + SLOT * number
            is_read = isinstance(what, int)
            length = what if isinstance(what, int) else len(what)
            struct.pack_into("<IIQ", mem, at, IN if is_read else OUT, 0, offset // 512)
            mem[at + STATUS] = 0xFF
            mem[at + K4 : at + K4 + length] = b"\xee" * length if isinstance(what, int) else what
            heads.append(index)
            queue.put_desc(index, GUEST_BASE + at, 16, D_NEXT, index + 1)
            step = length // pieces
            for start in range(0, length, step):
                index += 1
                flags = D_NEXT | (D_WRITE if is_read else 0)
                queue.put_desc(index, GUEST_BASE + at + K4 + start, step, flags, index + 1)
            queue.put_desc(index + 1, GUEST_BASE + at + STATUS, 1, D_WRITE)
            index += 2
            places.append(at + STATUS)
        queue.offer(*heads)
        return places

    def run(self, requests: list[Request]) -> list[bytes]:
        """Do requests, which must succeed; return what was read by each."""
        places = self.offer(requests)
        self.frontend.queues[0].wait_used(len(requests))
        mem = self.frontend.mem
        assert all(mem[place] == 0 for place in places)
        return [
            mem[place - STATUS + K4 : place - STATUS + K4 + what] if isinstance(what, int) else b""
            for place, (_, what, _) in zip(places, requests, strict=True)
        ]


def serve(
    path: Path,
    use: Callable[[Guest], None],
    fmt: str = "raw",
    between: Callable[[Any], Awaitable[None]] | None = None,
    **more: Any,
) -> list[str]:
    """Let a front end use an export of an image; return what the export reported.

    Args:
        path: The image.
        use: Runs in a thread.
        fmt: Its format.
        between: Called with the node after that.
        more: Options of the node.
    """

    async def main() -> list[str]:
        async with ExportRig() as rig:
            rig.graph.find_driver = find_driver
            await rig.add(driver="file", node_name="f", filename=str(path))
            node = await rig.add(driver=fmt, node_name="n", file="f", **more)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "n", addr=address, writable=True)

            def client() -> None:
                with Frontend(rig.path("s"), 32 * MIB) as frontend:
                    use(Guest(frontend.set_up(1, 256)))

            await asyncio.to_thread(client)
            if between is not None:
                await between(node)
            return rig.reports

    return loop.run(main())


def no_system_call(self: FileIO, offset: int, view: memoryview) -> bool:
    raise AssertionError("a read by the plain path")


READS: list[Request] = [
    (0, 512, 1),
    (K4 + 512, K4, 1),
    (MIB - 512, 1024, 1),
    (LENGTH - K4, K4, 1),
    (5 * K4, 60 << 10, 1),
    (7 * K4, 64 << 10, 1),
    (2 * MIB, 128 << 10, 1),
    (3 * K4, 8 * K4, 8),
    (512, 64 << 10, 16),
]


def test_raw_reads_are_copied(
    raw: Path, content: bytes, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileIO, "read_nowait", no_system_call)

    def use(guest: Guest) -> None:
        for _ in range(2):  # the second time everything is known
            expected = [content[at : at + length] for at, length, _ in READS]  # type: ignore[operator]
            assert guest.run(READS) == expected

    assert serve(raw, use) == []
    assert (seen.reads, seen.unseen) == (2 * len(READS), 0)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_what_was_written_is_seen(raw: Path, content: bytes, seen: Seen, fmt: str) -> None:
    path = raw
    if fmt == "qcow2":
        need("qemu-img")
        path = raw.with_suffix(".qcow2")
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
        path.read_bytes()  # so that its holes are cached, too

    def use(guest: Guest) -> None:
        assert guest.run([(8192, K4, 1)]) == [content[8192 : 8192 + K4]]
        seen.reader.pause = 0  # the tables of the format have come into memory
        guest.run([(8192 + 512, b"new " * 128, 1), (MIB, b"more" * 1024, 1)])
        (first, second) = guest.run([(8192, K4, 1), (MIB, 8192, 2)])
        assert first == content[8192 : 8192 + 512] + b"new " * 128 + content[9216 : 8192 + K4]
        assert second == b"more" * 1024 + content[MIB + K4 : MIB + 8192]

    assert serve(path, use, fmt) == []
    assert seen.reads == (3 if fmt == "raw" else 2)


def test_clusters_without_data_are_read_the_plain_way(tmp_path: Path, seen: Seen) -> None:
    need("qemu-img")
    path = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "3M"], check=True)

    def use(guest: Guest) -> None:
        guest.run([(MIB, b"data" * 1024, 1), (MIB + 8192, K4, 1)])
        path.read_bytes()  # so that holes of the file are cached, too
        seen.reader.pause = seen.reads = seen.unseen = 0
        assert guest.run([(0, K4, 1), (MIB, K4, 1), (MIB - 512, 1024, 1)]) == [
            bytes(K4),
            b"data" * 1024,
            bytes(512) + b"data" * 128,
        ]

    assert serve(path, use, "qcow2") == []
    assert seen.unseen == 2
    assert seen.reads == 1


def test_a_file_cut_off_meanwhile(raw: Path, content: bytes, seen: Seen) -> None:
    """What was copied from there, and all with it, is read again; nobody dies."""

    def use(guest: Guest) -> None:
        assert guest.run([(0, K4, 1), (2 * MIB, K4, 1)])[0] == content[:K4]
        os.truncate(raw, MIB)
        answers = guest.run(
            [(K4, K4, 1), (3 * K4, b"x" * 512, 1), (2 * MIB, K4, 1), (MIB - 512, 1024, 1)]
        )
        assert answers == [
            content[K4 : 2 * K4],
            b"",
            bytes(K4),
            content[MIB - 512 : MIB] + bytes(512),
        ]
        assert seen.losses == 1
        assert seen.reader.pause
        seen.reader.pause = 0
        # The maps are gone, and no page of zeroes with them.
        os.truncate(raw, LENGTH)
        os_write(raw, b"again" * 1000, 2 * MIB)
        raw.read_bytes()
        seen.reader._maps.forget()  # as happens after a while
        assert guest.run([(2 * MIB, K4, 1)]) == [(b"again" * 1000)[:K4]]
        assert guest.run([(3 * K4, 512, 1)]) == [b"x" * 512]

    assert serve(raw, use) == []
    assert seen.losses == 1
    assert seen.reads == 4


@pytest.mark.parametrize("pieces", [1, 8])
def test_large_reads_of_a_file_cut_off_meanwhile(
    raw: Path, content: bytes, seen: Seen, pieces: int
) -> None:
    def use(guest: Guest) -> None:
        assert guest.run([(2 * MIB, 128 << 10, pieces)]) == [
            content[2 * MIB : 2 * MIB + (128 << 10)]
        ]
        os.truncate(raw, 2 * MIB + K4)
        assert guest.run([(2 * MIB, 128 << 10, pieces)]) == [
            content[2 * MIB : 2 * MIB + K4] + bytes((128 << 10) - K4)
        ]

    assert serve(raw, use) == []
    assert (seen.reads, seen.losses) == (1, 1)


def os_write(path: Path, data: bytes, offset: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def test_what_is_not_cached_is_read_the_plain_way(raw: Path, content: bytes, seen: Seen) -> None:
    fd = os.open(raw, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)

    def use(guest: Guest) -> None:
        reads: list[Request] = [(random.Random(n).randrange(600) * K4, K4, 1) for n in range(8)]
        for _ in range(3):
            expected = [content[at : at + K4] for at, _, _ in reads]
            assert guest.run(reads) == expected

    assert serve(raw, use) == []
    assert seen.reads + seen.unseen > 0


def test_without_a_trap_nothing_is_touched(
    raw: Path, content: bytes, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtio_views, "trap", lambda: None)

    def use(guest: Guest) -> None:
        for _ in range(20):
            assert guest.run([(K4, K4, 1), (MIB, 128 << 10, 2)]) == [
                content[K4 : 2 * K4],
                content[MIB : MIB + (128 << 10)],
            ]

    assert serve(raw, use) == []
    assert seen.reads == 0


def test_nothing_is_seen_of_a_drained_node(raw: Path, content: bytes, seen: Seen) -> None:
    async def between(node: Any) -> None:
        backend = Backend(node.graph, "b", "a test")
        backend.attach(node, 0, 15)
        cached = CachedReads(backend)
        buffer = memoryview(bytearray(K4))
        assert cached.fill(K4, K4, [buffer])
        assert buffer == content[K4 : 2 * K4]
        async with Drained([node]):
            assert cached.begin() == ({}, refuse_view)
            assert not cached.fill(0, K4, [buffer])
        cached.pause = 0
        assert cached.fill(0, K4, [buffer])
        assert buffer == content[:K4]
        await backend.detach()

    assert serve(raw, lambda guest: None, between=between) == []


def test_who_sees_little_does_not_look_for_a_while(raw: Path) -> None:
    async def between(node: Any) -> None:
        backend = Backend(node.graph, "b", "a test")
        backend.attach(node, 0, 15)
        cached = CachedReads(backend)
        buffer = memoryview(bytearray(K4))
        cached.begin()
        assert cached.end(8, 8)
        assert cached.fill(0, K4, [buffer])
        cached.begin()
        assert cached.end(7, 8)
        for _ in range(16):
            assert not cached.fill(0, K4, [buffer])
        assert cached.fill(0, K4, [buffer])
        await backend.detach()

    assert serve(raw, lambda guest: None, between=between) == []


def test_slow_copies_are_looked_into(
    raw: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    monkeypatch.setattr(virtio_views, "_SLOW", -1.0)
    monkeypatch.setattr(PageMaps, "note_slowness", lambda self: looks.append(None))

    def use(guest: Guest) -> None:
        guest.run([(0, K4, 1)])

    assert serve(raw, use) == []
    assert len(looks) == seen.reads == 1


@pytest.mark.parametrize("size", [K4, 128 << 10])
def test_guest_memory_that_is_taken_away(raw: Path, seen: Seen, size: int) -> None:
    """The payload is gone: the front end is hung up on, as ever, and the next one is served."""

    def use(guest: Guest) -> None:
        frontend = guest.frontend
        guest.run([(0, size, 1)])
        queue = frontend.queues[0]
        # The header lies in what is left.
        struct.pack_into("<IIQ", frontend.mem, 32768, IN, 0, 0)
        queue.put_desc(0, GUEST_BASE + 32768, 16, D_NEXT, 1)
        queue.put_desc(1, GUEST_BASE + frontend.data + K4, size, D_NEXT | D_WRITE, 2)
        queue.put_desc(2, GUEST_BASE + 32768 + STATUS, 1, D_WRITE)
        os.ftruncate(frontend.memfd, 65536)
        queue.offer(0)
        assert not frontend.sock.recv(1)

    report = "vhost-user-blk export 'e': memory that is shared was taken away"
    assert serve(raw, use) == [report]
    assert seen.losses == 0


_SECTOR = st.integers(0, LENGTH // 512 - 160)
_STEP = st.tuples(
    st.booleans(), _SECTOR, st.sampled_from([1, 8, 8, 9, 120, 160]), st.sampled_from([1, 1, 2, 4])
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.lists(_STEP, min_size=1, max_size=8), min_size=1, max_size=6))
@pytest.mark.parametrize("is_on", [True, False])
def test_any_requests_against_a_model(
    raw: Path, content: bytes, seen: Seen, is_on: bool, steps: list[list[tuple[Any, ...]]]
) -> None:
    """Whatever requests do, a byte array does the same, with maps and without."""
    raw.write_bytes(content)
    model = bytearray(content)

    def use(guest: Guest) -> None:
        for number, group in enumerate(steps):
            requests: list[Request] = []
            taken: set[int] = set()
            for is_read, sector, count, pieces in group:
                sectors = range(sector, sector + count)
                if not taken.isdisjoint(sectors) or count % pieces:
                    continue  # what overlaps in flight has no defined order
                taken.update(sectors)
                start, length = 512 * sector, 512 * count
                if is_read:
                    requests.append((start, length, pieces))
                else:
                    data = bytes([number + 1]) * length
                    requests.append((start, data, pieces))
                    model[start : start + length] = data
            if not is_on and hasattr(seen, "reader"):
                seen.reader.pause = -1
            for answer, (start, what, _) in zip(guest.run(requests), requests, strict=True):
                if isinstance(what, int):
                    assert answer == model[start : start + what]

    assert serve(raw, use) == []
    assert raw.read_bytes() == model
