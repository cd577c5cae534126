# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The log of written memory: its bits, and which pages requests set them for."""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import threading
from collections.abc import Callable

import pytest

from qsd.aio import loop
from qsd.errors import PeerError
from qsd.exports import vhost_log
from qsd.exports.vhost_log import DirtyLog
from tests.exports.export_rig import ExportRig
from tests.support import vhost_frontend as vf
from tests.support.memory import MemoryDriver
from tests.support.vhost_frontend import GET_ID, GUEST_BASE, IN, OUT, Frontend, Gone

pytestmark = pytest.mark.skipif(
    not vhost_log.is_possible(), reason="bits of shared memory cannot be set on this machine"
)
PAGE = 4096
F_LOG_ALL = 1 << 26
P_LOG_SHMFD = 1 << 1
SET_LOG_BASE = 6
WANTED = vf.F_VERSION_1 | vf.F_INDIRECT | vf.F_PROTOCOL


def pages(bitmap: bytes | bytearray) -> list[int]:
    return [8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1]


@pytest.mark.parametrize(
    ("guest", "length", "marked"),
    [
        (0, 1, [0]),
        (PAGE - 1, 2, [0, 1]),
        (31 * PAGE, 2 * PAGE, [31, 32]),
        (63 * PAGE, PAGE, [63]),
        (5, 70 * PAGE - 10, list(range(70))),
    ],
)
def test_bits(guest: int, length: int, marked: list[int]) -> None:
    bitmap = bytearray(4096)
    log = DirtyLog(memoryview(bitmap))
    for _ in range(2):
        log.mark(guest, length)
        assert pages(bitmap) == marked


def test_beyond_the_log() -> None:
    log = DirtyLog(memoryview(bytearray(10)))  # two words and a half
    log.mark(63 * PAGE, PAGE)
    with pytest.raises(PeerError, match="beyond"):
        log.mark(63 * PAGE, PAGE + 1)
    with pytest.raises(PeerError, match="beyond"):
        DirtyLog(memoryview(bytearray(0))).mark(0, 1)


def test_no_bit_of_others_is_lost() -> None:
    """Two threads set neighbouring bits; the system call lets both of them run."""
    bitmap = mmap.mmap(-1, 1 << 16)
    log = DirtyLog(memoryview(bitmap))

    def mark(first: int) -> None:
        for page in range(first, 20000, 2):
            log.mark(page * PAGE, 1)

    threads = [threading.Thread(target=mark, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pages(bitmap[:2500]) == list(range(20000))


class Log:
    """A front end's log for all guest memory, in the second page of its file."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self.size = (GUEST_BASE + frontend.size) // PAGE // 8
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, PAGE + self.size)
        self.mem = mmap.mmap(self.fd, PAGE + self.size)

    def taken(self) -> list[int]:
        """Return the marked pages of guest memory and clear the log."""
        self._frontend.config()  # the ring is marked after it was written: let that be over
        first = PAGE + GUEST_BASE // PAGE // 8
        found = pages(self.mem[first:])
        assert not any(self.mem[PAGE:first])
        self.mem[PAGE:] = bytes(self.size)
        return found

    def close(self) -> None:
        self.mem.close()
        os.close(self.fd)


def with_log(
    use: Callable[[Frontend, Log], None],
    prepare: Callable[[MemoryDriver], None] = lambda driver: None,
) -> list[str]:
    """Run `use` with a front end that has a log; return what the export reported."""

    async def main() -> list[str]:
        async with ExportRig() as rig:
            prepare(await rig.memory("m"))
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address, writable=True)

            def client() -> None:
                with Frontend(rig.path("s")) as frontend:
                    log = Log(frontend)
                    try:
                        use(frontend, log)
                    finally:
                        log.close()

            await asyncio.to_thread(client)
            return rig.reports

    return loop.run(main())


def start(frontend: Frontend, log: Log, *, ring: bool = True) -> None:
    frontend.negotiate(want=WANTED)
    protocol = struct.pack("<Q", frontend.protocol & (vf.P_CONFIG | P_LOG_SHMFD))
    frontend.send(vf.SET_PROTOCOL_FEATURES, protocol)
    frontend.set_memory()
    frontend.send(SET_LOG_BASE, struct.pack("<QQ", log.size, PAGE), [log.fd])
    assert frontend.receive() == (SET_LOG_BASE, 5, struct.pack("<Q", log.size), [])
    queue = frontend.add_queue(64)
    if ring:
        addresses = [vf.USER_BASE + area for area in (queue.desc, queue.used, queue.avail)]
        place = GUEST_BASE + queue.used
        body = struct.pack("<IIQQQQ", 0, 1, *addresses, place)
        frontend.send(vf.SET_VRING_ADDR, body)
    log_all(frontend, True)


def log_all(frontend: Frontend, on: bool) -> None:
    features = frontend.acked | (F_LOG_ALL if on else 0)
    frontend.send(vf.SET_FEATURES, struct.pack("<Q", features))
    frontend.config()  # an answer: now that was done


def slow(driver: MemoryDriver) -> None:
    driver.fast = False


@pytest.mark.parametrize("prepare", [lambda driver: None, slow], ids=["fast", "slow"])
def test_requests(prepare: Callable[[MemoryDriver], None]) -> None:
    def use(frontend: Frontend, log: Log) -> None:
        start(frontend, log)
        head = frontend.data // PAGE  # page of status bytes; the payload follows
        log.taken()
        for indirect in (False, True):
            assert frontend.request(IN, 0, read=PAGE, indirect=indirect)[0] == 0
            assert log.taken() == [0, head, head + 1]
            assert frontend.request(IN, 0, read=2 * PAGE, pieces=3, indirect=indirect)[0] == 0
            assert log.taken() == [0, head, head + 1, head + 2]
            assert frontend.request(OUT, 0, b"x" * PAGE, indirect=indirect)[0] == 0
            assert log.taken() == [0, head]
            assert frontend.request(GET_ID, read=20, indirect=indirect)[0] == 0
            assert log.taken() == [0, head, head + 1]
            assert frontend.request(IN, 1 << 40, read=PAGE, indirect=indirect)[0] == 1
            assert log.taken() == [0, head]

    assert not with_log(use, prepare)


def test_only_while_it_is_wanted() -> None:
    def use(frontend: Frontend, log: Log) -> None:
        start(frontend, log)
        frontend.request(IN, 0, read=512)
        assert log.taken()
        log_all(frontend, False)
        frontend.request(IN, 0, read=512)
        assert not log.taken()
        log_all(frontend, True)
        frontend.request(IN, 0, read=512)
        assert log.taken()

    assert not with_log(use)


def test_a_ring_that_is_not_logged() -> None:
    def use(frontend: Frontend, log: Log) -> None:
        start(frontend, log, ring=False)
        frontend.request(IN, 0, read=512)
        assert 0 not in log.taken()

    assert not with_log(use)


def test_requests_in_flight_are_logged_when_they_end() -> None:
    def use(frontend: Frontend, log: Log) -> None:
        start(frontend, log)
        log_all(frontend, False)
        frontend.mem[frontend.data + 512] = 0xFF
        struct.pack_into("<IIQ", frontend.mem, frontend.data, IN, 0, 0)
        place = GUEST_BASE + frontend.data
        parts = [(place, 16, 0), (place + PAGE, 512, vf.D_WRITE), (place + 512, 1, vf.D_WRITE)]
        frontend.chain(frontend.queues[0], parts)
        log_all(frontend, True)
        gate.set()
        frontend.queues[0].wait_used()
        head = frontend.data // PAGE
        assert log.taken() == [0, head, head + 1]

    gate = threading.Event()

    def prepare(driver: MemoryDriver) -> None:
        plain = driver.read

        async def read(offset: int, view: memoryview) -> None:
            await asyncio.to_thread(gate.wait, 10)
            await plain(offset, view)

        driver.fast = False
        driver.read = read  # type: ignore[method-assign]

    assert not with_log(use, prepare)


BAD: dict[str, Callable[[Log], tuple[bytes, list[int]]]] = {
    "too short for its file": lambda log: (struct.pack("<QQ", 1 << 20, 1 << 20), [log.fd]),
    "without a file": lambda log: (struct.pack("<QQ", log.size, 0), []),
    "huge": lambda log: (struct.pack("<QQ", 1 << 40, 0), [log.fd]),
    "short message": lambda log: (b"12345678", [log.fd]),
}


@pytest.mark.parametrize("name", BAD)
def test_logs_that_cannot_be(name: str) -> None:
    def use(frontend: Frontend, log: Log) -> None:
        frontend.negotiate()
        frontend.send(SET_LOG_BASE, *BAD[name](log))
        with pytest.raises(Gone):
            frontend.receive()

    assert len(with_log(use)) == 1


def test_a_log_that_is_too_small() -> None:
    def use(frontend: Frontend, log: Log) -> None:
        log.size = 512
        start(frontend, log)
        with pytest.raises(Gone):
            frontend.request(IN, 0, read=512)

    (report,) = with_log(use)
    assert "beyond the log" in report
