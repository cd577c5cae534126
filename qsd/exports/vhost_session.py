# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One front end of a vhost-user device: messages in, replies out, memory mapped, queues run.

Messages are few and are handled one after the other by one task; the queues run beside it on their
own events.  A queue runs once the front end has given its size, its addresses and an event to be
kicked by, and has enabled it, and stops when the front end asks for its state (GET_VRING_BASE).
Memory that is replaced stays mapped until the last request that uses it has ended.

Source: QEMU documentation, "Vhost-user Protocol".
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from qsd.errors import PeerError
from qsd.exports import vhost_log
from qsd.exports.vhost_log import DirtyLog
from qsd.exports.vhost_trap import trap
from qsd.exports.virtio_queue import BlkQueue
from qsd.wire import vhost_user as vhost
from qsd.wire.virtio import blk
from qsd.wire.virtio.inflight import InflightLog, region_size
from qsd.wire.virtio.memory import GuestMemory, Region
from qsd.wire.virtio.ring import F_VERSION_1, SplitRing, area_sizes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.exports.virtio_blk import VirtioBlk

_PROTOCOL_FEATURES: Final = (
    vhost.P_MQ
    | (vhost.P_LOG_SHMFD if vhost_log.is_possible() else 0)
    | vhost.P_REPLY_ACK
    | vhost.P_BACKEND_REQ
    | vhost.P_CONFIG
    | vhost.P_INFLIGHT_SHMFD
    | vhost.P_CONFIGURE_MEM_SLOTS
)
#: Bytes of control data for the descriptors of one message.
_ANCILLARY: Final = socket.CMSG_SPACE(4 * (vhost.MAX_FDS + 1))
#: Feature bits that the transport adds to the device's.
_TRANSPORT_FEATURES: Final = vhost.F_PROTOCOL_FEATURES | (
    vhost.F_LOG_ALL if vhost_log.is_possible() else 0
)
#: Bytes; an inflight region is no larger: every queue with the longest ring.
_MAX_INFLIGHT: Final = 1 << 30
#: Bytes; a log is no longer: 64 TiB of guest addresses.
_MAX_LOG: Final = 2 << 30


class _Queue:
    """What the front end has told of one queue."""

    __slots__ = ("address", "base", "call", "enabled", "kick", "runner", "size")

    def __init__(self) -> None:
        self.size = 0
        self.address: vhost.RingAddress | None = None
        self.base = 0
        self.kick = -1
        self.call = -1
        self.enabled = False
        self.runner: BlkQueue | None = None

    def close(self) -> None:
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = -1


class VhostSession:
    """A connection, from its first message to its end."""

    __slots__ = (
        "_backend_channel",
        "_decoder",
        "_device",
        "_failure",
        "_features",
        "_handlers",
        "_inflight",
        "_log",
        "_loop",
        "_memory",
        "_protocol",
        "_queues",
        "_sock",
    )

    def __init__(self, device: VirtioBlk, sock: socket.socket) -> None:
        """Take a connection.

        Args:
            device: What to serve.
            sock: The connected socket, the session's from now on.
        """
        sock.setblocking(False)
        self._device = device
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = vhost.Decoder()
        self._features = 0
        self._protocol = 0
        self._memory = GuestMemory([])
        self._queues: dict[int, _Queue] = {}
        self._inflight: tuple[memoryview, int] | None = None
        self._log: DirtyLog | None = None
        self._backend_channel: socket.socket | None = None
        self._failure: str | None = None
        self._handlers: dict[int, Callable[[vhost.Message], Awaitable[bytes | None]]] = {
            vhost.NONE: self._nothing,
            vhost.GET_FEATURES: self._get_features,
            vhost.SET_FEATURES: self._set_features,
            vhost.SET_OWNER: self._nothing,
            vhost.RESET_OWNER: self._nothing,
            vhost.SET_MEM_TABLE: self._set_mem_table,
            vhost.SET_LOG_BASE: self._set_log_base,
            vhost.SET_LOG_FD: self._with_fd,
            vhost.SET_VRING_NUM: self._set_vring_num,
            vhost.SET_VRING_ADDR: self._set_vring_addr,
            vhost.SET_VRING_BASE: self._set_vring_base,
            vhost.GET_VRING_BASE: self._get_vring_base,
            vhost.SET_VRING_KICK: self._set_vring_kick,
            vhost.SET_VRING_CALL: self._set_vring_call,
            vhost.SET_VRING_ERR: self._set_vring_err,
            vhost.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            vhost.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            vhost.GET_QUEUE_NUM: self._get_queue_num,
            vhost.SET_VRING_ENABLE: self._set_vring_enable,
            vhost.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            vhost.GET_CONFIG: self._get_config,
            vhost.SET_CONFIG: self._set_config,
            vhost.GET_INFLIGHT_FD: self._get_inflight_fd,
            vhost.SET_INFLIGHT_FD: self._set_inflight_fd,
            vhost.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            vhost.ADD_MEM_REG: self._add_mem_reg,
            vhost.REM_MEM_REG: self._rem_mem_reg,
        }

    # Life cycle

    async def run(self) -> str | None:
        """Serve until the connection ends; return why it was ended, None if the peer hung up."""
        try:
            while (message := await self._receive()) is not None:
                await self._handle(message)
        except PeerError as exc:
            self._failure = self._failure or str(exc)
        except OSError:
            pass  # the connection broke; that is an end like any other
        finally:
            await self._close()
        return self._failure

    def hang_up(self) -> None:
        """End the connection; :meth:`run` returns soon."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def _ring_failed(self, exc: PeerError) -> None:
        self._fail(str(exc))

    def _fail(self, why: str) -> None:
        """End the connection for the first reason that there is."""
        if self._failure is None:
            self._failure = why
            self.hang_up()

    async def _close(self) -> None:
        for queue in self._queues.values():
            if queue.runner is not None:
                queue.runner.halt()
        for queue in self._queues.values():
            if queue.runner is not None:
                await queue.runner.stop()
            queue.close()
        self._queues.clear()
        # Whoever is told of lost memory must not keep it mapped.
        self._memory = GuestMemory([])
        self._inflight = self._log = None
        _close_all(self._decoder.fds)
        self._sock.close()
        if self._backend_channel is not None:
            self._backend_channel.close()
            self._backend_channel = None
        # What one driver chose is not the next one's choice.
        self._device.set_writeback(True)

    # Messages

    async def _receive(self) -> vhost.Message | None:
        while True:
            try:
                data, control, flags, _ = self._sock.recvmsg(
                    self._decoder.wanted(), _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
                continue
            fds = _descriptors(control)
            if flags & socket.MSG_CTRUNC:
                _close_all(fds)
                raise PeerError("too many descriptors in one message")
            if not data:
                _close_all(fds)
                return None
            message = self._decoder.feed(data, fds)
            if message is not None:
                return message

    async def _wait(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        fd = self._sock.fileno()

        def ready() -> None:
            if not future.done():
                future.set_result(None)

        add(fd, ready)
        try:
            await future
        finally:
            remove(fd)

    async def _send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        while True:
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent:
                data, fds = data[sent:], ()
            if not data:
                return
            await self._wait(self._loop.add_writer, self._loop.remove_writer)

    async def _handle(self, message: vhost.Message) -> None:
        handler = self._handlers.get(message.request)
        # Whether it was agreed on or not (REPLY_ACK): who does not want an answer does not ask.
        answers = message.needs_reply
        try:
            if handler is None:
                raise PeerError(f"unknown request {message.request}", survives=True)
            body = await handler(message)
        except PeerError as exc:
            if not exc.survives or not answers:
                raise
            # Protocol, "REPLY_ACK": non-zero says that the request failed.
            await self._send(vhost.reply(message.request, vhost.number(1)))
            return
        finally:
            _close_all(message.fds)
        if body is not None:
            await self._send(vhost.reply(message.request, body))
        elif answers:
            await self._send(vhost.reply(message.request, vhost.number(0)))

    def _queue(self, index: int) -> _Queue:
        if index >= self._device.num_queues:
            raise PeerError(f"there is no queue {index}")
        return self._queues.setdefault(index, _Queue())

    def config_changed(self) -> None:
        """Tell the front end to read the configuration anew."""
        if self._backend_channel is not None:
            try:
                self._backend_channel.send(vhost.backend_request(vhost.BACKEND_CONFIG_CHANGE))
            except OSError:
                pass  # it does not read; the next message says the same

    # Features and configuration

    async def _nothing(self, message: vhost.Message) -> None:
        """Accepted, and without meaning here."""

    async def _with_fd(self, message: vhost.Message) -> None:
        """Accepted, and without meaning here, if a descriptor came along."""
        if len(message.fds) != 1:
            raise PeerError("a message without the descriptor it needs")

    async def _get_features(self, message: vhost.Message) -> bytes:
        return vhost.number(self._device.features() | _TRANSPORT_FEATURES)

    async def _set_features(self, message: vhost.Message) -> None:
        # Bits that were not offered mean nothing, as to the C daemon.
        offered = self._device.features() | _TRANSPORT_FEATURES
        features = vhost.parse_number(message.body) & offered
        if not features & F_VERSION_1:
            raise PeerError("a driver for legacy devices")
        self._features = features
        self._log_again()

    async def _get_protocol_features(self, message: vhost.Message) -> bytes:
        return vhost.number(_PROTOCOL_FEATURES)

    async def _set_protocol_features(self, message: vhost.Message) -> None:
        self._protocol = vhost.parse_number(message.body) & _PROTOCOL_FEATURES

    async def _get_queue_num(self, message: vhost.Message) -> bytes:
        return vhost.number(self._device.num_queues)

    async def _get_config(self, message: vhost.Message) -> bytes:
        offset, size, _ = vhost.parse_config(message.body)
        return vhost.config(
            offset, self._device.config().ljust(vhost.MAX_CONFIG, b"\0")[offset : offset + size]
        )

    async def _set_config(self, message: vhost.Message) -> None:
        offset, size, data = vhost.parse_config(message.body)
        if offset != blk.WRITEBACK_OFFSET or size != 1 or len(data) != 1:
            raise PeerError("only `writeback` of the configuration can be written", survives=True)
        self._device.set_writeback(bool(data[0]))

    async def _set_backend_req_fd(self, message: vhost.Message) -> None:
        fd = _take_fd(message)
        try:
            channel = socket.socket(fileno=fd)
        except OSError as exc:
            os.close(fd)
            raise PeerError("the backend channel is no socket") from exc
        channel.setblocking(False)
        if self._backend_channel is not None:
            self._backend_channel.close()
        self._backend_channel = channel

    # Memory

    async def _set_mem_table(self, message: vhost.Message) -> None:
        regions = vhost.parse_regions(message.body)
        if len(regions) != len(message.fds):
            raise PeerError("as many descriptors as memory regions are needed")
        self._use_memory(
            [self._map_region(region, fd) for region, fd in zip(regions, message.fds, strict=True)]
        )

    async def _get_max_mem_slots(self, message: vhost.Message) -> bytes:
        return vhost.number(vhost.MAX_MEM_SLOTS)

    async def _add_mem_reg(self, message: vhost.Message) -> None:
        region = vhost.parse_region(message.body)
        if len(message.fds) != 1:
            raise PeerError("a memory region needs one descriptor")
        if len(self._memory.regions) >= vhost.MAX_MEM_SLOTS:
            raise PeerError("too many memory regions", survives=True)
        self._use_memory([*self._memory.regions, self._map_region(region, message.fds[0])])

    async def _rem_mem_reg(self, message: vhost.Message) -> None:
        gone = vhost.parse_region(message.body)
        left = [
            region
            for region in self._memory.regions
            if (region.guest, region.size, region.user) != (gone.guest, gone.size, gone.user)
        ]
        if len(left) == len(self._memory.regions):
            raise PeerError("there is no such memory region", survives=True)
        self._use_memory(left)

    def _map_region(self, region: vhost.RegionAddress, fd: int) -> Region:
        view = _map(fd, region.offset, region.size, self._lost_memory)
        return Region(region.guest, region.size, region.user, view)

    def _lost_memory(self) -> None:
        """The front end took memory away: end this, for nothing in it can be believed."""
        self._fail("memory that is shared was taken away")

    def _use_memory(self, regions: list[Region]) -> None:
        """Look everything up in new memory; rings that run go on in it."""
        self._memory = GuestMemory(regions)
        for queue in self._queues.values():
            runner = queue.runner
            if runner is not None:
                runner.use_ring(self._make_ring(queue, runner.ring.last_avail))

    # Logging of what is written to memory

    async def _set_log_base(self, message: vhost.Message) -> bytes:
        """Take the log; the front end waits for the answer (protocol, "Communication")."""
        size, offset = vhost.parse_log(message.body)
        if len(message.fds) != 1 or size > _MAX_LOG:
            raise PeerError("a log that cannot be used")
        self._log = DirtyLog(_map(message.fds[0], offset, size, self._lost_memory))
        self._log_again()
        return vhost.number(size)

    def _log_again(self) -> None:
        """Let the queues that run log as it is wanted now."""
        for queue in self._queues.values():
            self._log_queue(queue)

    def _log_queue(self, queue: _Queue) -> None:
        if queue.runner is not None:
            log = self._log if self._features & vhost.F_LOG_ALL else None
            queue.runner.log_writes(log, queue.address.log if queue.address is not None else None)

    # Queues

    async def _set_vring_num(self, message: vhost.Message) -> None:
        index, size = vhost.parse_state(message.body)
        self._stopped(index).size = size

    async def _set_vring_addr(self, message: vhost.Message) -> None:
        address = vhost.parse_ring_address(message.body)
        queue = self._queue(address.queue)
        for place in (address.desc, address.used, address.avail):
            self._memory.find_user(place, 1)
        queue.address = address
        if queue.runner is not None:
            queue.runner.use_ring(self._make_ring(queue, queue.runner.ring.last_avail))
            self._log_queue(queue)
        self._maybe_run(address.queue, queue)

    async def _set_vring_base(self, message: vhost.Message) -> None:
        index, base = vhost.parse_state(message.body)
        self._stopped(index).base = base & 0xFFFF

    def _stopped(self, index: int) -> _Queue:
        queue = self._queue(index)
        if queue.runner is not None:
            raise PeerError(f"queue {index} is running")
        return queue

    async def _get_vring_base(self, message: vhost.Message) -> bytes:
        """Stop a queue (protocol, "Ring states") and say where it can be gone on with."""
        index, _ = vhost.parse_state(message.body)
        queue = self._queue(index)
        runner, queue.runner = queue.runner, None
        if runner is not None:
            queue.base = await runner.stop()
        queue.close()
        return vhost.state(index, queue.base)

    async def _set_vring_kick(self, message: vhost.Message) -> None:
        index, has_fd = vhost.parse_ring_fd(message.body)
        queue = self._stopped(index)
        if queue.kick >= 0:
            os.close(queue.kick)
            queue.kick = -1
        if not has_fd:
            raise PeerError("queues are served on kicks only", survives=True)
        queue.kick = _take_event(message)
        if not self._features & vhost.F_PROTOCOL_FEATURES:
            # Protocol, "Ring states": without protocol features a ring is enabled by itself.
            queue.enabled = True
        self._maybe_run(index, queue)

    async def _set_vring_call(self, message: vhost.Message) -> None:
        index, has_fd = vhost.parse_ring_fd(message.body)
        queue = self._queue(index)
        old, queue.call = queue.call, _take_event(message) if has_fd else -1
        if queue.runner is not None:
            queue.runner.replace_call(_caller(queue.call))
        if old >= 0:
            os.close(old)

    async def _set_vring_err(self, message: vhost.Message) -> None:
        index, has_fd = vhost.parse_ring_fd(message.body)
        self._queue(index)
        if has_fd:
            await self._with_fd(message)

    async def _set_vring_enable(self, message: vhost.Message) -> None:
        index, enabled = vhost.parse_state(message.body)
        queue = self._queue(index)
        queue.enabled = bool(enabled)
        if not enabled and queue.runner is not None:
            runner, queue.runner = queue.runner, None
            queue.base = await runner.stop()
        self._maybe_run(index, queue)

    def _maybe_run(self, index: int, queue: _Queue) -> None:
        if queue.runner is not None or not queue.enabled or queue.kick < 0:
            return
        if queue.address is None:
            return  # it may still come
        log = None
        if self._inflight is not None:
            region, size = self._inflight
            start = region_size(size) * index
            if size != queue.size or start + region_size(size) > len(region):
                raise PeerError("the inflight region does not fit the queues")
            log = InflightLog(region[start : start + region_size(size)], size)
        runner = BlkQueue(
            self._device,
            self._make_ring(queue, queue.base),
            queue.kick,
            _caller(queue.call),
            self._ring_failed,
            log,
        )
        try:
            runner.start()
        except OSError as exc:
            raise PeerError("the kick descriptor cannot be waited for") from exc
        queue.runner = runner
        self._log_queue(queue)

    def _make_ring(self, queue: _Queue, last_avail: int) -> SplitRing:
        address = queue.address
        if address is None:
            raise PeerError("a queue without addresses")
        find = self._memory.find_user
        desc, avail, used = area_sizes(queue.size)
        areas = find(address.desc, desc), find(address.avail, avail), find(address.used, used)
        return SplitRing(queue.size, areas, self._memory, self._features, last_avail)

    # Inflight tracking

    async def _get_inflight_fd(self, message: vhost.Message) -> None:
        _, _, queues, queue_size = vhost.parse_inflight(message.body)
        size = region_size(queue_size) * queues
        if not size or queues > self._device.num_queues:
            raise PeerError("an inflight region for other queues than there are")
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            body = vhost.inflight(size, queues, queue_size)
            await self._send(vhost.reply(message.request, body), (fd,))
        finally:
            os.close(fd)

    async def _set_inflight_fd(self, message: vhost.Message) -> None:
        size, offset, queues, queue_size = vhost.parse_inflight(message.body)
        if len(message.fds) != 1 or size > _MAX_INFLIGHT or size < region_size(queue_size) * queues:
            raise PeerError("an inflight region that is too small")
        self._inflight = _map(message.fds[0], offset, size, self._lost_memory), queue_size


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
    return fds


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _take_fd(message: vhost.Message) -> int:
    if len(message.fds) != 1:
        raise PeerError("a message without the descriptor it needs")
    return message.fds.pop()


def _take_event(message: vhost.Message) -> int:
    fd = _take_fd(message)
    # Neither a kick that was taken by another nor a full counter may hold up the daemon.
    os.set_blocking(fd, False)
    return fd


def _caller(event: int) -> Callable[[], None]:
    """Return a function that signals an event, -1 for none."""

    def call() -> None:
        if event >= 0:
            try:
                os.write(event, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass  # a full counter wakes the driver too; any other end is the driver's own

    return call


def _map(fd: int, offset: int, size: int, lost: Callable[[], None]) -> memoryview:
    """Map a file shared; the view keeps the mapping alive.

    Args:
        fd: The file.
        offset: Where the view begins.
        size: Bytes of the view.
        lost: Called when memory is missing that was there.

    Raises:
        PeerError: It is not possible, or the file is shorter: its memory could not be touched.
    """
    try:
        if offset + size > os.fstat(fd).st_size:
            raise PeerError("a memory region is longer than its file")
        # From the beginning of the file: an offset need not be a multiple of the page size.
        mapping = mmap.mmap(fd, offset + size)
    except (OSError, ValueError, OverflowError) as exc:
        raise PeerError(f"a memory region cannot be mapped: {exc}") from exc
    guard = trap()
    if guard is not None:
        guard.guard(mapping, lost)
    return memoryview(mapping)[offset : offset + size]
