# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A VDUSE device: answers the kernel's requests and runs the queues when there is a driver.

The kernel keeps the configuration and speaks to the driver; this side learns three things of it::

    SET_STATUS     DRIVER_OK: all is set up, the queues run; without it: they stop
    GET_VQ_STATE   where a queue that stopped can be gone on with
    UPDATE_IOTLB   some memory is not what it was: it is looked up anew

A daemon that opens a device of an earlier one goes on with its queues: chains that were in flight
are known from a log in a file (:mod:`qsd.wire.virtio.inflight`), and requests of the kernel that
were not answered come again.

Source: Linux Documentation/userspace-api/vduse.rst.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Protocol

from qsd.errors import PeerError
from qsd.exports.vduse_memory import VduseMemory
from qsd.exports.virtio_queue import BlkQueue
from qsd.wire.virtio import vduse
from qsd.wire.virtio.inflight import InflightLog, region_size
from qsd.wire.virtio.ring import SplitRing, area_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.exports.virtio_blk import VirtioBlk


class DeviceFile(Protocol):
    """The kernel's side of a device; see :class:`qsd.exports.vduse_kernel.VduseFile`."""

    fd: int

    def set_up_queue(self, index: int, max_size: int) -> None:
        """Say that there is a queue."""

    def features(self) -> int:
        """Return what was negotiated, 0 while there is no driver."""

    def queue_info(self, index: int) -> vduse.QueueInfo:
        """Return what the driver has set for a queue."""

    def set_kick(self, index: int, fd: int) -> None:
        """Let a queue's driver signal an event."""

    def interrupt(self, index: int) -> None:
        """Call a queue's driver."""

    def set_config(self, offset: int, data: bytes) -> None:
        """Change the configuration space and tell the driver."""

    def memory_of(self, first: int, last: int) -> tuple[vduse.Mapping, int]:
        """Return the first region in a range of addresses, and a descriptor to map it from."""

    def close(self) -> None:
        """Close the file."""


class _Queue:
    """One queue, running or not."""

    __slots__ = ("base", "info", "kick", "runner")

    def __init__(self) -> None:
        self.base = 0
        self.kick = -1
        self.info: vduse.QueueInfo | None = None
        self.runner: BlkQueue | None = None


class VduseDevice:
    """The device while its file is open."""

    __slots__ = (
        "_device",
        "_file",
        "_log",
        "_loop",
        "_memory",
        "_queues",
        "_report",
        "_stopping",
    )

    def __init__(
        self,
        device: VirtioBlk,
        file: DeviceFile,
        log: memoryview | None,
        report: Callable[[str], None],
    ) -> None:
        """Take a device.

        Args:
            device: What to serve.
            file: The kernel's side; it stays the caller's.
            log: Where chains in flight are noted; see :func:`log_size`.
            report: Told what goes wrong.
        """
        self._device = device
        self._file = file
        self._log = log
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._memory = VduseMemory(file.memory_of)
        self._queues = [_Queue() for _ in range(device.num_queues)]
        self._stopping: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Serve until :meth:`stop` is called."""
        try:
            self._go_on()
            while await self._wait():
                await self._handle_next()
        except OSError as exc:
            self._report(f"lost the device: {exc.strerror}")
        finally:
            await self._stop_queues()

    def _go_on(self) -> None:
        """Serve the driver that an earlier daemon has left, if there is one."""
        try:
            if self._file.features():
                self._start_queues()
        except PeerError as exc:
            self._report(str(exc))

    def stop(self) -> None:
        """Let :meth:`run` return soon."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    async def _wait(self) -> bool:
        """Wait for a request; return False if it is time to stop."""
        ready: asyncio.Future[None] = self._loop.create_future()

        def readable() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(self._file.fd, readable)
        try:
            await asyncio.wait([ready, self._stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_reader(self._file.fd)
        return not self._stopping.done()

    # Requests of the kernel

    async def _handle_next(self) -> None:
        try:
            data = os.read(self._file.fd, vduse.MESSAGE_SIZE)
        except BlockingIOError:
            return
        try:
            request = vduse.parse_request(data)
        except PeerError as exc:
            self._report(str(exc))
            self.stop()
            return
        try:
            answer = await self._handle(request)
        except (PeerError, OSError) as exc:
            self._report(str(exc))
            answer = vduse.response(request.number, ok=False)
        os.write(self._file.fd, answer)

    async def _handle(self, request: vduse.Request) -> bytes:
        number = request.number
        if request.kind == vduse.GET_VQ_STATE:
            if request.queue >= len(self._queues):
                raise PeerError(f"there is no queue {request.queue}")
            queue = self._queues[request.queue]
            base = queue.base if queue.runner is None else queue.runner.ring.last_avail
            return vduse.state_response(number, request.queue, base)
        if request.kind == vduse.SET_STATUS:
            if request.status & vduse.STATUS_DRIVER_OK:
                self._start_queues()
            else:
                await self._stop_queues()
        elif request.kind == vduse.UPDATE_IOTLB:
            self._memory.forget(request.first, request.last)
            for queue in self._queues:
                if queue.runner is not None and queue.info is not None:
                    last_avail = queue.runner.ring.last_avail
                    queue.runner.use_ring(self._make_ring(queue.info, last_avail))
        else:
            raise PeerError(f"unknown request {request.kind}")
        return vduse.response(number, ok=True)

    def resized(self) -> None:
        """Tell the driver the new capacity."""
        try:
            self._file.set_config(0, self._device.config()[:8])
        except OSError as exc:
            self._report(f"Failed to update the capacity: {exc.strerror}")

    # Queues

    def _start_queues(self) -> None:
        for index, queue in enumerate(self._queues):
            if queue.runner is None:
                self._start_queue(index, queue)

    def _start_queue(self, index: int, queue: _Queue) -> None:
        info = self._file.queue_info(index)
        if not info.ready:
            return
        ring = self._make_ring(info, info.base)
        log = None
        if self._log is not None:
            size = len(self._log) // len(self._queues)
            if region_size(info.size) > size:
                raise PeerError(f"queue {index} has {info.size} descriptors, which is too many")
            log = InflightLog(self._log[size * index : size * (index + 1)], info.size)
        kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        def call() -> None:
            try:
                self._file.interrupt(index)
            except OSError:
                pass  # the driver has gone; the kernel will say so

        runner = BlkQueue(self._device, ring, kick, call, self._failed, log)
        try:
            self._file.set_kick(index, kick)
            runner.start()
        except BaseException:
            runner.halt()
            os.close(kick)
            raise
        queue.info, queue.kick, queue.runner = info, kick, runner

    def _make_ring(self, info: vduse.QueueInfo, last_avail: int) -> SplitRing:
        find = self._memory.find_user
        desc, avail, used = area_sizes(info.size)
        areas = find(info.desc, desc), find(info.avail, avail), find(info.used, used)
        return SplitRing(info.size, areas, self._memory, self._file.features(), last_avail)

    def _failed(self, exc: PeerError) -> None:
        """A queue was broken by its driver; it stands still until the driver starts anew."""
        self._report(str(exc))

    async def _stop_queues(self) -> None:
        for queue in self._queues:
            if queue.runner is not None:
                queue.runner.halt()
        for index, queue in enumerate(self._queues):
            runner, queue.runner = queue.runner, None
            if runner is not None:
                queue.base = await runner.stop()
                try:
                    self._file.set_kick(index, -1)
                except OSError:
                    pass  # the device is gone, and the event with it
                os.close(queue.kick)


def log_size(num_queues: int, queue_size: int) -> int:
    """Return how many bytes the log for chains in flight takes."""
    return region_size(queue_size) * num_queues
