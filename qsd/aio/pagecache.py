# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Asking the kernel whether a range of a file is in the page cache.

sendfile(2) has no mode that refuses to wait, so it is used in the event loop only for what is in
memory already.  cachestat(2) tells (Linux 6.5); older kernels cannot, and then nothing counts as
cached.  Since 6.14 it also refuses files that the caller neither owns nor may write.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: The system call's number, the same on every architecture.
_CACHESTAT: Final = 451
#: struct cachestat_range: offset and length, both 64 bits.
_RANGE_SIZE: Final = 16
#: struct cachestat: five counts of 64 bits, the first of them nr_cache.
_RESULT_WORDS: Final = 5
_PAGE: Final = 4096


class CacheProbe:
    """Tells which ranges are cached, as long as the kernel does.

    Attributes:
        can_probe: Whether it is worth asking.
    """

    __slots__ = (
        "_call",
        "_errno",
        "_range",
        "_range_address",
        "_result",
        "_result_address",
        "can_probe",
    )

    def __init__(self) -> None:
        self.can_probe = True
        self._call: Callable[..., int] | None = None
        self._errno: Callable[[], int] | None = None
        self._range: Any = None
        self._result: Any = None
        self._range_address = 0
        self._result_address = 0

    def _prepare(self) -> Callable[..., int]:
        import ctypes
        import mmap

        libc = ctypes.CDLL(None, use_errno=True)
        self._errno = ctypes.get_errno
        call = libc.syscall
        call.restype = ctypes.c_long
        call.argtypes = (
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint,
        )
        if mmap.PAGESIZE != _PAGE:
            self.can_probe = False
        self._range = (ctypes.c_uint64 * 2)()
        self._result = (ctypes.c_uint64 * _RESULT_WORDS)()
        self._range_address = ctypes.addressof(self._range)
        self._result_address = ctypes.addressof(self._result)
        return call

    def is_cached(self, fd: int, offset: int, length: int) -> bool:
        """Tell whether a range is in the page cache.  Never waits."""
        call = self._call
        if call is None:
            call = self._call = self._prepare()
        if not self.can_probe:
            return False
        span = self._range
        span[0] = offset
        span[1] = length
        if call(_CACHESTAT, fd, self._range_address, self._result_address, 0):
            if self._errno is not None and self._errno() == errno.ENOSYS:
                self.can_probe = False
            return False
        pages = (offset + length + _PAGE - 1) // _PAGE - offset // _PAGE
        cached: int = self._result[0]
        return cached >= pages
