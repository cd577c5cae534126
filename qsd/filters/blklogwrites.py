# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "blklogwrites" filter: every change is also appended to a log, in the format of the Linux
kernel's dm-log-writes (Linux kernel documentation, "dm-log-writes").

::

    sector 0      superblock: magic, version, number of entries, sector size
    sector 1      entry: sector, number of sectors, flags, data length
    sector 2..    that many sectors of data, unless the entry is a discard
                  next entry ...

An entry takes its place when its change is complete, that of a flush when the flush begins: so
every write before a flush in the log was made durable by it, and replaying any prefix gives a state
that a crash could have left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from qsd.block import perms
from qsd.block.mapping import FUA
from qsd.errors import QmpError
from qsd.filters.base import FilterDriver
from qsd.filters.log_layout import (
    ENTRY_SIZE,
    FLAG_DISCARD,
    FLAG_FLUSH,
    SUPER_SIZE,
    LogEntry,
    LogSuper,
)

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_options import BlockdevOptionsBlklogwrites

_DEFAULT_SECTOR: Final = 512
#: Bytes; from this size on the C daemon refuses a sector size.
_SECTOR_LIMIT: Final = 1 << 24
_DEFAULT_INTERVAL: Final = 4096


def check_sector_size(size: int) -> int:
    """Return a sector size that is possible.

    Raises:
        QmpError: It is not.
    """
    if not ENTRY_SIZE <= size < _SECTOR_LIMIT or size & size - 1:
        raise QmpError(f"Invalid log sector size {size}")
    return size


class BlklogwritesDriver(FilterDriver):
    """Logs changes."""

    name: ClassVar[str] = "blklogwrites"

    __slots__ = ("_dirty", "_entries", "_interval", "_log", "_next_sector", "_sector")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._log: Edge
        self._sector = _DEFAULT_SECTOR
        self._interval = _DEFAULT_INTERVAL
        self._entries = 0
        self._next_sector = 1
        self._dirty = False

    async def open(self, options: BlockdevOptionsBlklogwrites, opener: ChildOpener) -> None:
        """Attach file and log; start the log or find its end."""
        await super().open(options, opener)
        self._log = await opener.child("log", options.log, perms.ROLE_METADATA)
        interval = options.log_super_update_interval
        if options.log_append:
            if options.log_sector_size is not None:
                raise QmpError("log-append and log-sector-size are mutually exclusive")
            await self._find_end()
        else:
            size = options.log_sector_size
            self._sector = check_sector_size(_DEFAULT_SECTOR if size is None else size)
        if interval is not None:
            if interval == 0:
                raise QmpError(f"Invalid log superblock update interval {interval}")
            self._interval = interval
        self.limits.write_alignment = self._sector

    async def _find_end(self) -> None:
        """Walk over the entries of an existing log.

        Raises:
            QmpError: It is none.
        """
        log = self._log.node
        head = memoryview(bytearray(SUPER_SIZE))
        await log.read_or_zero(0, head)
        superblock = LogSuper.parse(head)
        self._sector = check_sector_size(superblock.sector_size)
        self._entries = superblock.entries
        position = 1
        body = memoryview(bytearray(ENTRY_SIZE))
        for _ in range(self._entries):
            await log.read_or_zero(position * self._sector, body)
            entry = LogEntry.parse(body)
            position += 1 + (0 if entry.flags & FLAG_DISCARD else entry.sectors)
            if position * self._sector > log.length():
                raise QmpError(f"Log entry at sector {position} lies beyond the end of the log")
        self._next_sector = position

    # Logging

    def _take_place(self, sectors: int) -> int:
        """Reserve room for an entry with `sectors` of data; return its byte offset in the log."""
        position = self._next_sector
        self._next_sector += 1 + sectors
        self._entries += 1
        return position * self._sector

    async def _append(
        self, place: int, offset: int, length: int, flags: int, data: memoryview | None
    ) -> None:
        """Write an entry and its data, then the superblock if it is time."""
        entry = LogEntry(offset // self._sector, length // self._sector, flags)
        log = self._log.node
        entries = self._entries
        head = memoryview(entry.pack().ljust(self._sector, b"\0"))
        if data is None and not flags & (FLAG_DISCARD | FLAG_FLUSH):
            await log.zero(place + self._sector, length)
        elif data is not None:
            await log.write(place + self._sector, data)
        await log.write(place, head)
        if flags & FLAG_FLUSH or entries % self._interval == 0:
            await self._write_super()

    async def _write_super(self) -> None:
        superblock = LogSuper(self._entries, self._sector)
        log = self._log.node
        await log.write(0, memoryview(superblock.pack().ljust(self._sector, b"\0")))
        await log.flush()

    # I/O

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Refuse: the log has to be written to."""
        return False

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write, then log."""
        await self.edge.node.write(offset, view, flags & ~FUA)
        place = self._take_place(len(view) // self._sector)
        await self._append(place, offset, len(view), 0, view)
        await self._finish(flags)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero, then log zeroes as data: the format knows nothing shorter."""
        await self.edge.node.zero(offset, length, flags & ~FUA)
        place = self._take_place(length // self._sector)
        await self._append(place, offset, length, 0, None)
        await self._finish(flags)

    async def _finish(self, flags: int) -> None:
        """Flush after a write that has to be durable.

        As in the C daemon the log gets a flush entry only if there was another write before.  The
        log then shows less than what is durable, never more.
        """
        if flags & FUA:
            await self.flush()
        self._dirty = True

    async def discard(self, offset: int, length: int) -> None:
        """Discard, then log."""
        await self.edge.node.discard(offset, length)
        await self._append(self._take_place(0), offset, length, FLAG_DISCARD, None)
        self._dirty = True

    async def flush(self) -> None:
        """Flush, then log that; a flush with nothing to be made durable leaves no trace."""
        if not self._dirty:
            await self.edge.node.flush()
            return
        self._dirty = False
        place = self._take_place(0)
        await self.edge.node.flush()
        await self._append(place, 0, 0, FLAG_FLUSH, None)
