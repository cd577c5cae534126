# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "nbd" driver: an export of an NBD server as a node (QMP reference, "BlockdevOptionsNbd").

The node has the length and the block sizes that the server tells, and passes every request on:
writes with FUA, zeroes with and without holes, trims, flushes, and block status from the metadata
context ``base:allocation`` (or the one that `x-dirty-bitmap` names).  What the server does not
offer is left to the engine.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.block.driver import Driver
from qsd.block.mapping import (
    FUA,
    MAY_UNMAP,
    NO_FALLBACK,
    ST_ALLOCATED,
    ST_DATA,
    ST_OFFSET,
    ST_ZERO,
    Status,
)
from qsd.errors import QmpError, os_error
from qsd.net import address as addresses
from qsd.protocols.nbd.connection import LONG
from qsd.protocols.nbd.link import Link
from qsd.protocols.nbd.request import Request
from qsd.util.ranges import align_down, align_up
from qsd.util.zeroes import fill_zero
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.block.relay import RelayPath
    from qsd.block.runs import Runs
    from qsd.protocols.nbd.connection import Connection
    from qsd.protocols.nbd.link import TlsStarter
    from qsd.qapi.schema.block_protocols import BlockdevOptionsNbd

#: Bytes; lengths are 32 bits on the wire, and servers in C may take them for signed.
_MAX_LENGTH: Final = 1 << 30
#: What the states of "base:allocation" mean: bit 0 is STATE_HOLE, bit 1 STATE_ZERO.
_STATES: Final = (ST_DATA, 0, ST_DATA | ST_ZERO, ST_ZERO)


def _check_length(what: str, text: str | None) -> None:
    if text is not None and len(text.encode("utf-8", "surrogateescape")) > nbd.MAX_STRING:
        raise QmpError(f"{what} too long to send to server")


class NbdDriver(Driver):
    """An export of an NBD server."""

    name: ClassVar[str] = "nbd"
    family: ClassVar[str] = "protocol"
    native_fua: ClassVar[bool] = True

    __slots__ = ("_flags", "_link", "_options", "_size")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._options: BlockdevOptionsNbd
        self._link: Link
        self._flags = 0
        self._size = 0

    # Life cycle

    async def open(self, options: BlockdevOptionsNbd, opener: ChildOpener) -> None:
        """Connect to the server."""
        node = self.node
        _check_length("export name", options.export)
        _check_length("x-dirty-bitmap query", options.x_dirty_bitmap)
        self._options = options
        tls = self._tls_starter(options) if options.tls_creds is not None else None
        link = Link(options, node.graph.tasks, tls, by_monitor=node.graph.by_monitor)
        await link.open()
        agreement = link.agreement
        try:
            if options.x_dirty_bitmap is not None and agreement.context_id is None:
                raise os_error(errno.EINVAL)
            if agreement.flags & nbd.FLAG_READ_ONLY and not node.read_only:
                if not node.auto_read_only:
                    raise os_error(errno.EACCES)
                node.read_only = True
        except BaseException:
            await link.close()
            raise
        node.status_is_remote = agreement.context_id is not None
        self._link = link
        self._flags = agreement.flags
        self._size = agreement.size
        limits = self.limits
        limits.request_alignment = agreement.min_block
        limits.max_transfer = align_down(agreement.max_block, agreement.min_block)
        limits.opt_transfer = agreement.preferred_block
        limits.max_zero = limits.max_discard = _MAX_LENGTH
        limits.discard_alignment = agreement.min_block

    def _tls_starter(self, options: BlockdevOptionsNbd) -> TlsStarter:
        from qsd.objects.tls_creds import find_creds

        assert options.tls_creds is not None
        creds = find_creds(self.node.graph.objects, options.tls_creds, "client")
        hostname = options.tls_hostname
        part = addresses.body(options.server)
        if hostname is None and options.server.type == "inet":
            hostname = getattr(part, "host", None)
        return creds.connector(hostname)

    async def close(self) -> None:
        """Disconnect."""
        await self._link.close()

    def cancel_in_flight(self) -> None:
        """Wait for no server."""
        self._link.give_up()

    async def prepare_reopen(self, options: BlockdevOptionsNbd, read_only: bool) -> None:
        """Accept what changes nothing but the right to write."""
        if not read_only and self._flags & nbd.FLAG_READ_ONLY:
            raise QmpError("Can't reopen read-only NBD mount as read/write")

    # Geometry

    def length(self) -> int:
        """Return the size of the export."""
        return self._size

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Refuse to grow; a shorter length is fine where the exact one does not matter."""
        if exact and length != self._size:
            raise QmpError("Cannot resize NBD nodes")
        if length > self._size:
            raise QmpError("Cannot grow NBD nodes")

    # I/O

    async def _do(
        self, command: int, flags: int, offset: int, length: int, view: memoryview | None = None
    ) -> Request:
        """Carry out a request, on a new connection where the old one is lost meanwhile.

        Raises:
            OSError: As the server said, or EIO without a server.
        """
        while True:
            connection = await self._link.usable()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def done(_: Request, future: asyncio.Future[None] = future) -> None:
                if not future.done():
                    future.set_result(None)

            request = Request(command, flags, offset, length, view, done)
            connection.submit(request)
            try:
                await future
            except BaseException:
                connection.abandon(request)
                raise
            if request.error is None:
                return request
            if not (request.lost and self._link.is_waiting):
                raise request.error

    def relay_path(self) -> RelayPath:
        """Let requests of clients through to the server as they are."""
        from qsd.block.relay import RelayPath

        limits = self.limits
        return RelayPath(self, self._size, limits.max_transfer or _MAX_LENGTH, takes_writes=True)

    def relay_connection(self) -> Connection | None:
        """Return the connection, if there is one now."""
        connection = self._link.connection
        return None if connection is None or connection.closed else connection

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Send a read whose end needs no coroutine; a failure is left to :meth:`read`."""
        connection = self._link.connection
        length = len(view)
        if connection is None or connection.closed or offset + length > self._size:
            return False
        if length < LONG:
            connection.begin(nbd.CMD_READ, offset, view, done)
        else:
            connection.submit(
                Request(
                    *(nbd.CMD_READ, 0, offset, length, view),
                    lambda request: done(request.error is None),
                )
            )
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Send a write whose end needs no coroutine; a failure is left to :meth:`write`."""
        connection = self._link.connection
        if connection is None or connection.closed:
            return False
        connection.begin(nbd.CMD_WRITE, offset, view, done)
        return True

    async def read(self, offset: int, view: memoryview) -> None:
        """Read; behind the end of the export are zeroes up to the next sector."""
        inside = self._clip(offset, len(view))
        if inside < len(view):
            fill_zero(view[inside:])
            view = view[:inside]
        if inside:
            await self._do(nbd.CMD_READ, 0, offset, inside, view)

    def _clip(self, offset: int, length: int) -> int:
        """Return how much of a range is within the export, whose end need not be a sector's."""
        return max(0, min(length, self._size - offset))

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write; what goes beyond the end of the export is the server's to refuse."""
        await self._do(nbd.CMD_WRITE, self._fua_flag(flags), offset, len(view), view)
        await self._after_fua(flags)

    def _fua_flag(self, flags: int) -> int:
        return nbd.CMD_FLAG_FUA if flags & FUA and self._flags & nbd.FLAG_SEND_FUA else 0

    async def _after_fua(self, flags: int) -> None:
        """Flush after a durable request to a server that knows no such thing."""
        if flags & FUA and not self._flags & nbd.FLAG_SEND_FUA:
            await self.flush()

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero, with a hole where that is allowed."""
        if not self._flags & nbd.FLAG_SEND_WRITE_ZEROES:
            raise os_error(errno.ENOTSUP)
        wire = self._fua_flag(flags)
        if not flags & MAY_UNMAP:
            wire |= nbd.CMD_FLAG_NO_HOLE
        if flags & NO_FALLBACK:
            if not self._flags & nbd.FLAG_SEND_FAST_ZERO:
                raise os_error(errno.ENOTSUP)
            wire |= nbd.CMD_FLAG_FAST_ZERO
        await self._do(nbd.CMD_WRITE_ZEROES, wire, offset, length)
        await self._after_fua(flags)

    async def discard(self, offset: int, length: int) -> None:
        """Trim."""
        if self._flags & nbd.FLAG_SEND_TRIM:
            await self._do(nbd.CMD_TRIM, 0, offset, length)

    async def flush(self) -> None:
        """Flush."""
        if self._flags & nbd.FLAG_SEND_FLUSH:
            await self._do(nbd.CMD_FLUSH, 0, 0, 0)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Ask for one extent of the metadata context."""
        ((found, flags),) = await self._ask_status(offset, length, 1)
        return Status(found, flags | ST_ALLOCATED | ST_OFFSET, offset)

    async def runs(self, offset: int, length: int, limit: int) -> Runs:
        """Ask for all extents at once: a round trip for each of them would take too long."""
        from qsd.block.runs import Runs

        runs = Runs()
        for found, flags in await self._ask_status(offset, length, limit):
            runs.add(found, flags)
        return runs

    async def _ask_status(self, offset: int, length: int, limit: int) -> list[tuple[int, int]]:
        """Return up to `limit` extents of a range as (length, ST_DATA and ST_ZERO), at least one.

        A server that knows no extents has data everywhere.
        """
        inside = self._clip(offset, length)
        if not inside:
            return [(length, ST_ZERO)]
        if self._link.agreement.context_id is None:
            return [(inside, ST_DATA)]
        # Requests are for whole blocks of the server.
        align = self.limits.request_alignment
        start = align_down(offset, align)
        asked = min(align_up(offset + inside, align) - start, align_down(_MAX_LENGTH, align))
        only_one = nbd.CMD_FLAG_REQ_ONE if limit == 1 else 0
        request = await self._do(nbd.CMD_BLOCK_STATUS, only_one, start, asked)
        found: list[tuple[int, int]] = []
        for size, state in request.extents:
            first, start = max(start, offset), min(start + size, offset + inside)
            if start > first and len(found) < limit:
                found.append((start - first, _STATES[state & 3]))
        return found or [(min(align, inside), ST_DATA)]

    # Description

    def filename(self) -> str | None:
        """Return the URI, for the kinds of addresses that have one."""
        from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress

        export = self._options.export
        path = "" if export is None else f"/{export}"
        part = addresses.body(self._options.server)
        if isinstance(part, UnixSocketAddress):
            return f"nbd+unix://{path}?socket={part.path}"
        if isinstance(part, InetSocketAddress):
            if not (part.ipv4 is part.ipv6 is part.to is None):
                return None
            return f"nbd://{part.host}:{part.port}{path}"
        return None
