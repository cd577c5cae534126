# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests of the virtio disk, as the C daemon answers them (found by trying)."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports.virtio_blk import _groups, check_block_size
from tests.exports.export_rig import ExportRig
from tests.support.memory import MemoryDriver
from tests.support.vhost_frontend import (
    DISCARD,
    FLUSH,
    GET_ID,
    GUEST_BASE,
    IN,
    OUT,
    WRITE_ZEROES,
    Frontend,
)

OK, IOERR, UNSUPP = 0, 1, 2


def with_disk(
    use: Callable[[Frontend], None],
    prepare: Callable[[MemoryDriver], None] = lambda driver: None,
    **options: Any,
) -> MemoryDriver:
    """Run `use` with a front end of an export of 1 MiB; return the node's driver."""

    async def main() -> MemoryDriver:
        async with ExportRig() as rig:
            driver = await rig.memory("m", discard="unmap")
            driver.data[:] = bytes(range(256)) * (len(driver.data) // 256)
            prepare(driver)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address, **options)

            def client() -> None:
                with Frontend(rig.path("s")) as frontend:
                    use(frontend.set_up())

            await asyncio.to_thread(client)
            assert not rig.reports
            return driver

    return loop.run(main())


def slow(driver: MemoryDriver) -> None:
    driver.fast = False


@pytest.mark.parametrize("prepare", [lambda driver: None, slow], ids=["fast", "slow"])
@pytest.mark.parametrize("indirect", [False, True])
def test_reads_and_writes(prepare: Callable[[MemoryDriver], None], indirect: bool) -> None:
    data = bytes(reversed(range(256))) * 24

    def use(frontend: Frontend) -> None:
        for pieces in (1, 2, 3, 7):
            written = frontend.request(OUT, pieces, data, pieces=pieces, indirect=indirect)
            assert written == (OK, b"")
            read = frontend.request(
                IN, pieces, read=len(data), pieces=13 - pieces, indirect=indirect
            )
            assert read == (OK, data)

    driver = with_disk(use, prepare, writable=True)
    assert driver.data[7 * 512 : 7 * 512 + len(data)] == data


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


ANSWERS: list[tuple[str, int, int, bytes, int, int]] = [
    ("odd length", IN, 0, b"", 1000, IOERR),
    ("beyond the end", IN, 2048, b"", 512, IOERR),
    ("across the end", IN, 2047, b"", 1024, IOERR),
    ("far beyond", IN, (1 << 64) - 1, b"", 512, IOERR),
    ("between blocks", IN, 1, b"", 1024, IOERR),
    ("half a block", IN, 2, b"", 512, OK),
    ("nothing", IN, 0, b"", 0, OK),
    ("write beyond", OUT, 2048, bytes(1024), 0, IOERR),
    ("flush", FLUSH, 0, b"", 0, OK),
    ("unknown", 99, 0, b"", 0, UNSUPP),
    ("discard", DISCARD, 0, segment(0, 8), 0, OK),
    ("discard odd", DISCARD, 0, segment(1, 1), 0, IOERR),
    ("discard flags", DISCARD, 0, segment(0, 8, 1), 0, UNSUPP),
    ("discard two", DISCARD, 0, segment(0, 8) * 2, 0, UNSUPP),
    ("discard beyond", DISCARD, 0, segment(2048, 8), 0, IOERR),
    ("discard far too much", DISCARD, 0, bytes(100000), 0, UNSUPP),
    ("discard none", DISCARD, 0, b"", 0, IOERR),
    ("zeroes", WRITE_ZEROES, 0, segment(8, 8), 0, OK),
    ("zeroes, unmap", WRITE_ZEROES, 0, segment(8, 8, 1), 0, OK),
    ("zeroes flags", WRITE_ZEROES, 0, segment(8, 8, 2), 0, UNSUPP),
    ("zeroes flags beyond", WRITE_ZEROES, 0, segment(2048, 8, 2), 0, IOERR),
    ("zeroes short", WRITE_ZEROES, 0, b"12345678", 0, IOERR),
    ("zeroes of nothing", WRITE_ZEROES, 0, segment(8, 0), 0, OK),
]


def test_answers() -> None:
    def use(frontend: Frontend) -> None:
        for name, kind, sector, data, read, status in ANSWERS:
            answer = frontend.request(kind, sector, data, read)[0]
            assert answer == status, name

    driver = with_disk(use, writable=True, logical_block_size=1024)
    assert not any(driver.data[:8192])
    assert driver.data[8193]


def test_a_read_only_disk_takes_no_changes() -> None:
    def use(frontend: Frontend) -> None:
        assert frontend.features >> 5 & 1
        assert frontend.request(OUT, 0, bytes(512))[0] == IOERR
        assert frontend.request(DISCARD, 0, segment(0, 8))[0] == IOERR
        assert frontend.request(WRITE_ZEROES, 0, segment(0, 8))[0] == IOERR
        assert frontend.request(IN, 0, read=512) == (OK, bytes(range(256)) * 2)

    assert with_disk(use).data[:256] == bytes(range(256))


def test_serial_number() -> None:
    def use(frontend: Frontend) -> None:
        assert frontend.request(GET_ID, read=20) == (OK, b"vhost_user_blk".ljust(20, b"\0"))
        assert frontend.request(GET_ID, read=20, pieces=3)[1] == b"vhost_user_blk".ljust(20, b"\0")
        assert frontend.request(GET_ID, read=10) == (OK, b"vhost_user")

    with_disk(use)


def test_errors_of_the_node() -> None:
    def fail(driver: MemoryDriver) -> None:
        driver.fail = lambda operation, offset: errno.ENOSPC if offset == 4096 else 0

    def use(frontend: Frontend) -> None:
        assert frontend.request(IN, 8, read=512)[0] == IOERR
        assert frontend.request(OUT, 8, bytes(512))[0] == IOERR
        assert frontend.request(IN, 0, read=512)[0] == OK

    with_disk(use, fail, writable=True)


def test_a_header_in_pieces_and_a_status_behind_data() -> None:
    """Virtio 1.2, 2.7.4: the driver frames messages as it likes."""

    def use(frontend: Frontend) -> None:
        at = frontend.data
        struct.pack_into("<IIQ", frontend.mem, at, IN, 0, 0)
        base = GUEST_BASE + at
        parts = [(base, 3, 0), (base + 3, 13, 0), (base + 4096, 513, 2)]
        frontend.chain(frontend.queues[0], parts)
        assert frontend.queues[0].wait_used() == [(0, 513)]
        assert frontend.mem[at + 4096 : at + 4096 + 513] == bytes(range(256)) * 2 + b"\0"
        struct.pack_into("<IIQ", frontend.mem, at, OUT, 0, 0)
        frontend.chain(frontend.queues[0], [(base, 16 + 512, 0), (base + 2048, 1, 2)])
        assert frontend.queues[0].wait_used() == [(0, 1)]
        assert frontend.mem[at + 2048] == OK

    driver = with_disk(use, writable=True)
    assert driver.data[:8] == bytes(8)


def test_write_cache() -> None:
    def use(frontend: Frontend) -> None:
        assert frontend.config()[32] == 1
        frontend.send(25, struct.pack("<IIIB", 32, 1, 0, 0))
        assert frontend.config()[32] == 0
        assert frontend.request(OUT, 0, bytes(512))[0] == OK

    driver = with_disk(use, writable=True)
    assert [operation for operation, _, _ in driver.log][:2] == ["write", "flush"]


def test_what_is_copied_at_once_has_a_limit() -> None:
    """One request may name the same memory again and again: gigabytes out of a few pages."""
    view = memoryview(bytearray(3 << 20))
    sizes = [512, 1024, 1 << 20, 1 << 20, 3 << 20, 512, 3 << 20, 512]
    groups = _groups([view[:size] for size in sizes])
    assert [[len(part) for part in group] for group in groups] == [
        [512, 1024, 1 << 20],
        [1 << 20],
        [3 << 20],
        [512],
        [3 << 20],
        [512],
    ]
    odd = [view[:100], view, view[:412]]  # sectors in pieces stay together
    assert _groups(odd) == [odd]
    with pytest.raises(OSError, match="Invalid"):
        _groups([*odd, *[view] * 10])


@pytest.mark.parametrize("prepare", [lambda driver: None, slow], ids=["fast", "slow"])
def test_a_request_of_more_than_that(prepare: Callable[[MemoryDriver], None]) -> None:
    data = random.Random(8).randbytes(1 << 20)

    def use(frontend: Frontend) -> None:
        for pieces in (50, 64, 128):  # the first cuts sectors in two
            assert frontend.request(OUT, 0, data[::-1], indirect=True)[0] == OK
            assert frontend.request(OUT, 0, data, pieces=pieces, indirect=True) == (OK, b"")
            read = frontend.request(IN, 0, read=len(data), pieces=pieces, indirect=True)
            assert read == (OK, data)

    with (
        patch("qsd.exports.virtio_blk._MAX_COPY", 70000),
        patch("qsd.exports.virtio_blk._LARGE_PIECE", 4096),
    ):
        assert with_disk(use, prepare, writable=True).data == data


def test_block_sizes() -> None:
    assert check_block_size("e", None) == 512
    assert check_block_size("e", 2 << 20) == 2 << 20
    with pytest.raises(QmpError, match="power of 2"):
        check_block_size("e", 513)
