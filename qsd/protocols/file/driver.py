# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "file" driver: images in regular files (QMP reference, "BlockdevOptionsFile").

One descriptor number serves a node from opening to closing.  When the file must be opened anew
(because a user of an auto-read-only node wants to write, or because of blockdev-reopen), the new
description is put under the old number with dup2(2): requests that worker threads are just carrying
out finish on the old description, all later ones use the new one, and no other code ever sees a
number that might stand for something else by now.  (Files on FUSE file systems are the exception,
see :mod:`qsd.protocols.file.served`.)

Opening anew takes two steps, which the permission check of the graph brings about::

    check_perms   open the file in the wanted mode, take locks       (fails: nothing changed)
    set_perms     exchange the descriptors, give up old locks
    abort_perms   close the new file, give up new locks

Durability: `_written` counts completed changes, `_durable` is its value at the start of the last
successful fdatasync.  They are equal when there is nothing to make durable.  When fdatasync fails
the kernel may have dropped the dirty pages and would report success next time, so that a buffered
file stays broken: all later flushes fail.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.aio.bounce import BouncePool
from qsd.aio.fdio import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FileIO,
)
from qsd.aio.folios import SLOW_SMALL, SMALL
from qsd.aio.pagemap import FilePages
from qsd.block import perms
from qsd.block.driver import Driver
from qsd.block.loans import Lent
from qsd.block.mapping import MAY_UNMAP, ST_ALLOCATED, ST_DATA, ST_OFFSET, ST_ZERO, Status
from qsd.block.runs import Runs, all_allocated
from qsd.errors import QmpError, os_error
from qsd.protocols.file.copying import PUNCHED, ZEROED, FileCopier
from qsd.protocols.file.holes import HoleSearch
from qsd.protocols.file.image import OpenFile, open_file, seek_size
from qsd.protocols.file.locks import CAN_LOCK, ImageLock
from qsd.protocols.file.prealloc import resize
from qsd.util.extents import Extents
from qsd.util.ranges import align_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qsd.aio.operations import LateOperation
    from qsd.block.late import AnyLate, LatePath
    from qsd.block.mapping import Patch
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.block.piped import Payload
    from qsd.protocols.file.served import ServedFile
    from qsd.qapi.schema.block_protocols import BlockdevOptionsFile

#: What makes an auto-read-only file writable.
_WRITING: Final = perms.WRITE | perms.WRITE_UNCHANGED | perms.RESIZE

_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENODEV)


def _with_gaps(
    offset: int, length: int, patches: Sequence[Patch], kind: int
) -> Iterator[tuple[int, int, int]]:
    """Return the sources of a range that is zero where no patch is."""
    end = offset + length
    for patch in patches:
        if patch.offset > offset:
            yield kind, 0, patch.offset - offset
        yield patch.descriptor, patch.host_offset, patch.length
        offset = patch.offset + patch.length
    if offset < end:
        yield kind, 0, end - offset


class _LateWrites:
    """What a file has to do with writes to its device; see :class:`qsd.block.late.LateLayer`."""

    __slots__ = ("_driver",)

    def __init__(self, driver: FileDriver) -> None:
        self._driver = driver

    def begin(self, operations: Sequence[AnyLate]) -> list[AnyLate]:
        """Let them pass, but for those that would make the file longer."""
        size = self._driver.size
        return [each for each in operations if each.offset + each.length > size]

    def end(self, operations: Sequence[LateOperation]) -> None:
        """Take note that something was written, which is to be made durable some time."""
        self._driver.note_written(len(operations))


class FileDriver(Driver):
    """A regular file.

    Attributes:
        options: The options in force.
        file: What was found when the file was opened.
        data: Where searches found data.
        io: Does the I/O; its `fd` never changes.
        pages: What can be seen of the file without reading it; None where it has no type for that.
        size: Size of the file in bytes as far as we know; others may change it behind our back.
    """

    name: ClassVar[str] = "file"
    changeable_options: ClassVar[frozenset[str]] = frozenset(("drop-cache",))
    resettable_options: ClassVar[frozenset[str]] = frozenset(("x-check-cache-dropped",))
    family: ClassVar[str] = "protocol"
    grows: ClassVar[bool] = True

    __slots__ = (
        "_broken",
        "_can_discard",
        "_can_fill_gaps",
        "_can_seek",
        "_can_zero",
        "_copier",
        "_discard_bytes",
        "_discards",
        "_durable",
        "_failed_discards",
        "_holes",
        "_lock",
        "_next",
        "_perm",
        "_served",
        "_staged",
        "_syncing",
        "_written",
        "data",
        "file",
        "io",
        "options",
        "pages",
        "size",
    )

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.options: BlockdevOptionsFile
        self.file: OpenFile
        self.io: FileIO
        self.pages: FilePages | None = None
        self._copier: FileCopier
        self.size = 0
        self._lock: ImageLock | None = None
        self._perm = 0
        #: What a file on a FUSE file system needs.
        self._served: ServedFile | None = None
        #: A file that blockdev-reopen has prepared, and one that a permission check has.
        self._staged: OpenFile | None = None
        self._next: OpenFile | None = None
        self._written = 0
        self._durable = 0
        self._broken = False
        self._syncing: asyncio.Future[None] | None = None
        #: Data that searches found; holes are not remembered, since any write may fill them.
        self.data = Extents()
        # Kernel features are tried once.
        self._can_zero = True
        self._can_discard = True
        self._can_fill_gaps = True
        self._can_seek = True
        self._holes = HoleSearch(self)
        self._discards = 0
        self._failed_discards = 0
        self._discard_bytes = 0

    # Life cycle

    async def open(self, options: BlockdevOptionsFile, opener: ChildOpener) -> None:
        """Open the file; locks follow with the first permissions."""
        if not options.filename:
            raise QmpError(f"The '{self.name}' block driver requires a file name")
        self.options = options
        self._check_pr_manager()
        self.file = await self._open_in_thread(self._wanted_flags(0), self._check_first)
        graph = self.node.graph
        if self.file.is_served:
            self._served = await self._serve()
            fd = self.file.fd
            self.io = FileIO(fd, self._served.pool(self.file.flags), may_stall=True)
        else:
            fd = self.file.take()
            self.io = FileIO(fd, graph.pool)
            if stat.S_ISREG(self.file.mode):
                self.pages = FilePages(graph.maps, fd)
        self._copier = FileCopier(self.io, graph.tasks)
        self.size = self.file.size
        self._use_file()
        if options.locking != "off" and CAN_LOCK:
            self._lock = ImageLock(fd, options.filename, self.file.place)

    async def _serve(self) -> ServedFile:
        from qsd.protocols.file.served import ServedFile

        served = ServedFile(self.file, self.node.graph.pool)
        try:
            await served.open_ahead(self._possible_flags(), self._open_again)
        except BaseException:
            await served.close()
            raise
        return served

    def is_served(self) -> bool:
        """Whether the file is on a FUSE file system, perhaps an export of this daemon."""
        return self._served is not None

    def _check_pr_manager(self) -> None:
        """Refuse a persistent reservation manager that does not exist; none is ever asked."""
        name = self.options.pr_manager
        if name is None:
            return
        objects = self.node.graph.objects
        if objects is None or objects.find(name) is None:
            raise QmpError(f"No persistent reservation manager with id '{name}'")

    def _check_mode(self, mode: int) -> None:
        """Refuse files that this driver cannot serve, given their st_mode."""
        if not stat.S_ISREG(mode):
            raise QmpError(
                f"'{self.name}' driver requires '{self.options.filename}' to be a regular file"
            )

    def _check_first(self, mode: int) -> None:
        """Check what only matters when the node is made, then the type."""
        if self.options.aio == "native" and not self.node.cache_direct:
            raise QmpError(
                "aio=native was specified, but it requires cache.direct=on, which was not "
                "specified."
            )
        self._check_mode(mode)

    def _find_size(self, fd: int, mode: int) -> int:
        return seek_size(fd, mode)

    def _wanted_flags(self, perm: int) -> int:
        """Return the access mode (and O_DIRECT) for users who need `perm`."""
        node = self.node
        writable = not node.read_only and (not node.auto_read_only or perm & _WRITING)
        flags = os.O_RDWR if writable else os.O_RDONLY
        return flags | os.O_DIRECT if node.cache_direct else flags

    def _possible_flags(self) -> tuple[int, ...]:
        """Return the ways to open the file that a change of permissions may need."""
        return self._wanted_flags(0), self._wanted_flags(_WRITING)

    def _open_now(self, flags: int, check: Callable[[int], None]) -> OpenFile:
        return open_file(self.options.filename, flags, check, self._find_size)

    def _open_again(self, flags: int) -> OpenFile:
        """Open the file in another way than before; blocks."""
        return self._open_now(flags, self._check_mode)

    async def _open_in_thread(self, flags: int, check: Callable[[int], None]) -> OpenFile:
        opened: list[OpenFile] = []
        try:
            await self.node.graph.pool.run(lambda: opened.append(self._open_now(flags, check)))
        except BaseException:
            for file in opened:  # cancelled while the thread was opening it
                file.close()
            raise
        return opened[0]

    def _use_file(self) -> None:
        """Adapt to the way in which the file is open now."""
        direct = bool(self.file.flags & os.O_DIRECT)
        align = self.file.align
        self.limits.request_alignment = align
        self.limits.memory_alignment = 4096
        if direct:
            native = self.options.aio == "native"
            self.io.set_direct(self.io.bounce or BouncePool(), align, align, native=native)
        else:
            self.io.set_direct(None)

    async def close(self) -> None:
        """Close the file; its locks go with it."""
        await self._copier.close()
        if self.pages is not None:
            self.pages.drop()
        if self._served is not None:
            await self._served.close()
        else:
            os.close(self.io.fd)
        self.io.fd = -1

    # Reopening

    async def prepare_reopen(
        self, options: BlockdevOptionsFile, read_only: bool
    ) -> OpenFile | None:
        """Open the file in the new mode if that is another one."""
        flags = self._wanted_flags(self._perm)
        if self._served is not None:
            await self._served.open_ahead(self._possible_flags(), self._open_again)
            self._served.find(flags)
        elif flags != self.file.flags:
            self._staged = await self._open_in_thread(flags, self._check_mode)
        return self._staged

    async def commit_reopen(self, token: OpenFile | None) -> None:
        """Nothing is left to do: set_perms has exchanged the descriptors."""
        self.options = self.node.options.branch
        self._drop(token)

    async def abort_reopen(self, token: OpenFile | None) -> None:
        """Close what was prepared."""
        self._drop(token)

    def _drop(self, token: OpenFile | None) -> None:
        self._staged = None
        if token is not None:
            token.close()

    # Permissions

    def check_perms(self, perm: int, shared: int) -> None:
        """Open the file as the permissions need it, and lock it against other processes."""
        flags = self._wanted_flags(perm)
        new: OpenFile | None = None
        if self._staged is not None and self._staged.flags == flags:
            new = self._staged
        elif flags != self.file.flags:
            new = self._open_again(flags) if self._served is None else self._served.find(flags)
        self._next = new
        try:
            if self._lock is not None and not self.node.force_share:
                self._lock.prepare(perm, shared)
                if new is not None:
                    self._copy_locks(self._lock, new)
        except BaseException:
            self._drop_next()
            raise

    def _copy_locks(self, lock: ImageLock, new: OpenFile) -> None:
        try:
            lock.copy_to(new.fd)
        except BaseException:
            lock.abort()
            raise

    def set_perms(self, perm: int, shared: int) -> None:
        """Exchange the descriptors and give up locks that are not needed any more."""
        self._perm = perm
        new, self._next = self._next, None
        if new is not None:
            if self._served is None:
                os.dup2(new.fd, self.io.fd, inheritable=False)
                new.close()
            else:
                self.io.fd, self.io.pool = new.fd, self._served.pool(new.flags)
                if self._lock is not None:
                    self._lock.move_to(new.fd)
            self.file = new
            if self.pages is not None:
                self.pages.drop()
            self._use_file()
            self.node.refresh_fast_paths()
        if self._lock is not None and not self.node.force_share:
            self._lock.commit()

    def abort_perms(self) -> None:
        """Close the new file and give up its locks."""
        self._drop_next()
        if self._lock is not None and not self.node.force_share:
            self._lock.abort()

    def _drop_next(self) -> None:
        new, self._next = self._next, None
        if new is None or new is self._staged:
            return
        if self._served is None:
            new.close()
        elif self._lock is not None:
            self._lock.leave(new.fd)

    # Geometry

    def length(self) -> int:
        """Return the size of the file."""
        return self.size

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Set the size of the file."""
        self.data.clear()
        pages = self.pages
        if pages is not None:
            pages.suspend()
        try:
            await self.io.call(resize, self.size, length, prealloc)
            self.size = length
        finally:
            self._written += 1
            self.data.clear()
            if pages is not None:
                pages.resume()

    # I/O

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read from the page cache."""
        return self.io.read_nowait(offset, view)

    def read_path(self) -> Callable[[int, memoryview], bool]:
        """Return the function of the descriptor."""
        return self.io.read_nowait

    def view_path(self) -> Callable[[int, int], memoryview | None] | None:
        """Return the function of the pages, unless the page cache is bypassed."""
        if self.pages is None or self.io.bounce is not None:
            return None
        return self.pages.view_nowait

    def view_chunks(self) -> dict[int, memoryview]:
        """Return those of the pages, unless the page cache is bypassed."""
        if self.pages is None or self.io.bounce is not None:
            return {}
        return self.pages.whole

    def later_path(self) -> Callable[[int, memoryview, Callable[[bool], None]], bool] | None:
        """Return the function of the descriptor."""
        return None if self.limits.max_transfer or self.io.may_stall else self.io.read_later

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Read what is not in the page cache, or around it, without a thread."""
        return self.io.read_later(offset, view, done)

    async def read(self, offset: int, view: memoryview) -> None:
        """Read."""
        await self.io.read(offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write to the page cache (fast; the plain way is :meth:`write`).

        This is FileIO.write_nowait in line, because one Python call is a tenth of the whole cost.
        """
        io = self.io
        end = offset + len(view)
        if len(view) > io.max_inline:
            return False
        if end > self.size and not self.grows:
            return False
        before = monotonic()
        watch = io.watch
        if before < watch.until and not watch.may_write(before):
            return False
        if before < io.folios.until and len(view) <= SMALL:
            before = io.folios.prepare(io.fd, offset, before)
        count = os.pwrite(io.fd, view, offset)
        self._written += 1
        if monotonic() - before > SLOW_SMALL:
            io.note_duration(before, len(view))
        node = self.node
        if end > node.wr_highest_offset:
            node.wr_highest_offset = end
        if count != len(view):
            return False
        if end > self.size:
            self._grow(end)
        return True

    def write_views_nowait(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        """Write several buffers to the page cache by one call; else as :meth:`write_nowait`."""
        io = self.io
        end = offset + length
        if length > io.max_inline or (end > self.size and not self.grows):
            return False
        before = monotonic()
        watch = io.watch
        if before < watch.until and not watch.may_write(before):
            return False
        count = os.pwritev(io.fd, views, offset)
        self._written += 1
        io.note_duration(before, length)
        node = self.node
        if end > node.wr_highest_offset:
            node.wr_highest_offset = end
        if count != length:
            return False
        self._grow(end)
        return True

    def receive_nowait(self, offset: int, payload: Payload) -> bool:
        """Write to the page cache."""
        io, end = self.io, offset + payload.length
        before = monotonic()
        if (
            payload.length > io.max_inline
            or (end > self.size and not self.grows)
            or (before < io.watch.until and not io.watch.may_write(before))
        ):
            return False
        try:
            payload.write_to(io.fd, offset)
        finally:
            self._written += 1
        io.note_duration(before, payload.length)
        self.node.wr_highest_offset = max(self.node.wr_highest_offset, end)
        self._grow(end)
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Write around the page cache, without a thread."""
        if offset + len(view) > self.size:
            return False

        def finished(full: bool) -> None:
            self._written += 1
            done(full)

        return self.io.write_later(offset, view, finished)

    def late_path(self, is_write: bool) -> LatePath | None:
        """Reads wait for the device, and so do writes around the page cache."""
        from qsd.block.late import LatePath

        if self.io.may_stall:
            return None
        if not is_write:
            return LatePath(self.io, ())
        return None if self.io.bounce is None else LatePath(self.io, (_LateWrites(self),))

    def note_written(self, count: int) -> None:
        """Count changes that are not durable yet."""
        self._written += count

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write; the file grows if it was shorter than its last sector."""
        try:
            await self.io.write(offset, view)
        finally:
            self._written += 1
        self._grow(offset + len(view))

    def _grow(self, end: int) -> None:
        if end > self.size:
            self.size = end
            self.node.length_changed()

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero a range by fallocate(2), by a hole if that is allowed."""
        try:
            if flags & MAY_UNMAP and self._can_discard:
                if await self._punch(offset, length):
                    return
                self._can_discard = False
            await self._zero_in_place(offset, length)
            self._grow(offset + length)
        finally:
            self._written += 1
            self.data.forget(offset, offset + length)

    async def _zero_in_place(self, offset: int, length: int) -> None:
        """Zero a range so that its space stays reserved."""
        if self._can_zero:
            if await self._try_fallocate(FALLOC_ZERO_RANGE, offset, length):
                return
            self._can_zero = False
        # tmpfs has holes but no zero ranges: make a hole and fill it.
        if self._can_discard and await self._punch(offset, length):
            if await self._try_fallocate(0, offset, length):
                return
        raise os_error(errno.ENOTSUP)

    async def discard(self, offset: int, length: int) -> None:
        """Punch a hole."""
        try:
            if not self._can_discard:
                raise os_error(errno.ENOTSUP)
            if not await self._discard_range(offset, length):
                self._can_discard = False
                raise os_error(errno.ENOTSUP)
        except OSError:
            self._failed_discards += 1
            raise
        finally:
            self._written += 1
            self.data.forget(offset, offset + length)
        self._discards += 1
        self._discard_bytes += length

    async def _punch(self, offset: int, length: int) -> bool:
        """Deallocate a range; False if that is not possible here."""
        return await self._try_fallocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)

    async def _discard_range(self, offset: int, length: int) -> bool:
        """Do what a discard request asks for; False if that is not possible here."""
        return await self._punch(offset, length)

    async def _try_fallocate(self, mode: int, offset: int, length: int) -> bool:
        try:
            await self.io.fallocate(mode, offset, length)
        except OSError as exc:
            if exc.errno in _UNSUPPORTED:
                return False
            raise
        return True

    async def flush(self) -> None:
        """Make what was written durable; concurrent calls share one fdatasync."""
        if self.node.cache_no_flush:
            return
        target = self._written
        while self._durable < target:
            if self._broken:
                raise os_error(errno.EIO)
            if self._syncing is not None:
                await asyncio.shield(self._syncing)
            else:
                await self._sync()
        if self._broken:
            raise os_error(errno.EIO)

    async def _sync(self) -> None:
        covered = self._written
        done = self._syncing = asyncio.get_running_loop().create_future()
        try:
            await self.io.sync()
            self._durable = covered
        except OSError:
            # With O_DIRECT there were no dirty pages to lose.
            self._broken = self.io.bounce is None
            raise
        finally:
            self._syncing = None
            done.set_result(None)

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Return the descriptor, unless it bypasses the page cache or the range ends behind it.

        Nor where a call can take long: who gets the descriptor would make it.
        """
        if offset + length > self.size or self.io.max_inline < 0:
            return None
        return self.io.fd, offset

    def lend_for_write_nowait(
        self, offset: int, length: int
    ) -> tuple[int, int, Callable[[], None]] | None:
        """Return the descriptor, unless the write would go around the page cache or grow the file.

        What was written counts as a change that a flush has to make durable.
        """
        place = self.locate_nowait(offset, length)
        if place is None:
            return None

        def written() -> None:
            self._written += 1
            node = self.node
            if offset + length > node.wr_highest_offset:
                node.wr_highest_offset = offset + length

        return (*place, written)

    def lend_nowait(self, offset: int, length: int) -> Lent | None:
        """Lend what is in the page cache: what is where in a file never changes."""
        place = self.locate_nowait(offset, length)
        return None if place is None else Lent(*place, None)

    def pin_nowait(
        self, offset: int, length: int, holds: list[Callable[[], None]]
    ) -> tuple[int, int, int] | None:
        """Return the descriptor: what is where in a file never changes."""
        place = self.locate_nowait(offset, length)
        return None if place is None else (*place, length)

    async def write_from(self, offset: int, descriptor: int, host_offset: int, length: int) -> bool:
        """Copy in the kernel, unless the file bypasses the page cache, or its calls take long."""
        if self.io.max_inline < 0:
            return False
        try:
            done = await self._copier.copy(descriptor, host_offset, offset, length)
        finally:
            self._written += 1
            self.data.clear()
        if done:
            self._grow(offset + length)
        return done

    async def write_patches(
        self, offset: int, length: int, patches: Sequence[Patch], flags: int
    ) -> int:
        """Copy in the kernel what comes from several places, and zero what lies between."""
        has_gaps = sum(patch.length for patch in patches) != length
        may_unmap = bool(flags & MAY_UNMAP and self._can_discard)
        if self.io.max_inline < 0:
            return 0
        if has_gaps and not (
            self._can_fill_gaps and (may_unmap or self._can_zero) and offset + length <= self.size
        ):
            return 0
        sources = list(_with_gaps(offset, length, patches, PUNCHED if may_unmap else ZEROED))
        try:
            done = await self._copier.gather(sources, offset, length)
        finally:
            self._written += 1
            self.data.clear()
        if not done:
            if has_gaps:
                # Whatever was to blame, the plain way finds out what can be done to zeroes.
                self._can_fill_gaps = False
            return 0
        self._grow(offset + length)
        return length

    def write_behind(self) -> None:
        """Start to write back what was copied here; a node that is never flushed does not."""
        if not self.node.cache_no_flush:
            self._copier.write_behind()

    # Status

    def known_data_end(self, offset: int) -> int:
        """Tell what searches found."""
        return self.data.end_of(offset)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Tell data from holes; data that was found is remembered."""
        if not want_zero or not self._can_seek:
            return Status(length, ST_DATA | ST_OFFSET | ST_ALLOCATED, offset)
        end = self.data.end_of(offset)
        if not end:
            changes = self._written
            try:
                extent = await self.io.next_extent(offset)
            except OSError:
                self._can_seek = False
                return Status(length, ST_DATA | ST_OFFSET | ST_ALLOCATED, offset)
            if extent is None or extent[0] > offset:
                hole = length if extent is None else min(length, extent[0] - offset)
                return Status(hole, ST_ZERO | ST_OFFSET | ST_ALLOCATED, offset)
            end = extent[1]
            if end >= self.size:
                end = align_up(end, self.limits.request_alignment)
            if changes == self._written:
                # Searching the file system costs milliseconds where a file is in many pieces.
                self.data.add(offset, end)
        return Status(min(length, end - offset), ST_DATA | ST_OFFSET | ST_ALLOCATED, offset)

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Fast: several extents at once."""
        if not self._can_seek or self.io.may_stall:
            return None
        return self._holes.runs_nowait(offset, length, limit)

    def extent_path(self) -> Callable[[int, int], tuple[int, int] | None] | None:
        """Return the search's function."""
        return self._holes.extent_nowait if self._can_seek and not self.io.may_stall else None

    def allocated_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Fast: holes too are nobody else's."""
        return all_allocated(length)

    # Description

    def filename(self) -> str | None:
        """Return the file name as given."""
        return self.options.filename

    def image_info(self) -> dict[str, Any]:
        """Tell the space taken on disk."""
        if self._served is not None:
            allocated = self._served.allocated()
        else:
            allocated = os.fstat(self.io.fd).st_blocks * 512
        return {"actual-size": allocated, "dirty-flag": False}

    def driver_stats(self) -> dict[str, Any] | None:
        """Count the discards (QMP reference, "BlockStatsSpecificFile")."""
        return {
            "driver": self.name,
            "discard-nb-ok": self._discards,
            "discard-nb-failed": self._failed_discards,
            "discard-bytes-ok": self._discard_bytes,
        }
