# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Drivers without any storage, for measurements (QMP reference, "BlockdevOptionsNull").

Writes vanish.  Reads give zeroes, which only `read-zeroes` promises: leaving the caller's buffer as
it is would save a little time but hand out what another client's request left in it.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.block.driver import Driver
from qsd.block.mapping import NO_FALLBACK, ST_ALLOCATED, ST_OFFSET, ST_ZERO, Status
from qsd.errors import QmpError, os_error
from qsd.util.zeroes import fill_zero

if TYPE_CHECKING:
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_protocols import BlockdevOptionsNull

_DEFAULT_SIZE: Final = 1 << 30
#: Bytes; sizes are signed, and sizes in sectors must not overflow when rounded up.
_SIZE_LIMIT: Final = (1 << 63) - (1 << 30)
_INT64_LIMIT: Final = 1 << 63
_NS: Final = 1e-9


class NullDriver(Driver):
    """Takes everything, has nothing; "null-co"."""

    name: ClassVar[str] = "null-co"
    family: ClassVar[str] = "protocol"

    __slots__ = ("_latency", "_options", "_read_zeroes", "_size", "_written")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._options: BlockdevOptionsNull
        self._size = 0
        self._latency = 0.0
        self._read_zeroes = False
        self._written = False

    async def open(self, options: BlockdevOptionsNull, opener: ChildOpener) -> None:
        """Take the options."""
        latency = options.latency_ns or 0
        if not 0 <= latency < _INT64_LIMIT:
            raise QmpError("latency-ns is invalid")
        size = _DEFAULT_SIZE if options.size is None else options.size
        if size < 0:
            raise QmpError("Parameter 'size' expects a non-negative number below 2^64")
        if size > _SIZE_LIMIT:
            raise QmpError("Could not refresh total sector count: File too large")
        self._options = options
        self._size = size
        self._latency = latency * _NS
        self._read_zeroes = bool(options.read_zeroes)

    async def prepare_reopen(self, options: BlockdevOptionsNull, read_only: bool) -> None:
        """Accept anything that changes nothing."""

    def length(self) -> int:
        """Return the size."""
        return self._size

    async def _wait(self) -> None:
        if self._latency:
            await asyncio.sleep(self._latency)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read at once if there is no latency to be observed."""
        if self._latency or not 0 <= offset <= self._size - len(view):
            return False
        fill_zero(view)
        return True

    async def read(self, offset: int, view: memoryview) -> None:
        """Wait, then read."""
        await self._wait()
        fill_zero(view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Drop the data at once if there is no latency to be observed."""
        if self._latency or not 0 <= offset <= self._size - len(view):
            return False
        node = self.node
        if offset + len(view) > node.wr_highest_offset:
            node.wr_highest_offset = offset + len(view)
        return True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Wait, then drop the data."""
        await self._wait()
        self._written = True

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Wait once rather than for each piece; a fast zero request wants more than that."""
        if flags & NO_FALLBACK:
            raise os_error(errno.ENOTSUP)
        await self._wait()
        self._written = True

    async def flush(self) -> None:
        """Wait, if anything was written since the last time."""
        if self._written:
            self._written = False
            await self._wait()

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Zeroes if reads give zeroes, else no claim at all."""
        flags = ST_OFFSET | ST_ALLOCATED | ST_ZERO if self._read_zeroes else ST_OFFSET
        return Status(length, flags, offset)

    def filename(self) -> str | None:
        """Return the pseudo name."""
        return f"{self.name}://"

    def image_info(self) -> dict[str, Any]:
        """Tell that no space is taken."""
        return {"actual-size": 0}


class NullAioDriver(NullDriver):
    """The same under the name of a driver that once had another interface; "null-aio"."""

    name: ClassVar[str] = "null-aio"

    __slots__ = ()
