# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a file system's own table says of where a file has data: many extents with one call.

This is a guess about holes and nothing more: on some file systems there is data in memory that the
table does not show yet.  Who is told of a hole must ask for it with SEEK_DATA, which knows better.

ioctl_fiemap(2), and "Fiemap Ioctl" in the documentation of the Linux kernel.
"""

from __future__ import annotations

import fcntl
import struct
from array import array
from operator import add, sub
from typing import Final

from qsd.util.namedtuple import NamedTuple

#: _IOWR('f', 11, struct fiemap) of linux/fs.h.
_FS_IOC_FIEMAP: Final = 0xC020660B
#: struct fiemap: start and length in bytes, flags, extents that were mapped, how many fit.
_MAP: Final = struct.Struct("=QQIII4x")
#: struct fiemap_extent: start in the file, place on the disk, length, and two that are reserved, of
#: 8 bytes each; flags and three that are reserved, of 4.
_EXTENT: Final = struct.Struct("=QQQ16xI12x")
_WORDS: Final = _EXTENT.size // 8
_LOGICAL: Final = 0
_LENGTH: Final = 2
_HALVES: Final = _EXTENT.size // 4
_FLAGS: Final = 10
#: Flags of extents that hold nothing but data: FIEMAP_EXTENT_LAST, _UNKNOWN, _DELALLOC, _MERGED and
#: _SHARED.  Not among them: _UNWRITTEN, which reads as zeroes or is data in memory.
_FLAGS_OF_DATA: Final = 0x1 | 0x2 | 0x4 | 0x1000 | 0x2000


class DataExtents(NamedTuple):
    """Data in a range of a file, and the hole before each piece of it.

    Attributes:
        starts: Of data.
        ends: Of data.
        lengths: Of the hole before it, which only the first one may lack, and of data, in turns.
    """

    starts: list[int]
    ends: list[int]
    lengths: array[int]


def data_extents(fd: int, start: int, end: int, limit: int) -> DataExtents | None:
    """Return where data is said to be.

    Args:
        fd: A file.
        start: Of the range; what lies at it begins there.
        end: Of the range; what goes beyond it ends there.
        limit: How many extents at most, at least 2.

    Returns:
        The first ones of them; None if the table is not as simple as that.

    Raises:
        OSError: The file system has no such table.
    """
    table = bytearray(_MAP.size + limit * _EXTENT.size)
    _MAP.pack_into(table, 0, start, end - start, 0, 0, limit)
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, table)
    *_, count, _ = _MAP.unpack_from(table)
    if not count:
        return DataExtents([], [], array("Q"))
    extents = memoryview(table)[_MAP.size : _MAP.size + count * _EXTENT.size]
    flags = set(extents.cast("I")[_FLAGS::_HALVES].tolist())
    if any(some & ~_FLAGS_OF_DATA for some in flags):
        return None
    words = extents.cast("Q")
    starts, sizes = words[_LOGICAL::_WORDS].tolist(), words[_LENGTH::_WORDS].tolist()
    if (before := start - starts[0]) > 0:
        starts[0] = start
        sizes[0] -= before
    if count == limit:
        # The next one may begin where the last one ends.
        del starts[-1], sizes[-1]
    elif (beyond := starts[-1] + sizes[-1] - end) > 0:
        sizes[-1] -= beyond
    ends = list(map(add, starts, sizes))
    holes = list(map(sub, starts, [start, *ends[:-1]]))
    if 0 in holes[1:]:
        return None
    lengths = array("Q", bytes(16 * len(starts)))
    lengths[::2], lengths[1::2] = array("Q", holes), array("Q", sizes)
    return DataExtents(starts, ends, lengths)
