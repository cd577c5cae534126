# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The log of memory that the device writes, by which a running machine is migrated.

Source: QEMU documentation, "Vhost-user Protocol", "Migration".  The log is a bitmap in shared
memory with a bit for each page of 4096 bytes, by guest-physical address.  The front end reads and
clears it while others set bits in it, so a bit must be set by an atomic operation.  Python has
none, but the kernel has one that works on memory of the caller: futex(2) with FUTEX_WAKE_OP does
`word |= 1 << bit`, and then wakes nobody.

A bit that is set already is left alone: the page was written before the bit is looked at, so the
front end, which clears the bit before it reads the page, reads what was written.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import PeerError
from qsd.wire.virtio.ring import barrier

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGE: Final = 4096
#: Pages that one word of the bitmap stands for.
_WORD_PAGES: Final = 32
_WORD: Final = 4
#: Number of futex(2) where it is known.
_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_WAKE_OP_PRIVATE: Final = 5 | 128
#: Operation "or", with `1 << argument` (FUTEX_OP_OR | FUTEX_OP_ARG_SHIFT), compared by "equal".
_OP_SET_BIT: Final = (2 | 8) << 28
_ARGUMENT_SHIFT: Final = 12


def is_possible() -> bool:
    """Tell whether bits can be set on this machine: it must be known, and little-endian."""
    return os.uname().machine in _FUTEX and sys.byteorder == "little"


@cache
def _futex() -> Callable[[int, int], bool]:
    """Return a function that sets a bit of the word at an address, and tells whether it could."""
    import ctypes

    number = _FUTEX[os.uname().machine]
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    call.argtypes = (
        *(ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_long, ctypes.c_void_p, ctypes.c_uint32),
    )
    nobody = ctypes.c_uint32()
    waiters = ctypes.addressof(nobody)

    def set_bit(address: int, bit: int, keep: Any = nobody) -> bool:
        how = _OP_SET_BIT | bit << _ARGUMENT_SHIFT
        return bool(call(number, waiters, _WAKE_OP_PRIVATE, 0, 0, address, how) >= 0)

    return set_bit


class DirtyLog:
    """The bitmap."""

    __slots__ = ("_address", "_pages", "_words")

    def __init__(self, bitmap: memoryview) -> None:
        """Begin to log.

        Args:
            bitmap: The shared memory; what is beyond its last whole word is not used.
        """
        import ctypes

        count = len(bitmap) // _WORD
        self._words = bitmap[: count * _WORD].cast("I")
        self._pages = count * _WORD_PAGES
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(bitmap)) if count else 0

    def mark(self, guest: int, length: int) -> None:
        """Note that a range of guest memory was written; what is written to it comes before this.

        Raises:
            PeerError: The log has no room for it.
        """
        barrier()
        first, last = guest // _PAGE, (guest + length - 1) // _PAGE
        if last >= self._pages:
            raise PeerError(f"address {guest:#x} is beyond the log")
        words = self._words
        for page in range(first, last + 1):
            index, bit = divmod(page, _WORD_PAGES)
            if not words[index] >> bit & 1 and not _futex()(self._address + _WORD * index, bit):
                raise PeerError("the log cannot be written")
