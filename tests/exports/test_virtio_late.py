# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A guest's requests to a file around the page cache."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.aio.operations import OperationPool
from qsd.exports.virtio_late import GuestOperation
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.exports.export_rig import ExportRig
from tests.support.vhost_frontend import D_NEXT, D_WRITE, GUEST_BASE, IN, OUT, Frontend

LENGTH = 1 << 20
SLOT = 16 << 10
COUNT = 16


class EndingRing:
    """Stands for a ring: everything ends with one result, in the next turn."""

    def __init__(self, result: int) -> None:
        self.pool = OperationPool()
        self.result = result
        self.seen: list[GuestOperation] = []

    def start_all(self, opcode: int, fd: int, operations: list[GuestOperation]) -> None:
        self.seen += operations
        for operation in operations:
            operation.result = self.result
        asyncio.get_running_loop().call_soon(operations[0].sink.finished, operations)


def with_disk(
    path: Path,
    use: Callable[[Frontend], None],
    prepare: Callable[[ExportRig], None] = lambda rig: None,
    **options: Any,
) -> bytes:
    """Run `use` with a front end of an export of a file; return what the file was made with."""
    content = random.Random(11).randbytes(LENGTH)
    path.write_bytes(content)

    async def main() -> None:
        async with ExportRig(file=FileDriver, raw=RawDriver) as rig:
            cache = {"direct": True}
            await rig.add(
                driver="file", node_name="f", filename=str(path), cache=cache, locking="off"
            )
            await rig.add(driver="raw", node_name="m", file="f", cache=cache)
            real = rig.pool.ring()
            if real is None:
                pytest.skip("the kernel gives no io_uring here")
            prepare(rig)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address, **options)

            def client() -> None:
                with Frontend(rig.path("s")) as frontend:
                    use(frontend.set_up())

            await asyncio.to_thread(client)
            rig.pool._ring = real
            assert not rig.reports

    loop.run(main())
    return content


def place(frontend: Frontend, index: int) -> int:
    """Where the payload of a request lies: at a page."""
    return (frontend.data + SLOT * (index + 1) + 4095) & ~4095


def offer(
    frontend: Frontend, kind: int, requests: list[tuple[int, bytes | int]], skew: int = 0
) -> None:
    """Offer requests of (sector, data or length) at once, and wait for all."""
    queue = frontend.queues[0]
    write = D_WRITE if kind == IN else 0
    for index, (sector, data) in enumerate(requests):
        at = place(frontend, index) + skew
        head = 3 * index
        length = data if isinstance(data, int) else len(data)
        if isinstance(data, bytes):
            frontend.mem[at : at + length] = data
        struct.pack_into("<IIQ", frontend.mem, at - 64, kind, 0, sector)
        frontend.mem[at - 8] = 0xFF
        queue.put_desc(head, GUEST_BASE + at - 64, 16, D_NEXT, head + 1)
        queue.put_desc(head + 1, GUEST_BASE + at, length, D_NEXT | write, head + 2)
        queue.put_desc(head + 2, GUEST_BASE + at - 8, 1, D_WRITE)
    queue.offer(*(3 * index for index in range(len(requests))))
    done = dict(queue.wait_used(len(requests)))
    for index, (_, data) in enumerate(requests):
        written = data + 1 if isinstance(data, int) else 1
        at = place(frontend, index) + skew
        if frontend.mem[at - 8] == 0:
            assert done[3 * index] == written


def statuses(frontend: Frontend, count: int, skew: int = 0) -> list[int]:
    return [frontend.mem[place(frontend, index) + skew - 8] for index in range(count)]


@pytest.mark.parametrize("skew", [0, 128], ids=["aligned", "at any address"])
def test_reads_and_writes(tmp_path: Path, skew: int) -> None:
    numbers = random.Random(2)
    sectors = [index * 16 for index in range(COUNT)]
    lengths = [512 * numbers.randint(1, 16) for _ in sectors]
    found: list[bytes] = []

    def use(frontend: Frontend) -> None:
        offer(frontend, IN, list(zip(sectors, lengths, strict=True)), skew)
        assert statuses(frontend, COUNT, skew) == [0] * COUNT
        for index, length in enumerate(lengths):
            at = place(frontend, index) + skew
            found.append(bytes(frontend.mem[at : at + length]))
        data = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
        offer(frontend, OUT, list(zip(sectors, data, strict=True)), skew)
        assert statuses(frontend, COUNT, skew) == [0] * COUNT

    expected = bytearray(with_disk(tmp_path / "f", use, writable=True))
    for index, (sector, length) in enumerate(zip(sectors, lengths, strict=True)):
        part = slice(sector * 512, sector * 512 + length)
        assert found[index] == expected[part]
        expected[part] = bytes([index + 1]) * length
    assert (tmp_path / "f").read_bytes() == expected


def test_they_go_in_company(tmp_path: Path) -> None:
    """Nothing is copied: the operations are on the guest's memory."""
    ring: Any = EndingRing(4096)

    def use(frontend: Frontend) -> None:
        offer(frontend, IN, [(index * 8, 4096) for index in range(COUNT)])
        assert statuses(frontend, COUNT) == [0] * COUNT

    def prepare(rig: ExportRig) -> None:
        rig.pool._ring = ring

    with_disk(tmp_path / "f", use, prepare)
    assert [each.origin for each in ring.seen] == [4096 * index for index in range(COUNT)]
    assert {each.address % 4096 for each in ring.seen} == {0}


@pytest.mark.parametrize("result", [0, 512, -5, -14])
def test_what_ends_badly_is_done_plainly(tmp_path: Path, result: int) -> None:
    found: list[bytes] = []

    def use(frontend: Frontend) -> None:
        for kind, request in ((IN, 4096), (OUT, b"w" * 4096)):
            offer(frontend, kind, [(8, request), (16, request)])
            assert statuses(frontend, 2) == [0, 0]
            at = place(frontend, 0)
            found.append(bytes(frontend.mem[at : at + 4096]))

    def prepare(rig: ExportRig) -> None:
        ring: Any = EndingRing(result)
        real = rig.pool._ring
        route = rig.graph.nodes["m"].late_path
        assert route(False) is not None
        # Only what goes in company meets it: single requests found theirs before.
        file: Any = rig.graph.nodes["f"].driver
        file.io._ring = real
        ring.read, ring.write = real.read, real.write  # type: ignore[union-attr]
        rig.pool._ring = ring

    content = with_disk(tmp_path / "f", use, prepare, writable=True)
    assert found[0] == content[4096:8192]
    assert (tmp_path / "f").read_bytes()[4096:12288] == b"w" * 8192


def test_what_is_refused(tmp_path: Path) -> None:
    """Beyond the end, and writes to what is read-only."""

    def use(frontend: Frontend) -> None:
        offer(frontend, IN, [(LENGTH // 512, 512), (0, 512), (LENGTH // 512 - 1, 1024)])
        assert statuses(frontend, 3) == [1, 0, 1]
        offer(frontend, OUT, [(0, b"x" * 512)])
        assert statuses(frontend, 1) == [1]

    content = with_disk(tmp_path / "f", use, writable=False)
    assert (tmp_path / "f").read_bytes() == content
