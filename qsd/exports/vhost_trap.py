# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Survive a front end that takes away memory it has shared, and an image that gets shorter.

Whoever touches a page of a mapped file behind the file's end gets SIGBUS, which kills.  System
calls on such memory just fail with EFAULT; but rings, headers and status bytes are read and written
by the interpreter itself.  So SIGBUS for a place in guest memory puts a page of zeroes there, lets
the access be repeated, and hangs up on the front end.

The same is done for memory maps of images (:mod:`qsd.aio.pagemap`) that payload is copied from:
only that in place of hanging up what was copied is read again (:mod:`qsd.exports.virtio_views`).

Running Python in a signal handler is possible here, for once, because the signal is no surprise: it
comes out of an access that the interpreter makes in the same thread, in the code of memoryviews and
:mod:`struct`, with the interpreter's lock held and outside of its allocator.  For all other places
the handler steps back: the access is repeated, and what would have happened without it happens.

Source: sigaction(2), mmap(2); layouts of glibc on 64-bit Linux (bits/sigaction.h, siginfo_t).
"""

from __future__ import annotations

import mmap
import os
import signal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.pagemap import PageMaps

#: Machines whose layout of struct sigaction is known to be the one below.
_MACHINES: Final = ("x86_64", "aarch64", "riscv64")
_SA_SIGINFO: Final = 4
_MAP_FIXED: Final = 0x10
_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
#: Where siginfo_t has the address.
_ADDRESS_OFFSET: Final = 16
#: Bytes; sizes of pages, for memory of huge pages is replaced only by whole ones.
_PAGE_SIZES: Final = (mmap.PAGESIZE, 2 << 20, 1 << 30)


class Trap:
    """The handler of SIGBUS; it stays installed.

    Attributes:
        sprung: How many pages were replaced.
    """

    __slots__ = ("_handler", "_images", "_old", "_ranges", "_sigaction", "sprung")

    def __init__(self) -> None:
        import ctypes
        from weakref import WeakSet

        class Action(ctypes.Structure):
            _fields_ = (
                ("handler", ctypes.c_void_p),
                ("mask", ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong)))),
                ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p),
            )

        # PyDLL keeps the interpreter's lock: nobody else runs within the handler.
        libc = ctypes.PyDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
        )
        failed = ctypes.c_void_p(-1).value
        flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.sprung = 0
        self._ranges: dict[int, tuple[int, Callable[[], None]]] = {}
        self._images: WeakSet[PageMaps] = WeakSet()
        self._sigaction: Any = libc.sigaction
        self._old = Action()

        def put_zeroes(at: int, size: int) -> bool:
            page = at // size * size
            return bool(libc.mmap(page, size, _READ_WRITE, flags, -1, 0) != failed)

        def on_bus_error(number: int, info: int, context: int) -> None:
            at = ctypes.c_void_p.from_address(info + _ADDRESS_OFFSET).value or 0
            for start, (end, lost) in self._ranges.items():
                if start <= at < end and any(put_zeroes(at, size) for size in _PAGE_SIZES):
                    self.sprung += 1
                    lost()
                    return
            if any(maps.lose(at) for maps in self._images) and put_zeroes(at, mmap.PAGESIZE):
                self.sprung += 1
                return
            self.remove()

        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._handler: Any = kind(on_bus_error)  # kept: the kernel has its address
        handler = ctypes.cast(self._handler, ctypes.c_void_p)
        action = Action(handler=handler, flags=_SA_SIGINFO)
        self._sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._old))

    def remove(self) -> None:
        """Have things as they were before."""
        import ctypes

        self._sigaction(signal.SIGBUS, ctypes.byref(self._old), None)

    def guard(self, mapping: mmap.mmap, lost: Callable[[], None]) -> None:
        """Take what goes wrong with a mapping, as long as it exists, for its giver's fault.

        Args:
            mapping: Shared memory.
            lost: Called for every page that was missing, within the handler: it should do little.
                It must not keep the mapping alive.
        """
        import ctypes
        import weakref

        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._ranges[address] = address + len(mapping), lost
        weakref.finalize(mapping, self._ranges.pop, address).atexit = False

    def watch(self, maps: PageMaps) -> None:
        """Let it be no harm to touch what is mapped of images, as long as `maps` exists."""
        self._images.add(maps)


@cache
def trap() -> Trap | None:
    """Return the one trap of the process, None where there can be none."""
    return Trap() if os.uname().machine in _MACHINES else None
