# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The FUSE export: a node appears as a regular file.

The connection to the kernel is served inside the event loop.  One wakeup serves many requests: the
descriptor is read until it is empty (or others must get a turn), and a request that is answered
from memory is answered before the next one is read::

    /dev/fuse ─readv─▶ buffer ─▶ parse ─▶ Backend.read_nowait(offset, reply buffer) ─▶ writev
                                   │
                                   └─ must wait ─▶ coroutine with a buffer of its own ─▶ writev

The kernel caches pages and attributes.  When the length changes behind its back (block_resize), it
is told that the attributes are stale.

Behaviour towards applications follows the C daemon, found by trying: writes behind the end fail
with EIO, or are cut short at the end, unless the export is growable; times cannot be set; plain
fallocate works only at the end of the file; a read-only export answers EACCES to writes and EROFS
to chmod +w.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Any, ClassVar

from qsd.aio import eager
from qsd.aio.fdio import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from qsd.block import perms
from qsd.block.info import allocated_size
from qsd.block.mapping import ST_DATA
from qsd.errors import QmpError, describe, os_error
from qsd.exports.base import Export
from qsd.exports.buffers import BufferPool
from qsd.exports.fuse_mount import check_mountpoint, mount, unmount
from qsd.wire import fuse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.block.backend import Backend
    from qsd.exports.base import ExportRegistry
    from qsd.exports.buffers import Buffer

#: Requests that one wakeup serves before others get a turn.
_TURN = 64
#: Requests in the works at most; beyond it nothing more is read.
_MAX_IN_FLIGHT = 256
#: Seconds for which the kernel may keep attributes.
_ATTRIBUTES_VALID = 1
_BLOCK_SIZE = 512
_WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class FuseExport(Export):
    """One mounted file.

    Attributes:
        mountpoint: Where, as the user gave it.
        growable: Whether writes behind the end make the node longer.
    """

    TYPE: ClassVar[str] = "fuse"

    __slots__ = (
        "_allow_other",
        "_buffer",
        "_created_ns",
        "_fd",
        "_gid",
        "_growth",
        "_handlers",
        "_idle",
        "_in_flight",
        "_loop",
        "_mode",
        "_pool",
        "_uid",
        "growable",
        "mountpoint",
    )

    def __init__(
        self, registry: ExportRegistry, export_id: str, backend: Backend, writable: bool
    ) -> None:
        super().__init__(registry, export_id, backend, writable)
        self.mountpoint = ""
        self.growable = False
        self._allow_other = False
        self._fd = -1
        self._in_flight = 0
        self._idle: asyncio.Future[None] | None = None
        self._mode = stat.S_IFREG | stat.S_IRUSR | (stat.S_IWUSR if writable else 0)
        self._uid, self._gid = os.getuid(), os.getgid()
        self._created_ns = time.time_ns()
        self._pool = BufferPool()
        #: Of two requests that lengthen the node, the second must see what the first did: else the
        #: one that wants less would cut off what the other has just written.
        self._growth = asyncio.Lock()
        self._buffer: Buffer | None = None
        self._loop: asyncio.AbstractEventLoop
        self._handlers: dict[int, Callable[[int, memoryview], Awaitable[None]]] = {
            fuse.INIT: self._init,
            fuse.GETATTR: self._getattr,
            fuse.SETATTR: self._setattr,
            fuse.OPEN: self._open,
            fuse.READ: self._read,
            fuse.WRITE: self._write,
            fuse.STATFS: self._statfs,
            fuse.RELEASE: self._nothing,
            fuse.FLUSH: self._flush,
            fuse.FSYNC: self._flush,
            fuse.FALLOCATE: self._fallocate,
            fuse.LSEEK: self._lseek,
            fuse.DESTROY: self._nothing,
        }

    # Life cycle

    async def start(self, options: Any) -> None:
        """Mount the file.

        Raises:
            QmpError: It is impossible.
        """
        self._take_permissions()
        for export in self.registry.of_type(self.TYPE):
            if isinstance(export, FuseExport) and export.mountpoint == options.mountpoint:
                raise QmpError(f"There already is a FUSE export on '{options.mountpoint}'")
        pool = self.backend.graph.pool
        await pool.run(check_mountpoint, options.mountpoint)
        self.mountpoint = options.mountpoint
        self.growable = bool(options.growable)
        self._loop = asyncio.get_running_loop()
        try:
            self._fd = await self._mount(options.allow_other or "auto")
        except OSError as exc:
            self.mountpoint = ""
            raise QmpError(f"Failed to mount FUSE session to export: {describe(exc)}") from exc
        self._loop.add_reader(self._fd, self._on_readable)

    def _take_permissions(self) -> None:
        """A writable file can be truncated, and nobody relies on its length."""
        perm = perms.CONSISTENT_READ
        if self.writable:
            perm |= perms.WRITE | perms.RESIZE
        self.backend.set_perms(perm, perms.ALL)

    async def _mount(self, allow_other: str) -> int:
        pool = self.backend.graph.pool
        if allow_other != "off":
            try:
                fd = await pool.run(mount, self.mountpoint, allow_other=True)
            except OSError:
                if allow_other == "on":
                    raise
            else:
                self._allow_other = True
                return fd
        return await pool.run(mount, self.mountpoint, allow_other=False)

    def disconnect(self) -> None:
        """Nothing: a mount counts no users."""

    async def released(self) -> None:
        """Unmount and close the connection.

        The kernel writes dirty pages back during the unmount, so it is served until then.
        """
        if self._fd < 0:
            return
        await self.backend.graph.pool.run(unmount, self.mountpoint)
        if self._in_flight:
            self._idle = self._loop.create_future()
            await self._idle
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
        if self._buffer is not None:
            self._buffer.drop()
            self._buffer = None

    def resized(self) -> None:
        """The length changed: the kernel must ask again."""
        if self._fd >= 0:
            self._send(fuse.invalidate_attributes())

    # The connection

    def _on_readable(self) -> None:
        for _ in range(_TURN):
            if self._fd < 0 or self._in_flight >= _MAX_IN_FLIGHT:
                break
            buffer = self._buffer
            if buffer is None or buffer.holders > 1:
                if buffer is not None:
                    buffer.drop()
                buffer = self._buffer = self._pool.take(fuse.BUFFER_SIZE)
            try:
                count = os.readv(self._fd, (buffer.data,))
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno == errno.ENOENT:
                    continue  # the request was interrupted before it was read
                if exc.errno == errno.ENODEV:
                    self._unmounted()
                    return
                raise
            self._dispatch(buffer, count)
        if self._in_flight >= _MAX_IN_FLIGHT and self._fd >= 0:
            # Read on when there is room; the descriptor stays readable, so nothing is lost.
            self._loop.remove_reader(self._fd)

    def _unmounted(self) -> None:
        """Somebody else unmounted the file; the export, and its claim to the place, stays."""
        self._close()

    def _dispatch(self, buffer: Buffer, count: int) -> None:
        if count < fuse.IN_HEADER.size:
            return
        length, opcode, unique, nodeid, *_ = fuse.IN_HEADER.unpack_from(buffer.data)
        if count >= fuse.WRITE_DATA:
            if opcode == fuse.READ and self._read_at_once(buffer, unique):
                return
            if opcode == fuse.WRITE and self._write_at_once(buffer, count, unique):
                return
        if opcode in fuse.SILENT:
            return
        handler = self._handlers.get(opcode)
        if handler is None or nodeid not in (0, fuse.ROOT_ID) or length != count:
            self._send(fuse.reply(unique, error=errno.ENOSYS))
            return
        arguments = buffer.view[fuse.IN_HEADER.size : count]
        buffer.hold()
        self._in_flight += 1
        eager.start(
            self._serve(handler, buffer, unique, arguments), self.registry.tasks, f"FUSE {opcode}"
        )

    async def _serve(
        self,
        handler: Callable[[int, memoryview], Awaitable[None]],
        buffer: Buffer,
        unique: int,
        arguments: memoryview,
    ) -> None:
        try:
            await handler(unique, arguments)
        except OSError as exc:
            self._send(fuse.reply(unique, error=exc.errno or errno.EIO))
        except QmpError:
            self._send(fuse.reply(unique, error=errno.EIO))
        except fuse.ProtocolError:
            self._send(fuse.reply(unique, error=errno.EINVAL))
        finally:
            buffer.drop()
            self._in_flight -= 1
            if not self._in_flight and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            if self._in_flight == _MAX_IN_FLIGHT - 1 and self._fd >= 0:
                self._loop.add_reader(self._fd, self._on_readable)

    def _send(self, *parts: bytes | memoryview) -> None:
        """Write one message.  The kernel takes it whole or not at all, and never waits."""
        if self._fd < 0:
            return
        try:
            os.writev(self._fd, parts)
        except OSError as exc:
            # ENOENT: nobody waits for the reply any more (interrupted), or, for a notification,
            # nothing was cached.  ENODEV: unmounted; the next read says so too.
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    # Fast paths

    def _read_at_once(self, buffer: Buffer, unique: int) -> bool:
        """Fast path: a read whose data is in memory goes from one reused buffer to the kernel."""
        _, offset, length, *_ = fuse.READ_IN.unpack_from(buffer.data, fuse.IN_HEADER.size)
        if offset + length > self.backend.length() or length > fuse.MAX_PAYLOAD:
            return False
        head = fuse.OUT_HEADER.size
        reply = self._pool.take(head + length)
        done = False
        try:
            if self.backend.read_nowait(offset, reply.view[head : head + length]):
                fuse.OUT_HEADER.pack_into(reply.data, 0, head + length, 0, unique)
                self._send(reply.view[: head + length])
                done = True
        except OSError:
            pass  # the slow path meets the same error and reports it
        reply.drop()
        return done

    def _write_at_once(self, buffer: Buffer, count: int, unique: int) -> bool:
        """Fast path: a write that is but a memory copy."""
        _, offset, length, *_ = fuse.READ_IN.unpack_from(buffer.data, fuse.IN_HEADER.size)
        start = fuse.WRITE_DATA
        if not self.writable or count != start + length or offset + length > self.backend.length():
            return False
        try:
            if not self.backend.write_nowait(offset, buffer.view[start:count]):
                return False
        except OSError:
            return False
        self._send(fuse.reply(unique, fuse.write_reply(length)))
        return True

    # Operations

    async def _init(self, unique: int, arguments: memoryview) -> None:
        major, minor, readahead, flags = fuse.parse_init(arguments)
        if major != fuse.MAJOR:
            raise os_error(errno.EPROTO)
        self._send(fuse.reply(unique, fuse.init_reply(minor, readahead, flags)))

    async def _nothing(self, unique: int, arguments: memoryview) -> None:
        self._send(fuse.reply(unique))

    def _attributes(self) -> fuse.Attributes:
        node = self.backend.node
        length = node.length()
        allocated = allocated_size(node)
        return fuse.Attributes(
            length,
            length if allocated is None else allocated,
            self._mode,
            self._uid,
            self._gid,
            self._created_ns,
            self._created_ns,
            self._created_ns,
            node.driver.limits.request_alignment,
        )

    async def _getattr(self, unique: int, arguments: memoryview) -> None:
        result = fuse.attributes_reply(self._attributes(), _ATTRIBUTES_VALID)
        self._send(fuse.reply(unique, result))

    async def _setattr(self, unique: int, arguments: memoryview) -> None:
        wanted = fuse.parse_setattr(arguments)
        owner = fuse.FATTR_UID | fuse.FATTR_GID
        if wanted.valid & ~fuse.FATTR_KNOWN or (wanted.valid & owner and not self._allow_other):
            raise os_error(errno.ENOTSUP)
        if wanted.valid & fuse.FATTR_MODE:
            self._check_mode(wanted.mode)
        if wanted.valid & fuse.FATTR_SIZE:
            if not self.writable:
                raise os_error(errno.EACCES)
            await self._resize(wanted.size)
        if wanted.valid & fuse.FATTR_MODE:
            self._mode = stat.S_IFREG | wanted.mode & 0o7777
        if wanted.valid & fuse.FATTR_UID:
            self._uid = wanted.uid
        if wanted.valid & fuse.FATTR_GID:
            self._gid = wanted.gid
        await self._getattr(unique, arguments)

    def _check_mode(self, mode: int) -> None:
        if not self.writable and mode & _WRITE_BITS:
            raise os_error(errno.EROFS)
        if not self._allow_other and mode & (stat.S_IRWXG | stat.S_IRWXO):
            # Nobody else can get at the file, whatever the bits say.
            raise os_error(errno.EPERM)

    async def _resize(self, length: int) -> None:
        async with self._growth:
            if length != self.backend.length():
                await self.backend.node.truncate(length, exact=True)

    async def _grow(self, length: int, prealloc: str = "off") -> None:
        async with self._growth:
            if length > self.backend.length():
                await self.backend.node.truncate(length, exact=True, prealloc=prealloc)

    async def _open(self, unique: int, arguments: memoryview) -> None:
        self._send(fuse.reply(unique, fuse.open_reply()))

    async def _read(self, unique: int, arguments: memoryview) -> None:
        offset, length = fuse.parse_io(arguments)
        length = min(length, fuse.MAX_PAYLOAD, max(self.backend.length() - offset, 0))
        buffer = self._pool.take(max(length, 1))
        try:
            view = buffer.view[:length]
            if length:
                await self.backend.read(offset, view)
            self._send(fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size + length, 0, unique), view)
        finally:
            buffer.drop()

    async def _write(self, unique: int, arguments: memoryview) -> None:
        if not self.writable:
            raise os_error(errno.EACCES)
        offset, length = fuse.parse_io(arguments)
        data = arguments[fuse.READ_IN.size :]
        if length != len(data):
            raise fuse.ProtocolError("WRITE with another length than its data")
        end = offset + length
        if end > self.backend.length():
            if self.growable:
                await self._grow(end)
            elif offset >= self.backend.length():
                raise os_error(errno.EIO)
            else:
                data = data[: self.backend.length() - offset]
        await self.backend.write(offset, data)
        self._send(fuse.reply(unique, fuse.write_reply(len(data))))

    async def _flush(self, unique: int, arguments: memoryview) -> None:
        await self.backend.flush()
        self._send(fuse.reply(unique))

    async def _statfs(self, unique: int, arguments: memoryview) -> None:
        self._send(fuse.reply(unique, fuse.statfs_reply(_BLOCK_SIZE)))

    async def _fallocate(self, unique: int, arguments: memoryview) -> None:
        offset, length, mode = fuse.parse_fallocate(arguments)
        if not self.writable:
            raise os_error(errno.EACCES)
        size = self.backend.length()
        end = offset + length
        if mode & FALLOC_KEEP_SIZE:
            end = min(end, size)
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            raise os_error(errno.EOPNOTSUPP)
        if mode & FALLOC_PUNCH_HOLE:
            if offset < end:
                await self.backend.discard(offset, end - offset)
        elif mode & FALLOC_ZERO_RANGE:
            if end > size:
                await self._grow(end)
            if offset < end:
                await self.backend.zero(offset, end - offset, 0)
        elif mode or offset < size:
            # Space inside the file cannot be reserved.
            raise os_error(errno.EOPNOTSUPP)
        else:
            await self._grow(end, "falloc")
        self._send(fuse.reply(unique))

    async def _lseek(self, unique: int, arguments: memoryview) -> None:
        offset, whence = fuse.parse_lseek(arguments)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise os_error(errno.EINVAL)
        length = self.backend.length()
        if offset > length or (offset == length and whence == os.SEEK_DATA):
            raise os_error(errno.ENXIO)
        while offset < length:
            status = await self.backend.block_status(offset, length - offset)
            if bool(status.flags & ST_DATA) == (whence == os.SEEK_DATA):
                break
            offset += status.length
        if offset >= length and whence == os.SEEK_DATA:
            raise os_error(errno.ENXIO)
        self._send(fuse.reply(unique, fuse.lseek_reply(min(offset, length))))
