# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A kernel with VDUSE, as far as a device sees it: requests over a socket, memory in a file.

The driver's side is that of :class:`tests.support.vhost_frontend.Queue`.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from typing import Any

from qsd.wire.virtio import vduse
from tests.support import vhost_frontend as vf

#: I/O address of the memory; its file begins one page before.
BASE = 0x10_0000
PAGE = 4096
FEATURES = 1 << 33 | 1 << 32 | 1 << 28


class FakeDevice:
    """One device: both the file that the daemon opens and the driver behind it.

    Attributes:
        fd: The daemon's side of the requests.
        mem: Memory, from BASE on.
        queues: The driver's queues.
        interrupts: How often the driver of each queue was called.
        lookups: How often memory was asked for.
        configs: What the configuration was changed to.
        max_sizes: Of the queues that were set up.
    """

    def __init__(self, size: int = 1 << 20) -> None:
        self.sock, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.sock.settimeout(10)
        self.fd = ours.detach()
        self.size = size
        self.memfd = os.memfd_create("vduse", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, PAGE + size)
        self.mem = mmap.mmap(self.memfd, size, offset=PAGE)
        self.data = size // 2
        self.queues: list[vf.Queue] = []
        self.kicks: dict[int, int] = {}
        self.interrupts: dict[int, int] = {}
        self.lookups = 0
        self.access = 3
        self.configs: list[tuple[int, bytes]] = []
        self.max_sizes: dict[int, int] = {}
        self.negotiated = 0
        self._number = 0

    # What the daemon calls

    def set_up_queue(self, index: int, max_size: int) -> None:
        self.max_sizes[index] = max_size

    def features(self) -> int:
        return self.negotiated

    def queue_info(self, index: int) -> vduse.QueueInfo:
        if index >= len(self.queues):
            return vduse.QueueInfo(0, 0, 0, 0, 0, False)
        queue = self.queues[index]
        desc, avail, used = (BASE + area for area in (queue.desc, queue.avail, queue.used))
        return vduse.QueueInfo(queue.size, desc, avail, used, 0, ready=True)

    def set_kick(self, index: int, fd: int) -> None:
        old = self.kicks.pop(index, -1)
        if old >= 0:
            os.close(old)
        if fd >= 0:
            self.kicks[index] = os.dup(fd)

    def interrupt(self, index: int) -> None:
        self.interrupts[index] = self.interrupts.get(index, 0) + 1
        os.eventfd_write(self.queues[index].call, 1)

    def set_config(self, offset: int, data: bytes) -> None:
        self.configs.append((offset, data))

    def memory_of(self, first: int, last: int) -> tuple[vduse.Mapping, int]:
        self.lookups += 1
        if last < BASE or first >= BASE + self.size:
            raise OSError(errno.EINVAL, "no such region")
        mapping = vduse.Mapping(PAGE, BASE, BASE + self.size - 1, self.access)
        return mapping, os.dup(self.memfd)

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    # What the driver does

    def add_queue(self, size: int = 64) -> vf.Queue:
        area = (self.queues[-1].end + 0xFFF) & ~0xFFF if self.queues else 0
        owner: Any = self
        queue = vf.Queue(owner, len(self.queues), size, area)
        self.queues.append(queue)
        return queue

    def ask(self, kind: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; return the result and the body of the response."""
        self._number += 1
        message = struct.pack("=II16x", kind, self._number) + body
        self.sock.send(message.ljust(vduse.MESSAGE_SIZE, b"\0"))
        answer = self.sock.recv(4096)
        assert len(answer) == vduse.MESSAGE_SIZE
        number, result = struct.unpack_from("=II", answer)
        assert number == self._number
        return result, answer[24:]

    def set_status(self, status: int) -> int:
        return self.ask(vduse.SET_STATUS, bytes([status]))[0]

    def start(self) -> int:
        """Negotiate, and say that the driver is ready; return the result."""
        self.negotiated = FEATURES
        return self.set_status(vduse.STATUS_DRIVER_OK | 8)

    def reset(self) -> int:
        self.negotiated = 0
        return self.set_status(0)

    def state(self, index: int) -> tuple[int, int]:
        """Return (result, where the queue can be gone on with)."""
        result, body = self.ask(vduse.GET_VQ_STATE, struct.pack("=I", index))
        (base,) = struct.unpack_from("=H", body, 4)
        return result, base

    def update(self, first: int, last: int) -> int:
        return self.ask(vduse.UPDATE_IOTLB, struct.pack("=QQ", first, last))[0]

    def request(
        self, kind: int, sector: int = 0, data: bytes = b"", read: int = 0, queue: int = 0
    ) -> tuple[int, bytes]:
        """Do one request; return (status, what was read)."""
        ring = self.queues[queue]
        at = self.data
        struct.pack_into("<IIQ", self.mem, at, kind, 0, sector)
        length = read or len(data)
        self.mem[at + PAGE : at + PAGE + length] = data or bytes(length)
        status = at + 512
        self.mem[status] = 0xFF
        ring.put_desc(0, BASE + at, 16, vf.D_NEXT, 1)
        write = vf.D_WRITE if read else 0
        if length:
            ring.put_desc(1, BASE + at + PAGE, length, vf.D_NEXT | write, 2)
            ring.put_desc(2, BASE + status, 1, vf.D_WRITE)
        else:
            ring.put_desc(1, BASE + status, 1, vf.D_WRITE)
        ring.offer(0, kick=False)
        os.eventfd_write(self.kicks[queue], 1)
        self._wait(ring)
        return self.mem[status], self.mem[at + PAGE : at + PAGE + read]

    def _wait(self, ring: vf.Queue) -> None:
        ring.wait_used()

    def finish(self) -> None:
        """Close everything that is the test's."""
        for queue in self.queues:
            queue.close()
        for fd in self.kicks.values():
            os.close(fd)
        self.sock.close()
        self.mem.close()
        os.close(self.memfd)
        if self.fd >= 0:
            os.close(self.fd)
