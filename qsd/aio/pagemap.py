# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Cached files as memory that only the kernel looks at.

A system call that takes memory, such as sendmsg(2), can take it straight from a shared mapping of
an image file: no read into a buffer goes before it, and one copy less is made.  The bytes are those
of the moment of the call, as with a read.

Two things could go wrong, and this module is about keeping them away:

* A page that is not in the page cache would have to be read while the event loop waits.  So a view
  is only given of windows of the file that were wholly cached a moment ago, as cachestat(2) told.
* A page behind the end of the file (somebody made it shorter) or on a broken disk kills a process
  that touches it with SIGBUS.  A system call says EFAULT instead.  So **Python code must never look
  into a view**, copy it or compare it; it may only be handed to a system call, at once, and whoever
  does that reads the bytes in the plain way when the call says EFAULT.  The one exception is who
  has set a trap for SIGBUS that calls :meth:`PageMaps.lose`, and compares :attr:`PageMaps.losses`
  before and after: if it has changed, zeroes may have been seen in the place of data, and
  :meth:`PageMaps.settle` is to be called.

Measured with 32 reads of 4 KiB that are answered together on a unix socket: 3.1 us of processor
time for each, 4.9 us by preadv(2) into a buffer and send(2).

Memory: mapped pages count as resident in this process, although they are the page cache's.  So no
more than `_BUDGET` is mapped at a time, what nobody used for some seconds is given back, and a
process that has little to do gives back all pages at once but keeps the mappings.  A busy one does
not: 64 MiB of small pages cost 4 ms to give back, and 4 ms to take again (large ones 0.03 and 0.1).
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from time import process_time
from typing import TYPE_CHECKING, Final

from qsd.aio.pagecache import CacheProbe

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is known to be cached is known of pieces of this size.  To ask takes some 10 us, because the
#: kernel looks at every page.
_WINDOW_BITS: Final = 19
_WINDOW: Final = 1 << _WINDOW_BITS
_WINDOW_MASK: Final = _WINDOW - 1
#: Bytes; what is mapped and given back at once, which takes a millisecond.
CHUNK_BITS: Final = 26
CHUNK: Final = 1 << CHUNK_BITS
CHUNK_MASK: Final = CHUNK - 1
#: Part of the machine's memory that may be mapped.
_BUDGET: Final = 8
#: Seconds between two looks whether somebody had to wait for a page.
_TURN: Final = 2.0
#: Turns for which it is believed what the kernel said of a window, if nobody had to wait.
_TRUST: Final = 4
#: Turns after which an unused chunk gives way to another one, and is given back.
_YIELDS_AFTER: Final = _TRUST + 1
_IDLE_AFTER: Final = 2 * _TRUST
#: Chunks given back in one turn because nobody used them.
_RELEASES: Final = 4
#: Seconds of processor time in a turn; who needed less has little to do.
_LITTLE: Final = _TURN / 50
#: Chunks whose pages are given back in one turn.
_RETURNS: Final = 16

#: File systems (statfs(2), f_type) that answer a page fault in the page cache from it: ext2 to
#: ext4, XFS, Btrfs, tmpfs, F2FS.  FUSE is out: the file might be an export of this very process.
_FILE_SYSTEMS: Final = frozenset((0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010))
_STATFS_SIZE: Final = 256


@functools.cache
def _mapper() -> Callable[[int, int], memoryview]:
    """Return a function that maps a chunk of a file: descriptor, offset.

    Python's own mmap keeps a duplicate of the descriptor, and so would the image's locks live on.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    map_memory = libc.mmap
    map_memory.restype = ctypes.c_void_p
    map_memory.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    unmap = libc.munmap
    unmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address_of = ctypes.addressof
    protection, shared, failed = 1, 1, ctypes.c_void_p(-1).value  # PROT_READ, MAP_SHARED

    class Chunk(ctypes.Array):  # type: ignore[type-arg]
        """Memory that is unmapped when the last view of it is gone."""

        _type_ = ctypes.c_ubyte
        _length_ = CHUNK

        def __del__(self) -> None:
            unmap(address_of(self), CHUNK)

    def map_chunk(fd: int, offset: int) -> memoryview:
        address = map_memory(None, CHUNK, protection, shared, fd, offset)
        if address is None or address == failed:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        # As plain bytes: nothing else can be copied from one view to another.
        return memoryview(Chunk.from_address(address)).cast("B").toreadonly()

    return map_chunk


@functools.cache
def _file_system_of() -> Callable[[int], int]:
    """Return a function that tells the type of file system a descriptor lies in; 0 if unknown."""
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).fstatfs
    call.argtypes = (ctypes.c_int, ctypes.c_char_p)

    def ask(fd: int) -> int:
        result = ctypes.create_string_buffer(_STATFS_SIZE)
        if call(fd, result):
            return 0
        # f_type comes first; it is a long nearly everywhere, and elsewhere this is just no type.
        return ctypes.c_long.from_buffer(result).value

    return ask


def _address_of(view: memoryview) -> int:
    """Return where a chunk lies."""
    import ctypes

    return ctypes.addressof(view.obj)  # type: ignore[arg-type]


@functools.cache
def _returner() -> Callable[[memoryview], None]:
    """Return a function that gives back the pages of a chunk; it may be used as before."""
    import ctypes
    from mmap import MADV_DONTNEED

    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def give_back(view: memoryview) -> None:
        # Should the kernel refuse, the pages stay.
        advise(_address_of(view), len(view), MADV_DONTNEED)

    return give_back


class _MappedChunk:
    """A part of a file that is mapped.

    Attributes:
        is_given_back: Whether its pages were given back and hardly any can have come again.
        owner: Whose it is.
        index: Which part.
        view: Its memory.
        used: The turn in which somebody asked for it last.
    """

    __slots__ = ("index", "is_given_back", "owner", "used", "view")

    def __init__(self, owner: FilePages, index: int, view: memoryview, used: int) -> None:
        self.is_given_back = False
        self.owner = owner
        self.index = index
        self.view = view
        self.used = used


class PageMaps:
    """What is mapped of all files of one event loop.

    Attributes:
        losses: How often a page was missing that somebody touched, under a trap.
        probe: Tells what is cached.
    """

    __slots__ = (
        "__weakref__", "_chunks", "_limit", "_spent", "_taught", "_timer", "_torn", "_turn",
        "_waits", "losses", "probe",
    )  # fmt: skip

    def __init__(self, budget: int | None = None) -> None:
        """Start with nothing mapped.

        Args:
            budget: Bytes that may be mapped at a time.
        """
        if budget is None:
            budget = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _BUDGET
        #: Addresses must be long enough.
        self._limit = budget >> CHUNK_BITS if sys.maxsize > 1 << 32 else 0
        self._chunks: list[_MappedChunk] = []
        #: What was mapped when a page was missing.
        self._torn: list[memoryview] = []
        #: Who was told something that is believed until the next turn.
        self._taught: set[FilePages] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        self._waits = 0
        self._spent = 0.0  # processor time at the end of the last turn
        self.losses = 0
        self.probe = CacheProbe()

    def mapped(self) -> int:
        """Return how many bytes of address space are in use."""
        return len(self._chunks) << CHUNK_BITS

    def teach(self, pages: FilePages) -> None:
        """Note that `pages` knows something, which it shall forget in time."""
        self._taught.add(pages)
        self._watch()

    def chunk(self, pages: FilePages, index: int, fd: int) -> memoryview | None:
        """Return a chunk of a file, unless too much is mapped already.

        Raises:
            OSError: It cannot be mapped.
        """
        known = pages.chunks.get(index)
        if known is not None:
            known.used = self._turn
            return known.view
        if len(self._chunks) >= self._limit and not self._make_room():
            return None
        # A description of its own has no locks that would outlive the image's.
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            view = _mapper()(own, index << CHUNK_BITS)
        finally:
            os.close(own)
        chunk = _MappedChunk(pages, index, view, self._turn)
        self._chunks.append(chunk)
        pages.chunks[index] = chunk
        self._watch()
        return view

    def _make_room(self) -> bool:
        """Give back the chunk that was not used for the longest time, if that is long enough."""
        if not self._chunks:
            return False
        oldest = min(self._chunks, key=lambda chunk: chunk.used)
        if oldest.used >= self._turn - _YIELDS_AFTER:
            return False
        self.release(oldest)
        return True

    def release(self, chunk: _MappedChunk) -> None:
        """Give a chunk back; views of it that somebody still has keep it mapped."""
        self._chunks.remove(chunk)
        del chunk.owner.chunks[chunk.index]
        chunk.owner.forget()

    def lose(self, address: int) -> bool:
        """Take note that a page is missing, in a handler of SIGBUS; return whether it is ours.

        The handler puts a page of zeroes there.  Nobody shall ever see that, so everything is given
        up, and stays mapped until :meth:`settle`: what was interrupted may meet more such pages.
        """
        views = [chunk.view for chunk in self._chunks] + self._torn
        if not any(0 <= address - _address_of(view) < CHUNK for view in views):
            return False
        self._torn = views
        self.losses += 1
        for chunk in list(self._chunks):
            self.release(chunk)
        return True

    def settle(self) -> None:
        """Give back what was given up: nobody looks into it any more."""
        self._torn.clear()

    def forget(self) -> None:
        """Ask anew for all that is cached: something was not."""
        for pages in self._taught:
            pages.forget()
        self._taught.clear()

    def drop(self, pages: FilePages) -> None:
        """Give back all of one file."""
        for chunk in list(pages.chunks.values()):
            self.release(chunk)
        self._taught.discard(pages)

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TURN, self._end_turn)

    def _has_waited(self) -> bool:
        """Tell whether this process had to wait for a page since the last call."""
        from resource import RUSAGE_SELF, getrusage

        waits, self._waits = self._waits, getrusage(RUSAGE_SELF).ru_majflt
        return waits != self._waits

    def note_slowness(self) -> None:
        """Look for the reason why a call with a view took long: maybe it waited for a disk."""
        if self._has_waited():
            self.forget()

    def _end_turn(self) -> None:
        self._timer = None
        self._turn += 1
        if self._has_waited() or not self._turn % _TRUST:
            self.forget()
        else:
            for pages in self._taught:
                pages.reconsider()
        idle = [chunk for chunk in self._chunks if chunk.used < self._turn - _IDLE_AFTER]
        for chunk in idle[:_RELEASES]:
            self.release(chunk)
        self._give_back_pages()
        if self._chunks:
            self._watch()

    def _give_back_pages(self) -> None:
        """Let the process look as small as it is, if it had little to do."""
        before, self._spent = self._spent, process_time()
        if self._spent - before > _LITTLE:
            for chunk in self._chunks:
                chunk.is_given_back = False
            return
        resident = [chunk for chunk in self._chunks if not chunk.is_given_back]
        for chunk in resident[:_RETURNS]:
            _returner()(chunk.view)
            chunk.is_given_back = True


class FilePages:
    """The cached pages of one file.

    The descriptor may be exchanged for another file, if :meth:`drop` is called then.

    Attributes:
        chunks: What is mapped.
        whole: Chunks that are cached as a whole, by number, for hot loops to look at: what lies in
            one of them is what :meth:`view_nowait` would return.
    """

    __slots__ = (
        "_can_map", "_counts", "_fd", "_is_suspended", "_known", "_maps", "_refused", "_size",
        "_tail", "chunks", "whole",
    )  # fmt: skip

    def __init__(self, maps: PageMaps, fd: int) -> None:
        """Start without a mapping; nothing costs anything before the first view is asked for.

        Args:
            maps: What all files have in common.
            fd: A regular file, open for reading; it stays the caller's.
        """
        self._maps = maps
        self._fd = fd
        #: The chunks in which windows lie that are cached.
        self._known: dict[int, memoryview] = {}
        self._counts: dict[int, int] = {}  # how many windows of each chunk these are
        self._tail = -1  # the window in which the file ends, if it is cached
        self._can_map: bool | None = None  # nobody has looked yet
        self._is_suspended = False
        self._refused: set[int] = set()  # windows of which there are no views
        self._size = -1  # of the file; -1 if it is not known
        self.chunks: dict[int, _MappedChunk] = {}
        self.whole: dict[int, memoryview] = {}

    def view_nowait(self, offset: int, length: int) -> memoryview | None:
        """Return a range as memory, if it is in the page cache and the caller may have it.

        Args:
            offset: Bytes.
            length: Bytes; positive.

        Returns:
            Memory for a system call and for nobody else (see the module), good until the caller
            returns to the loop.
        """
        chunk = self._known.get(offset >> _WINDOW_BITS)
        if chunk is not None and (offset & _WINDOW_MASK) + length <= _WINDOW:
            start = offset & CHUNK_MASK
            return chunk[start : start + length]
        return self._find(offset, length)

    def _find(self, offset: int, length: int) -> memoryview | None:
        """Do what :meth:`view_nowait` does, for what is new or lies in several windows."""
        last = offset + length - 1
        if offset >> CHUNK_BITS != last >> CHUNK_BITS:
            return None
        for index in range(offset >> _WINDOW_BITS, (last >> _WINDOW_BITS) + 1):
            if index in self._known:
                continue
            if index != self._tail and not self._look(index):
                return None
            if index == self._tail and last >= self._size:
                return None
        start = offset & CHUNK_MASK
        return self.chunks[offset >> CHUNK_BITS].view[start : start + length]

    def _look(self, index: int) -> bool:
        """Tell whether a window not known yet is cached, as far as the file goes; map it then."""
        if index in self._refused:
            return False
        self._maps.teach(self)
        try:
            if self._may_map() and self._map(index):
                return True
        except OSError:
            self._can_map = False  # no memory, or no right: reads still work
        self._refused.add(index)
        return False

    def _map(self, index: int) -> bool:
        """Do the work of :meth:`_look`.

        Raises:
            OSError: Nothing can be mapped.
        """
        if self._size < 0:
            self._size = os.fstat(self._fd).st_size
        start = index << _WINDOW_BITS
        length = min(_WINDOW, self._size - start)
        if length <= 0 or not self._maps.probe.is_cached(self._fd, start, length):
            return False
        chunk = self._maps.chunk(self, start >> CHUNK_BITS, self._fd)
        if chunk is None:
            return False
        if length == _WINDOW:
            self._known[index] = chunk
            number = start >> CHUNK_BITS
            count = self._counts[number] = self._counts.get(number, 0) + 1
            if count == CHUNK >> _WINDOW_BITS:
                self.whole[number] = chunk
        else:
            self._tail = index
        return True

    def _may_map(self) -> bool:
        if self._is_suspended:
            return False
        if self._can_map is None:
            self._can_map = _file_system_of()(self._fd) in _FILE_SYSTEMS
        return self._can_map

    def forget(self) -> None:
        """Ask anew for what is cached, because the file may have changed its shape."""
        self._known.clear()
        self._counts.clear()
        self.whole.clear()
        self.reconsider()

    def reconsider(self) -> None:
        """Ask anew for what was refused: it may be cached by now, or the file longer."""
        self._refused.clear()
        self._tail = -1
        self._size = -1

    def suspend(self) -> None:
        """Have no views until :meth:`resume`: a thread is making the file shorter.

        Who was given one of what is cut off at that moment would fail, where a read finds the old
        data or the end.
        """
        self._is_suspended = True
        self.forget()

    def resume(self) -> None:
        """Have views again."""
        self._is_suspended = False
        self.forget()

    def drop(self) -> None:
        """Give all memory back: the file is closed, or the descriptor stands for another one."""
        self._maps.drop(self)
        self.forget()
        self._can_map = None
