# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A vhost-user-blk front end without a machine: guest memory in a memfd, rings written by hand.

Source: QEMU documentation, "Vhost-user Protocol"; virtio 1.2, 2.7 "Split Virtqueues" and 5.2 "Block
Device".  Blocking, and independent of the code under test.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
from typing import Any, Self

NONE = 0
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_LOG_FD = 7
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD = 31, 32
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 36, 37, 38

F_PROTOCOL, F_INDIRECT, F_EVENT_IDX, F_VERSION_1 = 1 << 30, 1 << 28, 1 << 29, 1 << 32
P_REPLY_ACK, P_BACKEND_REQ, P_CONFIG, P_INFLIGHT = 1 << 3, 1 << 5, 1 << 9, 1 << 12

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
D_NEXT, D_WRITE, D_INDIRECT = 1, 2, 4

#: Where guest memory begins in the guest, and in the front end's own address space.
GUEST_BASE = 0x4000_0000
USER_BASE = 0x7F00_0000_0000

_HEADER = struct.Struct("<III")


class Gone(Exception):
    """The back end hung up."""


class Queue:
    """One virtqueue in guest memory.

    Attributes:
        size: Number of descriptors.
        area: Offset of its memory: descriptors, available ring, used ring.
        kick: Event to the device.
        call: Event from the device.
    """

    def __init__(self, frontend: Frontend, index: int, size: int, area: int) -> None:
        self.frontend = frontend
        self.index = index
        self.size = size
        self.desc = area
        self.avail = area + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.avail_idx = 0
        self.used_idx = 0
        # What the device reads meanwhile is stored whole: `pack_into` clears first, and a device
        # that finds an index of zero serves what it has served before.
        self._words = memoryview(frontend.mem).cast("H")

    def put_desc(self, index: int, guest: int, length: int, flags: int = 0, link: int = 0) -> None:
        struct.pack_into(
            "<QIHH", self.frontend.mem, self.desc + 16 * index, guest, length, flags, link
        )

    def offer(self, *heads: int, kick: bool = True) -> None:
        """Make chains available."""
        words, avail = self._words, self.avail // 2
        for head in heads:
            words[avail + 2 + self.avail_idx % self.size] = head & 0xFFFF
            self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        words[avail + 1] = self.avail_idx
        if kick:
            os.eventfd_write(self.kick, 1)

    def take_used(self) -> list[tuple[int, int]]:
        """Return (head, written) of what is finished."""
        mem = self.frontend.mem
        index = self._words[self.used // 2 + 1]
        done = []
        while self.used_idx != index:
            at = self.used + 4 + 8 * (self.used_idx % self.size)
            done.append(struct.unpack_from("<II", mem, at))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        # With event index: be told of the next one.
        self._words[self.avail // 2 + 2 + self.size] = self.used_idx
        return done

    def wait_used(self, count: int = 1, timeout: float = 10.0) -> list[tuple[int, int]]:
        """Wait for `count` finished chains."""
        done = self.take_used()
        while len(done) < count:
            waiting: list[Any] = [self.call, self.frontend.sock]
            ready, _, _ = select.select(waiting, [], [], timeout)
            if not ready:
                raise TimeoutError(f"queue {self.index}: {done}")
            if self.call in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.call)
            elif not self.frontend.sock.recv(1, socket.MSG_PEEK):
                raise Gone
            done += self.take_used()
        return done

    def close(self) -> None:
        self._words.release()
        os.close(self.kick)
        os.close(self.call)


class Frontend:
    """One connection with guest memory of `size` bytes.

    Attributes:
        mem: Guest memory.
        queues: Running queues.
        features: What the device offers.
        protocol: Protocol features the back end offers.
    """

    def __init__(self, path: str, size: int = 8 << 20) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.memfd = os.memfd_create("guest", os.MFD_CLOEXEC)
        self.size = size
        os.ftruncate(self.memfd, size)
        self.mem = mmap.mmap(self.memfd, size)
        self.queues: list[Queue] = []
        self.features = self.protocol = self.acked = 0
        self.data = size // 2  # payload and headers live in the upper half
        self.backend_req: socket.socket | None = None
        try:
            self.sock.connect(path)  # waits while the back end serves another
            self.sock.settimeout(10)
        except BaseException:
            self.close()
            raise

    def connect_again(self, path: str) -> None:
        """Go to another back end, with the same memory and queues."""
        self.sock.close()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.settimeout(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
        self.queues.clear()
        self.sock.close()
        self.mem.close()
        os.close(self.memfd)
        if self.backend_req is not None:
            self.backend_req.close()

    # Messages

    def send(self, request: int, body: bytes = b"", fds: Any = (), flags: int = 1) -> None:
        try:
            socket.send_fds(self.sock, [_HEADER.pack(request, flags, len(body)) + body], list(fds))
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise Gone from exc

    def receive(self) -> tuple[int, int, bytes, list[int]]:
        """Return (request, flags, body, fds)."""
        try:
            head, fds, _, _ = socket.recv_fds(self.sock, _HEADER.size, 8)
            if not head:
                raise Gone
            request, flags, length = _HEADER.unpack(head)
            body = b""
            while len(body) < length:
                body += self.sock.recv(length - len(body))
        except ConnectionResetError as exc:
            raise Gone from exc
        return request, flags, body, fds

    def ask(self, request: int, body: bytes = b"") -> bytes:
        self.send(request, body)
        answered, flags, result, _ = self.receive()
        assert answered == request
        assert flags & 7 == 5
        return result

    def ask_number(self, request: int) -> int:
        (number,) = struct.unpack("<Q", self.ask(request))
        return int(number)

    def command(self, request: int, body: bytes = b"", fds: Any = ()) -> int:
        """Send a message that needs an acknowledgement and return its code (REPLY_ACK)."""
        self.send(request, body, fds, flags=1 | 8)
        answered, _, result, _ = self.receive()
        assert answered == request
        (code,) = struct.unpack("<Q", result)
        return int(code)

    # Set-up, in the order of a real front end

    def negotiate(self, *, want: int = F_VERSION_1 | F_INDIRECT | F_PROTOCOL) -> None:
        self.features = self.ask_number(GET_FEATURES)
        self.protocol = self.ask_number(GET_PROTOCOL_FEATURES)
        wanted = P_REPLY_ACK | P_CONFIG | P_BACKEND_REQ | P_INFLIGHT | 1
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", self.protocol & wanted))
        self.send(SET_OWNER)
        self.acked = self.features & (want | 0xFFFFFF)
        self.send(SET_FEATURES, struct.pack("<Q", self.acked))

    def set_memory(self) -> None:
        region = struct.pack("<QQQQ", GUEST_BASE, self.size, USER_BASE, 0)
        self.send(SET_MEM_TABLE, struct.pack("<II", 1, 0) + region, [self.memfd])

    def add_queue(self, size: int = 64, base: int = 0) -> Queue:
        area = (self.queues[-1].end + 0xFFF) & ~0xFFF if self.queues else 0
        queue = Queue(self, len(self.queues), size, area)
        self.queues.append(queue)
        self.start_queue(queue, base)
        return queue

    def start_queue(self, queue: Queue, base: int = 0) -> None:
        index = queue.index
        self.send(SET_VRING_NUM, struct.pack("<II", index, queue.size))
        self.send(SET_VRING_BASE, struct.pack("<II", index, base))
        addresses = (USER_BASE + queue.desc, USER_BASE + queue.used, USER_BASE + queue.avail)
        self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, *addresses, 0))
        self.send(SET_VRING_KICK, struct.pack("<Q", index), [queue.kick])
        self.send(SET_VRING_CALL, struct.pack("<Q", index), [queue.call])
        self.send(SET_VRING_ENABLE, struct.pack("<II", index, 1))

    def set_up(self, queues: int = 1, size: int = 64) -> Self:
        self.negotiate()
        self.set_memory()
        for _ in range(queues):
            self.add_queue(size)
        return self

    def open_backend_channel(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.backend_req = ours
        with theirs:
            self.send(SET_BACKEND_REQ_FD, b"", [theirs.fileno()])

    def config(self, offset: int = 0, size: int = 60) -> bytes:
        body = self.ask(GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size))
        return body[12:]

    # Requests

    def request(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        read: int = 0,
        *,
        queue: int = 0,
        pieces: int = 1,
        indirect: bool = False,
    ) -> tuple[int, bytes]:
        """Do one request; return (status, what was read).

        `pieces` cuts the payload into that many descriptors.
        """
        ring = self.queues[queue]
        at = self.data
        struct.pack_into("<IIQ", self.mem, at, kind, 0, sector)
        parts = [(GUEST_BASE + at, 16, 0)]
        length = read or len(data)
        payload = at + 4096
        self.mem[payload : payload + length] = data or bytes(length)
        step = -(-length // pieces) if length else 1
        for start in range(0, length, step):
            size = min(step, length - start)
            parts.append((GUEST_BASE + payload + start, size, D_WRITE if read else 0))
        status = at + 512
        self.mem[status] = 0xFF
        parts.append((GUEST_BASE + status, 1, D_WRITE))
        self.chain(ring, parts, indirect)
        ring.wait_used()
        return self.mem[status], self.mem[payload : payload + read]

    def chain(self, ring: Queue, parts: list[tuple[int, int, int]], indirect: bool = False) -> None:
        """Write a chain that begins at descriptor 0 and offer it."""
        table = self.data + 1024
        for index, (guest, size, flags) in enumerate(parts):
            more = D_NEXT if index + 1 < len(parts) else 0
            if indirect:
                struct.pack_into(
                    "<QIHH", self.mem, table + 16 * index, guest, size, flags | more, index + 1
                )
            else:
                ring.put_desc(index, guest, size, flags | more, index + 1)
        if indirect:
            ring.put_desc(0, GUEST_BASE + table, 16 * len(parts), D_INDIRECT)
        ring.offer(0)
