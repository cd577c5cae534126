# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The other engine: libfuse speaks to the kernel, by way of the pyfuse3 package.

It is for systems where :mod:`qsd.exports.fuse_native` does not work, and a second opinion in the
tests.  It can do less: pyfuse3 serves one mount per process and knows neither fallocate nor
SEEK_DATA and SEEK_HOLE, and each request costs a task and a copy.

pyfuse3 keeps its one session in globals of its own, among them the name of the event library it
uses, Trio unless :func:`pyfuse3.asyncio.enable` was called.  That name is what tells here whether
the session is taken, whoever took it, so that no state of ours is needed.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError
from qsd.exports.fuse_file import ATTRIBUTES_VALID, BLOCK_SIZE
from qsd.exports.fuse_mount import unmount
from qsd.wire import fuse

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import TypeVar

    from qsd.aio.tasks import TaskOwner
    from qsd.exports.fuse_file import FuseFile

    T = TypeVar("T")

#: Requests that are worked on at the same time.
_MAX_TASKS: Final = 64
_NAME_MAX: Final = 255
#: The one handle there is; what is open does not matter.
_HANDLE: Final = 0


def _load() -> Any:
    """Import pyfuse3.

    Raises:
        QmpError: It is not installed, or does not work here.
    """
    try:
        import pyfuse3
        import pyfuse3.asyncio
    except ImportError as exc:
        raise QmpError(f"The FUSE engine 'pyfuse3' cannot be used: {exc}") from exc
    return pyfuse3


class Pyfuse3Engine:
    """Serves one mounted file; see :class:`~qsd.exports.fuse_file.FuseEngine`."""

    __slots__ = ("_file", "_library", "_path", "_server", "_tasks", "_workers")

    def __init__(self, file: FuseFile, tasks: TaskOwner) -> None:
        self._library = _load()
        self._file = file
        self._tasks = tasks
        self._workers = file.backend.graph.pool
        self._path = ""
        self._server: asyncio.Task[None] | None = None

    async def mount(self, path: str, *, allow_other: bool) -> None:
        """Mount the file and begin to serve it.

        Raises:
            OSError: It failed; nothing is mounted.
            QmpError: The one session that pyfuse3 has is in use.
        """
        library = self._library
        if library.trio is library.asyncio:
            raise QmpError("The FUSE engine 'pyfuse3' serves only one export at a time")
        library.asyncio.enable()
        options = {"default_permissions", "fsname=/dev/fuse"}
        if allow_other:
            options.add("allow_other")
        try:
            await self._workers.run(library.init, _Operations(library, self._file), path, options)
        except RuntimeError as exc:
            library.asyncio.disable()
            raise OSError(errno.EPERM, str(exc)) from exc
        self._path = path
        self._server = self._tasks.spawn(self._serve(), "FUSE session of pyfuse3")

    async def _serve(self) -> None:
        """Serve until the file is unmounted, by us or by somebody else."""
        await self._library.main(min_tasks=1, max_tasks=_MAX_TASKS)

    async def unmount(self) -> None:
        """Take the mount away and end the session.

        The kernel writes dirty pages back during the unmount, so it is served until then.
        """
        server, self._server = self._server, None
        if server is None:
            return
        if not server.done():
            await self._workers.run(unmount, self._path)
            # A file that is still open keeps the session alive, though nobody finds it any more.
            try:
                self._library.terminate()
            except asyncio.InvalidStateError:
                pass  # a request came in this very turn; before the next the session sees its end
            await asyncio.wait((server,))
        # In the thread that has served: libfuse keeps a pipe for each thread, and closes its own.
        self._library.close(False)
        self._library.asyncio.disable()

    def length_changed(self) -> None:
        """Tell the kernel that its attributes are stale."""
        if self._server is not None and not self._server.done():
            try:
                self._library.invalidate_inode(fuse.ROOT_ID, attr_only=True)
            except OSError as exc:
                # ENOENT: nothing was cached.  ENODEV: unmounted meanwhile.
                if exc.errno not in (errno.ENOENT, errno.ENODEV):
                    raise


class _Operations:
    """What pyfuse3 calls, by the names it wants (pyfuse3 documentation, "Request handlers")."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, library: Any, file: FuseFile) -> None:
        self._library = library
        self._file = file

    def __getattr__(self, name: str) -> Any:
        """Refuse whatever a single regular file has no use for."""
        if name.startswith("_"):
            raise AttributeError(name)

        async def refuse(*_: object) -> None:
            raise self._library.FUSEError(errno.ENOSYS)

        return refuse

    async def _checked(self, answer: Awaitable[T]) -> T:
        """Turn our errors into those of pyfuse3; it would take any other for its own end."""
        try:
            return await answer
        except OSError as exc:
            raise self._library.FUSEError(exc.errno or errno.EIO) from None
        except QmpError:
            raise self._library.FUSEError(errno.EIO) from None

    def init(self) -> None:
        """Nothing needs to be prepared."""

    def stacktrace(self) -> None:
        """Nobody asks for stack traces by an extended attribute."""

    async def getattr(self, inode: int, ctx: object) -> Any:
        """Answer GETATTR."""
        return await self._checked(self._attributes())

    async def _attributes(self) -> Any:
        found = self._file.attributes()
        entry = self._library.EntryAttributes()
        entry.st_ino = fuse.ROOT_ID
        entry.st_nlink = 1
        entry.st_mode = found.mode
        entry.st_uid, entry.st_gid = found.uid, found.gid
        entry.st_size = found.size
        entry.st_blocks = found.allocated // BLOCK_SIZE
        entry.st_blksize = found.blksize
        entry.st_atime_ns, entry.st_mtime_ns = found.atime_ns, found.mtime_ns
        entry.st_ctime_ns = found.ctime_ns
        entry.attr_timeout = entry.entry_timeout = ATTRIBUTES_VALID
        return entry

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: object) -> Any:
        """Answer SETATTR."""
        valid = 0
        for wanted, flag in (
            (fields.update_mode, fuse.FATTR_MODE),
            (fields.update_uid, fuse.FATTR_UID),
            (fields.update_gid, fuse.FATTR_GID),
            (fields.update_size, fuse.FATTR_SIZE),
            (fields.update_atime, fuse.FATTR_ATIME),
            (fields.update_mtime, fuse.FATTR_MTIME),
        ):
            valid |= flag if wanted else 0
        wanted = fuse.SetAttributes(valid, attr.st_size, attr.st_mode, attr.st_uid, attr.st_gid)
        await self._checked(self._file.set_attributes(wanted))
        return await self.getattr(inode, ctx)

    async def open(self, inode: int, flags: int, ctx: object) -> Any:
        """Answer OPEN: the kernel may cache pages as long as the file stays open."""
        return self._library.FileInfo(fh=_HANDLE)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Answer READ."""
        return await self._checked(self._read(off, size))

    async def _read(self, offset: int, size: int) -> bytes:
        content = bytearray(self._file.readable(offset, size))
        with memoryview(content) as view:
            await self._file.read(offset, view)
        return bytes(content)  # pyfuse3 takes nothing but bytes

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Answer WRITE."""
        return await self._checked(self._file.write(off, memoryview(buf)))

    async def flush(self, fh: int) -> None:
        """Answer FLUSH, which every close(2) sends."""
        await self._checked(self._file.flush())

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Answer FSYNC."""
        await self._checked(self._file.flush())

    async def release(self, fh: int) -> None:
        """Answer RELEASE: nothing was kept for the open file."""

    async def forget(self, inode_list: object) -> None:
        """Nothing was kept for the inode."""

    async def statfs(self, ctx: object) -> Any:
        """Answer STATFS."""
        found = self._library.StatvfsData()
        found.f_bsize = found.f_frsize = BLOCK_SIZE
        found.f_namemax = _NAME_MAX
        return found
