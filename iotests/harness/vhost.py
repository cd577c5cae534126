# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A vhost-user-blk front end with many requests in flight, in the place of an NBD client.

Its requests look like those of :class:`iotests.harness.nbd.Client`, so that the same loads run
over it.  With `revive` it survives its back end, as QEMU does with `reconnect`: guest memory, the
rings and the region for requests in flight are handed to the next one.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from iotests.harness import nbd
from tests.support import vhost_frontend as vf

_QUEUES = 2
_RING = 64
#: Descriptors of a chain: header, payload in two pieces, status.
_CHAIN = 4
_DEPTH = _QUEUES * _RING // _CHAIN
#: Bytes of guest memory for a request: header and status, then the payload.
_HEAD = 4096
_PAYLOAD = 1 << 20
_STATUS = 64
_KINDS = {
    nbd.READ: vf.IN,
    nbd.WRITE: vf.OUT,
    nbd.FLUSH: vf.FLUSH,
    nbd.TRIM: vf.DISCARD,
    nbd.ZERO: vf.WRITE_ZEROES,
}


class _Request(NamedTuple):
    cookie: int
    read: int
    then_flush: bool


class VhostClient(nbd.Client):
    """One front end.

    Attributes:
        size: Length of the disk.
        revivals: How often the back end was replaced.
    """

    def __init__(self, path: Path, revive: Callable[[], None] | None = None) -> None:
        """Connect.

        Args:
            path: The socket.
            revive: Called when the back end is gone; makes a new one that listens there.
        """
        # Nothing of the base is used but what its users see.
        self._path = path
        self._revive = revive
        self._frontend = vf.Frontend(str(path), 2 * _DEPTH * (_HEAD + _PAYLOAD) + (1 << 20))
        self._free = deque(range(_DEPTH))
        self._requests: dict[int, _Request] = {}
        self._done: deque[tuple[int, int, bytes]] = deque()
        self._inflight: tuple[bytes, int] | None = None
        self.revivals = 0
        self._frontend.negotiate()
        (sectors,) = struct.unpack("<Q", self._frontend.config(0, 8))
        self.size, self.flags = 512 * sectors, 0
        if revive is not None:
            self._ask_for_inflight()
        self._frontend.set_memory()
        for _ in range(_QUEUES):
            self._frontend.add_queue(_RING)

    def _ask_for_inflight(self) -> None:
        body = struct.pack("<QQHH", 0, 0, _QUEUES, _RING)
        self._frontend.send(vf.GET_INFLIGHT_FD, body)
        _, _, region, fds = self._frontend.receive()
        self._inflight = region, fds[0]
        self._frontend.send(vf.SET_INFLIGHT_FD, region, fds)

    # The same as an NBD client

    def send(
        self,
        command: int,
        cookie: int,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        flags: int = 0,
    ) -> None:
        """Send a request without waiting for its reply; a write with FUA is flushed afterwards."""
        slot = self._free.popleft()
        fua = command == nbd.WRITE and bool(flags & nbd.FUA)
        read = length if command == nbd.READ else 0
        self._requests[slot] = _Request(cookie, read, fua)
        if command in (nbd.TRIM, nbd.ZERO):
            unmap = command == nbd.ZERO and not flags & nbd.NO_HOLE
            data = struct.pack("<QII", offset // 512, length // 512, unmap)
            offset = 0
        self._offer(slot, _KINDS[command], offset // 512, data, read)

    def _offer(self, slot: int, kind: int, sector: int, data: bytes, read: int) -> None:
        frontend = self._frontend
        at = frontend.data + slot * (_HEAD + _PAYLOAD)
        struct.pack_into("<IIQ", frontend.mem, at, kind, 0, sector)
        length = read or len(data)
        frontend.mem[at + _HEAD : at + _HEAD + len(data)] = data
        frontend.mem[at + _STATUS] = 0xFF
        half = length // 2 // 512 * 512
        ranges = [(at, 16, 0)]
        for start, end in ((0, half), (half, length)):
            if end > start:
                ranges.append((at + _HEAD + start, end - start, vf.D_WRITE if read else 0))
        ranges.append((at + _STATUS, 1, vf.D_WRITE))
        queue = frontend.queues[slot % _QUEUES]
        head = slot // _QUEUES * _CHAIN
        for index, (place, size, flags) in enumerate(ranges, head):
            more = vf.D_NEXT if index + 1 < head + len(ranges) else 0
            queue.put_desc(index, vf.GUEST_BASE + place, size, flags | more, index + 1)
        queue.offer(head)

    def receive(self) -> tuple[int, int, bytes]:
        """Return (cookie, error, data) of the next request that ended.

        Raises:
            Gone: The back end is gone for good.
        """
        while not self._done:
            self._collect()
            if not self._done:
                self._sleep()
        return self._done.popleft()

    def _collect(self) -> None:
        """Take what the queues give back."""
        for number, queue in enumerate(self._frontend.queues):
            for head, _ in queue.take_used():
                self._finish(head // _CHAIN * _QUEUES + number)

    def _finish(self, slot: int) -> None:
        request = self._requests.pop(slot)
        at = self._frontend.data + slot * (_HEAD + _PAYLOAD)
        status = self._frontend.mem[at + _STATUS]
        if request.then_flush and not status:
            self._requests[slot] = request._replace(then_flush=False)
            self._offer(slot, vf.FLUSH, 0, b"", 0)
            return
        self._free.append(slot)
        data = self._frontend.mem[at + _HEAD : at + _HEAD + request.read]
        self._done.append((request.cookie, status, data))

    def _sleep(self) -> None:
        """Wait for a call; replace the back end if it is gone."""
        frontend = self._frontend
        waiting: list[Any] = [frontend.sock, *(queue.call for queue in frontend.queues)]
        ready, _, _ = select.select(waiting, [], [], 60)
        if not ready:
            raise TimeoutError("the back end does nothing")
        for queue in frontend.queues:
            if queue.call in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(queue.call)
        if frontend.sock in ready:
            if self._revive is None:
                raise nbd.Gone
            self._revive()
            while not self._is_reconnected():
                self._revive()

    def _is_reconnected(self) -> bool:
        """Try a new back end, which may be gone again already."""
        try:
            self._reconnect()
        except (vf.Gone, ConnectionError):
            return False
        return True

    def _reconnect(self) -> None:
        """Hand memory, rings and the requests in flight to a new back end."""
        self.revivals += 1
        frontend = self._frontend
        self._collect()  # what the old one has finished
        frontend.connect_again(str(self._path))
        frontend.negotiate()
        assert self._inflight is not None
        region, fd = self._inflight
        frontend.send(vf.SET_INFLIGHT_FD, region, [fd])
        frontend.set_memory()
        for queue in frontend.queues:
            frontend.start_queue(queue, queue.used_idx)

    def call(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> bytes:
        """Send a request and wait for its end, with nothing else in flight."""
        self.send(command, 1, offset, length, data, flags)
        _, error, result = self.receive()
        if error:
            raise OSError(error, "request failed")
        return result

    def close(self) -> None:
        """Disconnect."""
        if self._inflight is not None:
            os.close(self._inflight[1])
        self._frontend.close()
