# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Large requests of a guest, and those in several pieces, to a cached file."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.aio.uring import Ring
from qsd.exports import virtio_large
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.exports.export_rig import ExportRig
from tests.support.vhost_frontend import D_NEXT, D_WRITE, GUEST_BASE, IN, OUT, Frontend

LENGTH = 8 << 20
COUNT = 6
SIZE = 512 << 10
#: Bytes of guest memory for a request: header and status, then the payload.
SLOT = 4096 + 2 * SIZE


class Case:
    """An export of a file of random bytes.

    Attributes:
        content: Those bytes.
        aside: How many reads were begun in the kernel's threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = random.Random(12).randbytes(LENGTH)
        self.aside = 0

    def run(self, use: Callable[[Frontend], None], **options: Any) -> None:
        self.path.write_bytes(self.content)

        async def main() -> None:
            async with ExportRig(file=FileDriver, raw=RawDriver) as rig:
                await rig.add(driver="file", node_name="f", filename=str(self.path), locking="off")
                await rig.add(driver="raw", node_name="m", file="f")
                address = {"type": "unix", "path": rig.path("s")}
                await rig.export("vhost-user-blk", "m", addr=address, **options)

                def client() -> None:
                    with Frontend(rig.path("s"), 32 << 20) as frontend:
                        use(frontend.set_up(1, 256))

                await asyncio.to_thread(client)
                assert not rig.reports

        loop.run(main())


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Two processors, wherever this runs."""
    made = Case(tmp_path / "f")
    start = Ring.start_aside

    def counting(ring: Ring, fd: int, operations: Any, *, vectored: bool = False) -> None:
        made.aside += len(operations)
        start(ring, fd, operations, vectored=vectored)

    monkeypatch.setattr(Ring, "start_aside", counting)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return made


def offer(
    frontend: Frontend, kind: int, requests: list[tuple[int, bytes | int]], pieces: int
) -> list[tuple[int, bytes]]:
    """Do requests of (offset, data or length) together, with a gap behind each piece of payload.

    Returns:
        (status, what was read) of each.
    """
    queue, mem = frontend.queues[0], frontend.mem
    flags = D_NEXT | (D_WRITE if kind == IN else 0)
    heads, places = [], []
    index = 0
    for number, (offset, data) in enumerate(requests):
        at = frontend.data + SLOT * number
        length = data if isinstance(data, int) else len(data)
        struct.pack_into("<IIQ", mem, at, kind, 0, offset // 512)
        mem[at + 64] = 0xFF
        heads.append(index)
        queue.put_desc(index, GUEST_BASE + at, 16, D_NEXT, index + 1)
        step = length // pieces
        spots = [at + 4096 + piece * (step + 512) for piece in range(pieces)]
        places.append((at + 64, spots, step))
        for piece, spot in enumerate(spots):
            index += 1
            queue.put_desc(index, GUEST_BASE + spot, step, flags, index + 1)
            mem[spot : spot + step] = (
                bytes(step) if isinstance(data, int) else data[piece * step : (piece + 1) * step]
            )
        queue.put_desc(index + 1, GUEST_BASE + at + 64, 1, D_WRITE)
        index += 2
    queue.offer(*heads)
    done = dict(queue.wait_used(len(heads)))
    answers = []
    for head, (status, spots, step), (_, data) in zip(heads, places, requests, strict=True):
        read = b"".join(mem[spot : spot + step] for spot in spots) if kind == IN else b""
        answers.append((mem[status], read))
        if not mem[status]:
            assert done[head] == (data + 1 if isinstance(data, int) else 1)
    return answers


@pytest.mark.parametrize("pieces", [1, 2, 16])
def test_reads(case: Case, pieces: int) -> None:
    offsets = [512 * random.Random(pieces).randrange((LENGTH - SIZE) // 512) for _ in range(COUNT)]
    answers: list[tuple[int, bytes]] = []

    def use(frontend: Frontend) -> None:
        answers.extend(offer(frontend, IN, [(offset, SIZE) for offset in offsets], pieces))
        answers.extend(offer(frontend, IN, [(0, SIZE)], pieces))

    case.run(use)
    assert answers == [(0, case.content[at : at + SIZE]) for at in [*offsets, 0]]
    # The loop copies, too: what the kernel is too busy for, and one alone.
    assert 1 <= case.aside < COUNT


@pytest.mark.parametrize("size", [4096, 65536, SIZE])
@pytest.mark.parametrize("pieces", [1, 2, 8])
def test_writes(case: Case, size: int, pieces: int) -> None:
    numbers = random.Random(size)
    expected = bytearray(case.content)
    requests: list[tuple[int, bytes | int]] = []
    for slot in range(COUNT):
        offset = slot * (1 << 20) + 512 * numbers.randrange(64)
        data = numbers.randbytes(size)
        requests.append((offset, data))
        expected[offset : offset + size] = data

    def use(frontend: Frontend) -> None:
        assert offer(frontend, OUT, requests, pieces) == [(0, b"")] * COUNT

    case.run(use, writable=True)
    assert case.path.read_bytes() == expected
    assert not case.aside


def test_what_is_refused(case: Case) -> None:
    """Beyond the end; writes to what is read-only; the others are not hurt."""

    def use(frontend: Frontend) -> None:
        requests: list[tuple[int, bytes | int]] = [
            (0, SIZE),
            (LENGTH - SIZE + 512, SIZE),
            (0, SIZE),
        ]
        good = 0, case.content[:SIZE]
        assert offer(frontend, IN, requests, 4) == [good, (1, bytes(SIZE)), good]
        assert offer(frontend, OUT, [(0, b"x" * SIZE)], 4) == [(1, b"")]

    case.run(use, writable=False)
    assert case.path.read_bytes() == case.content


def test_a_file_that_became_shorter(case: Case) -> None:
    """What the kernel reads in part is done the plain way: the rest reads as zeroes."""
    rest = 1 << 20

    def use(frontend: Frontend) -> None:
        os.truncate(case.path, rest)
        answers = offer(frontend, IN, [(rest - SIZE // 2, SIZE)] * 3, 2)
        assert answers == [(0, case.content[rest - SIZE // 2 : rest] + bytes(SIZE // 2))] * 3

    case.run(use)
    assert case.aside


def test_memory_that_is_taken_away(case: Case) -> None:
    """The kernel's thread meets the gap, or this one does: an error like any other."""

    def use(frontend: Frontend) -> None:
        frontend.config()  # all before it is done
        os.ftruncate(frontend.memfd, frontend.data + 4096 + SIZE // 2)
        queue, mem = frontend.queues[0], frontend.mem
        struct.pack_into("<IIQ", mem, frontend.data, IN, 0, 0)
        for head in (0, 3):
            queue.put_desc(head, GUEST_BASE + frontend.data, 16, D_NEXT, head + 1)
            payload = GUEST_BASE + frontend.data + 4096
            queue.put_desc(head + 1, payload, SIZE, D_NEXT | D_WRITE, head + 2)
            queue.put_desc(head + 2, GUEST_BASE + frontend.data + 64, 1, D_WRITE)
        queue.offer(0, 3)
        assert {head for head, _ in queue.wait_used(2)} == {0, 3}
        assert mem[frontend.data + 64] == 1

    case.run(use)
    assert case.aside


def test_one_processor_copies_for_itself(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    def use(frontend: Frontend) -> None:
        answers = offer(frontend, IN, [(0, SIZE)] * 3, 2)
        assert answers == [(0, case.content[:SIZE])] * 3

    case.run(use)
    assert not case.aside


def test_vectors_that_are_forgotten(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtio_large, "_MAX_VECTORS", 1)

    def use(frontend: Frontend) -> None:
        for start in range(0, 4096, 512):
            answers = offer(frontend, IN, [(start, SIZE)] * 3, 2)
            assert answers == [(0, case.content[start : start + SIZE])] * 3

    case.run(use)
    assert case.aside
