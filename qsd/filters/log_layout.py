# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Records of the write log (Linux kernel documentation, "dm-log-writes", "Log ordering")."""

from __future__ import annotations

import struct
from typing import Final

from qsd.errors import QmpError
from qsd.util.namedtuple import NamedTuple

FLAG_FLUSH: Final = 1
FLAG_FUA: Final = 2
FLAG_DISCARD: Final = 4
FLAG_MARK: Final = 8

_MAGIC: Final = 0x6A736677736872
_VERSION: Final = 1
_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")
SUPER_SIZE: Final = _SUPER.size
ENTRY_SIZE: Final = _ENTRY.size


class LogSuper(NamedTuple):
    """The superblock."""

    entries: int
    sector_size: int

    def pack(self) -> bytes:
        """Return the record."""
        return _SUPER.pack(_MAGIC, _VERSION, self.entries, self.sector_size)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> LogSuper:
        """Read the record.

        Raises:
            QmpError: It is not one, or of another version.
        """
        magic, version, entries, sector_size = _SUPER.unpack_from(data)
        if magic != _MAGIC:
            raise QmpError("Invalid log superblock magic")
        if version != _VERSION:
            raise QmpError(f"Unsupported log version {version}")
        return cls(entries, sector_size)


class LogEntry(NamedTuple):
    """What stands before the data of a change.

    Attributes:
        sector: Where the change starts.
        sectors: How long it is.
        flags: FLAG_*.
    """

    sector: int
    sectors: int
    flags: int

    def pack(self) -> bytes:
        """Return the record; the length of data that follows counts for marks only."""
        return _ENTRY.pack(self.sector, self.sectors, self.flags, 0)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> LogEntry:
        """Read the record."""
        sector, sectors, flags, _ = _ENTRY.unpack_from(data)
        return cls(sector, sectors, flags)
