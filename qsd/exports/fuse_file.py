# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a mounted node does: one regular file, whoever speaks to the kernel.

An engine brings the requests of the kernel here and takes the answers back.  Behaviour towards
applications follows the C daemon, found by trying: writes behind the end fail with EIO, or are cut
short at the end, unless the export is growable; times cannot be set; plain fallocate works only at
the end of the file; a read-only export answers EACCES to writes and EROFS to chmod +w.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final, Protocol

from qsd.aio.fdio import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from qsd.block.info import allocated_size
from qsd.block.mapping import ST_DATA
from qsd.errors import QmpError, os_error
from qsd.wire import fuse

if TYPE_CHECKING:
    from qsd.block.backend import Backend

#: Seconds for which the kernel may keep attributes.
ATTRIBUTES_VALID: Final = 1
#: Bytes; what statfs calls a block.
BLOCK_SIZE: Final = 512

#: What offsets end at, before they turn negative.
_LAST: Final = (1 << 63) - 1
#: Bytes; nodes are no longer than this.
_MAX_LENGTH: Final = (1 << 63) - (1 << 30)
_WRITE_BITS: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class FuseEngine(Protocol):
    """Speaks to the kernel for one mounted file."""

    async def mount(self, path: str, *, allow_other: bool) -> None:
        """Mount the file and begin to serve it.

        Raises:
            OSError: It failed; nothing is mounted.
            QmpError: This engine cannot do it at all.
        """

    async def unmount(self) -> None:
        """Take the mount away, finish what is in the works, and let go of the kernel."""

    def length_changed(self) -> None:
        """Make the kernel ask for the attributes again."""


def _reason(exc: BaseException) -> int:
    """Return the errno that stands behind an error in words, 0 if there is none."""
    cause = exc.__cause__
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.errno or 0
        cause = cause.__cause__
    return 0


class FuseFile:
    """One node as a regular file.  All coroutines raise OSError for the errno to answer with.

    Attributes:
        backend: The node.
        writable: Whether it may be changed.
        growable: Whether writes behind the end make it longer.
        allow_other: Whether users other than the daemon's can get at it.
    """

    __slots__ = (
        "_created_ns",
        "_gid",
        "_growth",
        "_mode",
        "_uid",
        "allow_other",
        "backend",
        "growable",
        "writable",
    )

    def __init__(self, backend: Backend, *, writable: bool, growable: bool) -> None:
        self.backend = backend
        self.writable = writable
        self.growable = growable
        self.allow_other = False
        self._mode = stat.S_IFREG | stat.S_IRUSR | (stat.S_IWUSR if writable else 0)
        self._uid, self._gid = os.getuid(), os.getgid()
        self._created_ns = time.time_ns()
        #: Of two requests that lengthen the node, the second must see what the first did: else the
        #: one that wants less would cut off what the other has just written.
        self._growth = asyncio.Lock()

    # Attributes

    def attributes(self) -> fuse.Attributes:
        """Return what stat(2) shows."""
        node = self.backend.node
        length = node.length()
        return fuse.Attributes(
            length,
            allocated_size(node) or length,  # a file in which nothing is allocated looks full
            self._mode,
            self._uid,
            self._gid,
            self._created_ns,
            self._created_ns,
            self._created_ns,
            node.driver.limits.request_alignment,
        )

    async def set_attributes(self, wanted: fuse.SetAttributes) -> None:
        """Change mode, owner or length, as chmod(2), chown(2) and truncate(2) ask for."""
        owner = fuse.FATTR_UID | fuse.FATTR_GID
        if wanted.valid & ~fuse.FATTR_KNOWN or (wanted.valid & owner and not self.allow_other):
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

    def _check_mode(self, mode: int) -> None:
        if not self.allow_other and mode & (stat.S_IRWXG | stat.S_IRWXO):
            # Nobody else can get at the file, whatever the bits say.
            raise os_error(errno.EPERM)
        if not self.writable and mode & _WRITE_BITS:
            raise os_error(errno.EROFS)

    async def _resize(self, length: int) -> None:
        async with self._growth:
            if length != self.backend.length():
                await self._truncate(length)

    async def _grow(self, length: int, prealloc: str = "off") -> None:
        async with self._growth:
            if length > self.backend.length():
                await self._truncate(length, prealloc)

    async def _truncate(self, length: int, prealloc: str = "off") -> None:
        """Change the length of the node; like any request, not while it is drained."""
        if length > _MAX_LENGTH:
            raise os_error(errno.EIO)
        backend = self.backend
        await backend.wait_resumed()
        backend.begin_nowait()
        try:
            await backend.node.truncate(length, exact=True, prealloc=prealloc)
        except QmpError as exc:
            raise os_error(_reason(exc) or errno.ENOTSUP) from exc
        finally:
            backend.end()

    # Content

    def readable(self, offset: int, length: int) -> int:
        """Return how many bytes a read gives: fewer than asked for at the end of the file."""
        return min(length, fuse.MAX_PAYLOAD, max(self.backend.length() - offset, 0))

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`, which is no longer than what is readable."""
        if view:
            await self.backend.read(offset, view)

    async def write(self, offset: int, data: memoryview) -> int:
        """Write, and return how many bytes were."""
        if not self.writable:
            raise os_error(errno.EACCES)
        end = offset + len(data)
        length = self.backend.length()
        if end > length:
            if self.growable:
                await self._grow(end)
            elif offset >= length:
                raise os_error(errno.EIO)
            else:
                data = data[: length - offset]
        await self.backend.write(offset, data)
        return len(data)

    async def flush(self) -> None:
        """Make what was written durable: fsync(2), and every close(2) too."""
        await self.backend.flush()

    # Space

    async def allocate(self, offset: int, length: int, mode: int) -> None:
        """Do what fallocate(2) does, as far as nodes can."""
        if not self.writable:
            raise os_error(errno.EACCES)
        size = self.backend.length()
        end = offset + length
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            raise os_error(errno.EOPNOTSUPP)
        if mode & FALLOC_PUNCH_HOLE:
            end = min(end, size)
            if offset > end:
                raise os_error(errno.EIO)
            if offset < end:
                await self.backend.discard(offset, end - offset)
        elif mode & FALLOC_ZERO_RANGE:
            if mode & FALLOC_KEEP_SIZE:
                end = min(end, size)
                if offset > end:
                    raise os_error(errno.EIO)
            elif end > size:
                await self._grow(end)
            if offset < end:
                await self.backend.zero(offset, end - offset, 0)
        elif mode or offset < size:
            # Space inside the file cannot be reserved.
            raise os_error(errno.EOPNOTSUPP)
        else:
            # Only what was asked for takes up space, not what lies between; and if there is no
            # room for it, the file has become longer all the same.
            await self._grow(offset)
            await self._grow(end, "falloc")

    async def seek(self, offset: int, whence: int) -> int:
        """Return where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, from `offset` on."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise os_error(errno.EINVAL)
        length = self.backend.length()
        if offset > _LAST and whence == os.SEEK_HOLE:
            raise os_error(errno.EINVAL)  # negative, as the caller meant it
        if offset > length or (offset == length and whence == os.SEEK_DATA):
            raise os_error(errno.ENXIO)
        while offset < length:
            status = await self.backend.block_status(offset, length - offset)
            if bool(status.flags & ST_DATA) == (whence == os.SEEK_DATA):
                break
            offset += status.length
        if offset >= length and whence == os.SEEK_DATA:
            raise os_error(errno.ENXIO)
        return min(offset, length)
