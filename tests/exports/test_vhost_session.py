# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sessions of vhost-user: set-up in any order, reconnection, and front ends that mean harm."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest

from qsd.aio import loop
from tests.exports.export_rig import ExportRig
from tests.support import vhost_frontend as vf
from tests.support.memory import MemoryDriver
from tests.support.vhost_frontend import GUEST_BASE, IN, OUT, Frontend, Gone


def serve(use: Callable[[Frontend], None], *, goes_on: bool = True) -> list[str]:
    """Run `use` with a connected front end, then see that the next one is served.

    Returns:
        What the export reported.
    """

    async def main() -> list[str]:
        async with ExportRig() as rig:
            await rig.memory("m")
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address, num_queues=2, writable=True)

            def client() -> None:
                with Frontend(rig.path("s")) as frontend:
                    use(frontend)
                with Frontend(rig.path("s")) as frontend:
                    assert frontend.set_up().request(IN, 0, read=512)[0] == 0

            await asyncio.to_thread(client)
            return rig.reports

    return loop.run(main())


def test_what_is_offered() -> None:
    def use(frontend: Frontend) -> None:
        frontend.negotiate()
        # The C daemon's features, bit for bit; bit 5 would be read-only.
        assert frontend.features == 0x1_7500_7E46
        # Its protocol features without PAGEFAULT (8), BACKEND_SEND_FD (10) and HOST_NOTIFIER (11);
        # INFLIGHT_SHMFD (12) is ours.
        assert frontend.protocol == 0x8F2B & ~(1 << 8 | 1 << 10 | 1 << 11) | 1 << 12
        assert frontend.ask_number(vf.GET_QUEUE_NUM) == 2
        assert frontend.ask_number(vf.GET_MAX_MEM_SLOTS) == 32

    assert serve(use) == []


def test_event_index() -> None:
    def use(frontend: Frontend) -> None:
        frontend.negotiate(want=vf.F_VERSION_1 | vf.F_EVENT_IDX | vf.F_PROTOCOL)
        frontend.set_memory()
        frontend.add_queue()
        for sector in range(200):
            assert frontend.request(OUT, sector, bytes([sector]) * 512)[0] == 0
        assert frontend.request(IN, 150, read=512)[1] == bytes([150]) * 512

    assert serve(use) == []


def test_a_queue_stops_and_goes_on() -> None:
    def use(frontend: Frontend) -> None:
        frontend.set_up(2)
        for _ in range(70):
            assert frontend.request(IN, 0, read=512, queue=1)[0] == 0
        state = frontend.ask(vf.GET_VRING_BASE, struct.pack("<II", 1, 0))
        assert struct.unpack("<II", state) == (1, 70)
        frontend.start_queue(frontend.queues[1], 70)
        assert frontend.request(IN, 0, read=512, queue=1)[0] == 0
        assert frontend.request(IN, 0, read=512, queue=0)[0] == 0

    assert serve(use) == []


def test_a_disabled_queue_is_not_served() -> None:
    def use(frontend: Frontend) -> None:
        frontend.set_up()
        assert frontend.command(vf.SET_VRING_ENABLE, struct.pack("<II", 0, 0)) == 0
        frontend.queues[0].offer(0)
        with pytest.raises(TimeoutError):
            frontend.queues[0].wait_used(timeout=0.05)
        struct.pack_into("<IIQ", frontend.mem, frontend.data, IN, 0, 0)
        frontend.queues[0].put_desc(0, GUEST_BASE + frontend.data, 16, 1, 1)
        frontend.queues[0].put_desc(1, GUEST_BASE + frontend.data + 512, 1, 2)
        assert frontend.command(vf.SET_VRING_ENABLE, struct.pack("<II", 0, 1)) == 0
        assert frontend.queues[0].wait_used() == [(0, 1)]

    assert serve(use) == []


def test_what_was_done_before_there_was_a_call_is_heard_of() -> None:
    """A ring that stays enabled runs with its kick, before the front end has set the call."""

    def use(frontend: Frontend) -> None:
        frontend.set_up()
        queue = frontend.queues[0]
        assert frontend.request(IN, 0, read=512)[0] == 0
        frontend.ask(vf.GET_VRING_BASE, struct.pack("<II", 0, 0))
        with suppress(BlockingIOError):  # the first request may have been seen without waiting
            os.eventfd_read(queue.call)
        queue.offer(0)
        frontend.send(vf.SET_VRING_BASE, struct.pack("<II", 0, 1))
        frontend.send(vf.SET_VRING_KICK, struct.pack("<Q", 0), [queue.kick])
        while struct.unpack_from("<H", frontend.mem, queue.used + 2) != (2,):
            assert frontend.command(vf.SET_OWNER) == 0  # served without a call
        with pytest.raises(BlockingIOError):
            os.eventfd_read(queue.call)
        frontend.send(vf.SET_VRING_CALL, struct.pack("<Q", 0), [queue.call])
        assert frontend.command(vf.SET_OWNER) == 0
        assert os.eventfd_read(queue.call) == 1

    assert serve(use) == []


def test_memory_in_slots_and_in_a_file_at_an_offset() -> None:
    def use(frontend: Frontend) -> None:
        frontend.negotiate()
        half = frontend.size // 2
        for start in (0, half):
            region = struct.pack("<QQQQQ", 0, GUEST_BASE + start, half, vf.USER_BASE + start, start)
            frontend.send(vf.ADD_MEM_REG, region, [frontend.memfd])
        frontend.add_queue()
        assert frontend.request(OUT, 0, b"z" * 512)[0] == 0
        # A region goes that nothing needs.
        extra = struct.pack("<QQQQQ", 0, 0, 4096, 0, 4096)
        frontend.send(vf.ADD_MEM_REG, extra, [frontend.memfd])
        assert frontend.command(vf.REM_MEM_REG, extra) == 0
        assert frontend.command(vf.REM_MEM_REG, extra) == 1
        assert frontend.request(IN, 0, read=512) == (0, b"z" * 512)

    assert serve(use) == []


def test_payload_across_regions() -> None:
    def use(frontend: Frontend) -> None:
        frontend.negotiate()
        cut = frontend.data + 4096 + 1024
        regions = b"".join(
            struct.pack("<QQQQ", GUEST_BASE + start, size, vf.USER_BASE + start, start)
            for start, size in ((0, cut), (cut, frontend.size - cut))
        )
        table = struct.pack("<II", 2, 0) + regions
        frontend.send(vf.SET_MEM_TABLE, table, [frontend.memfd] * 2)
        frontend.add_queue()
        data = random.Random(1).randbytes(4096)
        assert frontend.request(OUT, 0, data)[0] == 0
        assert frontend.request(IN, 0, read=4096) == (0, data)

    assert serve(use) == []


def test_inflight_region_replays_what_a_dead_daemon_left() -> None:
    def use(frontend: Frontend) -> None:
        frontend.negotiate()
        frontend.set_memory()
        frontend.send(vf.GET_INFLIGHT_FD, struct.pack("<QQHH", 0, 0, 1, 64))
        request, _, body, fds = frontend.receive()
        assert request == vf.GET_INFLIGHT_FD
        _, offset, queues, queue_size = struct.unpack_from("<QQHH", body)
        assert (offset, queues, queue_size) == (0, 1, 64)
        # A daemon took chain 5 and died before it gave it back.
        os.pwrite(fds[0], struct.pack("<QHHHH", 0, 1, 64, 0, 0), 0)
        os.pwrite(fds[0], struct.pack("<B5xHQ", 1, 0, 0), 16 + 16 * 5)
        frontend.send(vf.SET_INFLIGHT_FD, body, fds)
        queue = vf.Queue(frontend, 0, 64, 0)
        frontend.queues.append(queue)
        struct.pack_into("<IIQ", frontend.mem, frontend.data, IN, 0, 0)
        queue.put_desc(5, GUEST_BASE + frontend.data, 16, 1, 6)
        queue.put_desc(6, GUEST_BASE + frontend.data + 512, 513, 2)
        queue.offer(5, kick=False)
        frontend.start_queue(queue, 0)
        assert queue.wait_used() == [(5, 513)]
        assert os.pread(fds[0], 1, 16 + 16 * 5) == b"\0"
        assert os.pread(fds[0], 2, 14) == b"\1\0"  # used_idx
        assert frontend.request(IN, 0, read=512)[0] == 0
        os.close(fds[0])

    assert serve(use) == []


def test_acknowledgements() -> None:
    def use(frontend: Frontend) -> None:
        frontend.negotiate()
        assert frontend.command(vf.SET_OWNER) == 0
        assert frontend.command(99) == 1
        assert frontend.command(vf.SET_CONFIG, struct.pack("<III", 0, 1, 0) + b"\1") == 1
        assert frontend.command(vf.SET_CONFIG, struct.pack("<III", 32, 1, 0) + b"\0") == 0
        assert frontend.config()[32] == 0

    assert serve(use) == []


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def region(size: int, offset: int = 0) -> bytes:
    return struct.pack("<IIQQQQ", 1, 0, 0, size, 0, offset)


HOSTILE: dict[str, Callable[[Frontend], None]] = {
    "unknown request": lambda f: f.send(99),
    "no queue 2": lambda f: f.send(vf.SET_VRING_NUM, struct.pack("<II", 2, 64)),
    "short": lambda f: f.send(vf.SET_VRING_NUM, b"1234"),
    "long": lambda f: f.sock.sendall(struct.pack("<III", 1, 1, 1 << 30)),
    "memory without a file": lambda f: f.send(vf.SET_MEM_TABLE, region(4096)),
    "memory beyond its file": lambda f: f.send(vf.SET_MEM_TABLE, region(1 << 40), [f.memfd]),
    "memory far away": lambda f: f.send(vf.SET_MEM_TABLE, region(4096, 1 << 63), [f.memfd]),
    "empty memory": lambda f: f.send(vf.SET_MEM_TABLE, region(0), [f.memfd]),
    "memory in a socket": lambda f: f.send(vf.SET_MEM_TABLE, region(4096), [f.sock.fileno()]),
    "many regions": lambda f: f.send(vf.SET_MEM_TABLE, struct.pack("<II", 1 << 31, 0)),
    "many descriptors": lambda f: f.send(vf.SET_OWNER, fds=[f.memfd] * 40),
    "kick without event": lambda f: f.send(vf.SET_VRING_KICK, u64(0)),
    "call without event": lambda f: f.send(vf.SET_VRING_CALL, u64(0)),
    "error without event": lambda f: f.send(vf.SET_VRING_ERR, u64(0)),
    "log without event": lambda f: f.send(vf.SET_LOG_FD),
    "legacy driver": lambda f: f.send(vf.SET_FEATURES, u64(vf.F_PROTOCOL)),
    "ring in no memory": lambda f: f.send(vf.SET_VRING_ADDR, bytes(40)),
    "channel that is no socket": lambda f: f.send(vf.SET_BACKEND_REQ_FD, b"", [f.memfd]),
    "config beyond": lambda f: f.send(vf.GET_CONFIG, struct.pack("<III", 0, 1 << 31, 0)),
    "inflight too small": lambda f: f.send(
        vf.SET_INFLIGHT_FD, struct.pack("<QQHH", 16, 0, 1, 64), [f.memfd]
    ),
    "inflight for nothing": lambda f: f.send(vf.GET_INFLIGHT_FD, struct.pack("<QQHH", 0, 0, 0, 64)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_end_the_session_only(name: str) -> None:
    def use(frontend: Frontend) -> None:
        HOSTILE[name](frontend)
        with pytest.raises(Gone):
            frontend.receive()

    assert len(serve(use)) == 1


def test_what_is_overlooked() -> None:
    """As by the C daemon: nothing, features that nobody offered, an answer not agreed on."""

    def use(frontend: Frontend) -> None:
        frontend.send(vf.NONE, b"12345678")
        frontend.send(vf.SET_FEATURES, u64((1 << 64) - 1))
        event = os.eventfd(0)
        try:
            frontend.send(vf.SET_VRING_ERR, u64(0), [event])
            frontend.send(vf.SET_LOG_FD, b"", [event])
        finally:
            os.close(event)
        assert frontend.command(vf.SET_OWNER) == 0

    assert serve(use) == []


def begin_queue(frontend: Frontend) -> tuple[vf.Queue, bytes]:
    """Set up all but one queue's addresses and events; return it and the message with addresses."""
    frontend.negotiate()
    frontend.set_memory()
    queue = vf.Queue(frontend, 0, 64, 0)
    frontend.queues.append(queue)
    frontend.send(vf.SET_VRING_NUM, struct.pack("<II", 0, 64))
    base = vf.USER_BASE
    body = struct.pack("<IIQQQQ", 0, 0, base, base + queue.used, base + queue.avail, 0)
    return queue, body


def test_addresses_may_come_last() -> None:
    def use(frontend: Frontend) -> None:
        queue, body = begin_queue(frontend)
        frontend.send(vf.SET_VRING_KICK, u64(0), [queue.kick])
        frontend.send(vf.SET_VRING_CALL, u64(0), [queue.call])
        frontend.send(vf.SET_VRING_ENABLE, struct.pack("<II", 0, 1))
        frontend.send(vf.SET_VRING_ADDR, body)
        assert frontend.request(vf.GET_ID, read=20)[0] == 0

    assert serve(use) == []


def test_a_kick_that_cannot_be_waited_for() -> None:
    def use(frontend: Frontend) -> None:
        _, body = begin_queue(frontend)
        frontend.send(vf.SET_VRING_ADDR, body)
        frontend.send(vf.SET_VRING_KICK, u64(0), [frontend.memfd])
        frontend.send(vf.SET_VRING_ENABLE, struct.pack("<II", 0, 1))
        with pytest.raises(Gone):
            frontend.receive()

    assert len(serve(use)) == 1


@pytest.mark.parametrize("where", ["ring", "size"])
def test_rings_that_cannot_be(where: str) -> None:
    def use(frontend: Frontend) -> None:
        frontend.set_up()
        frontend.ask(vf.GET_VRING_BASE, struct.pack("<II", 0, 0))
        if where == "size":
            frontend.queues[0].size = 63
        else:
            frontend.queues[0].desc = 1 << 40
        with suppress(Gone):  # it may be so quick that not everything can be said
            frontend.start_queue(frontend.queues[0])
        with pytest.raises(Gone):
            frontend.receive()

    assert len(serve(use)) == 1


@pytest.mark.parametrize("left", [0, 8192, 4 << 20])
@pytest.mark.parametrize("pieces", [1, 3])
def test_memory_that_is_taken_away(left: int, pieces: int) -> None:
    """The rings are gone with it, or the payload and status only."""

    def use(frontend: Frontend) -> None:
        frontend.set_up(2)
        assert frontend.request(IN, 0, read=4096)[0] == 0
        queue = frontend.queues[0]
        at = frontend.data
        struct.pack_into("<IIQ", frontend.mem, 4096 if left > 4096 else at, OUT, 0, 0)
        parts = [(GUEST_BASE + (4096 if left > 4096 else at), 16, 0)]
        parts += [(GUEST_BASE + at + 4096 + 512 * index, 512, 0) for index in range(pieces)]
        parts.append((GUEST_BASE + at + 512, 1, vf.D_WRITE))
        for index, (guest, size, flags) in enumerate(parts):
            more = vf.D_NEXT if index + 1 < len(parts) else 0
            queue.put_desc(index, guest, size, flags | more, index + 1)
        os.ftruncate(frontend.memfd, left)
        if left:
            queue.offer(0)
        else:
            os.eventfd_write(queue.kick, 1)
        with pytest.raises(Gone):
            frontend.receive()

    assert serve(use) == ["vhost-user-blk export 'e': memory that is shared was taken away"]


def test_damaged_chains_end_the_session_only() -> None:
    def use(frontend: Frontend) -> None:
        frontend.set_up()
        frontend.queues[0].put_desc(0, 0x1234, 100)
        frontend.queues[0].offer(0)
        with pytest.raises(Gone):
            frontend.queues[0].wait_used()

    (report,) = serve(use)
    assert "is no guest memory" in report


def test_random_messages() -> None:
    source = random.Random(3)

    def use(path: str) -> None:
        for _ in range(40):
            with Frontend(path, 1 << 16) as frontend:
                try:
                    for _ in range(10):
                        body = source.randbytes(source.choice([0, 4, 8, 12, 40, 48, 100]))
                        fds = [frontend.memfd] * source.randrange(3)
                        frontend.send(source.randrange(45), body, fds, 9)
                except Gone:
                    pass

    async def main() -> None:
        async with ExportRig() as rig:
            node = await rig.memory("m")
            before = bytes(node.data)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address)
            await asyncio.to_thread(use, rig.path("s"))
            with Frontend(rig.path("s")) as frontend:
                await asyncio.to_thread(frontend.set_up)
                assert (await asyncio.to_thread(frontend.request, IN, 0, read=512))[0] == 0
            assert isinstance(node, MemoryDriver)
            assert bytes(node.data) == before

    loop.run(main())


def test_random_rings() -> None:
    """Guests of all kinds of madness: nobody reads or writes what is not theirs, nothing hangs."""
    source = random.Random(5)
    flags = [vf.D_NEXT, vf.D_NEXT | vf.D_WRITE, vf.D_WRITE, 0, vf.D_INDIRECT, 0xFFFF]

    def scribble(frontend: Frontend) -> None:
        places = [GUEST_BASE, GUEST_BASE + frontend.data, GUEST_BASE + frontend.size - 512]
        places += [0, 1 << 63, (1 << 64) - 16, GUEST_BASE - 8]
        queue = frontend.queues[0]
        tables = [queue.desc, frontend.data]
        for index in range(64):
            address = source.choice(places) + source.choice([0, 0, 16, 512, 4096])
            length = source.choice([0, 1, 16, 17, 48, 512, 1024, 4096, 0xFFFFFFFF])
            entry = address % (1 << 64), length, source.choice(flags), source.randrange(70)
            struct.pack_into("<QIHH", frontend.mem, source.choice(tables) + 16 * index, *entry)
        kind, sector = source.choice([0, 1, 4, 8, 11, 13, 99]), source.choice([0, 1, 1 << 60])
        struct.pack_into("<IIQ", frontend.mem, frontend.data + 4096, kind, 0, sector)
        for _ in range(source.randrange(6)):
            queue.offer(source.randrange(66), kick=False)
        if source.random() < 0.1:
            queue.avail_idx += source.randrange(100)
        queue.offer(0)

    def use(path: str) -> None:
        for _ in range(60):
            with Frontend(path, 1 << 18) as frontend:
                frontend.set_up()
                try:
                    for _ in range(4):
                        scribble(frontend)
                        frontend.config()  # by now it was served, or the session has ended
                except Gone:
                    pass

    async def main() -> None:
        async with ExportRig() as rig:
            node = await rig.memory("m")
            before = bytes(node.data)
            address = {"type": "unix", "path": rig.path("s")}
            await rig.export("vhost-user-blk", "m", addr=address)
            await asyncio.to_thread(use, rig.path("s"))
            with Frontend(rig.path("s")) as frontend:
                await asyncio.to_thread(frontend.set_up)
                assert (await asyncio.to_thread(frontend.request, IN, 0, read=512))[0] == 0
            assert isinstance(node, MemoryDriver)
            assert bytes(node.data) == before
            assert rig.reports

    loop.run(main())
