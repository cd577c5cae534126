# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A request to an NBD server, and what its reply may say.

The server is not trusted: a reply must lie within its request and give each of its bytes once.  It
comes in chunks; a simple reply is handled like a structured one of a single chunk.

NBD specification: "Structured reply chunk message", "Structured reply types".
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qsd.errors import PeerError, os_error
from qsd.util.zeroes import fill_zero
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.client import system_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Request:
    """One request.

    Attributes:
        command: NBD_CMD_*.
        flags: NBD_CMD_FLAG_*.
        offset: Bytes.
        length: Bytes.
        view: What a read fills or a write sends; None for other commands.
        done: Called once, when the request is over.
        error: None if it succeeded.
        lost: Whether the connection failed before the answer came.
        received: Bytes of a read that have arrived.
        extents: What a block status reply said: (length, flags).
    """

    __slots__ = (
        "command", "done", "error", "extents", "flags", "length", "lost", "offset", "received",
        "view",
    )  # fmt: skip

    def __init__(
        self,
        command: int,
        flags: int,
        offset: int,
        length: int,
        view: memoryview | None,
        done: Callable[[Request], None],
    ) -> None:
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.view = view
        self.done = done
        self.error: OSError | None = None
        self.lost = False
        self.received = 0
        self.extents: Sequence[tuple[int, int]] = ()

    def refuse(self, code: int) -> None:
        """Take an error number from the wire; the first one counts."""
        if self.error is None:
            self.error = os_error(system_errno(code) if code else errno.EINVAL)

    def take_data(self, offset: int, length: int) -> memoryview:
        """Return where the payload of a data chunk belongs.

        Raises:
            PeerError: It does not belong to this request.
        """
        at = offset - self.offset
        view = self.view
        if (
            self.command != nbd.CMD_READ
            or view is None
            or length <= 0
            or at < 0
            or at + length > self.length
            or self.received + length > self.length
        ):
            raise PeerError("Protocol error: server sent chunk exceeding requested region")
        self.received += length
        return view[at : at + length]

    def take_chunk(
        self, flags: int, kind: int, data: bytes | bytearray, context_id: int | None
    ) -> None:
        """Handle a chunk of another kind.

        Args:
            flags: NBD_REPLY_FLAG_*.
            kind: NBD_REPLY_TYPE_*.
            data: All of it behind the header.
            context_id: The metadata context whose extents are wanted.

        Raises:
            PeerError: It breaks the protocol.
        """
        if kind == nbd.REPLY_NONE:
            if data or not flags & nbd.REPLY_FLAG_DONE:
                raise PeerError("Protocol error: NBD_REPLY_TYPE_NONE chunk is malformed")
        elif kind & nbd.REPLY_IS_ERROR:
            if len(data) < nbd.ERROR_TEXT.size:
                raise PeerError("Protocol error: invalid payload for NBD_REPLY_TYPE_ERROR")
            self.refuse(nbd.ERROR_TEXT.unpack_from(data)[0])
        elif kind == nbd.REPLY_OFFSET_HOLE:
            if len(data) != nbd.OFFSET_AND_HOLE.size:
                raise PeerError("Protocol error: invalid payload for NBD_REPLY_TYPE_OFFSET_HOLE")
            fill_zero(self.take_data(*nbd.OFFSET_AND_HOLE.unpack(data)))
        elif kind == nbd.REPLY_BLOCK_STATUS:
            self._take_extents(data, context_id)
        else:
            raise PeerError(f"Protocol error: unexpected reply type {kind}")

    @property
    def wants_status(self) -> bool:
        """Whether extents may still come."""
        return self.command == nbd.CMD_BLOCK_STATUS and not self.extents

    def _take_extents(self, data: bytes | bytearray, context_id: int | None) -> None:
        extents = list(nbd.EXTENT.iter_unpack(data[4:])) if len(data) % 8 == 4 else []
        if (
            not self.wants_status
            or not extents
            or nbd.U32.unpack_from(data)[0] != context_id
            or not all(length for length, _ in extents)
        ):
            raise PeerError("Protocol error: invalid payload for NBD_REPLY_TYPE_BLOCK_STATUS")
        self.extents = extents

    def check_whole(self) -> None:
        """Look whether a reply that has ended said all that it must.

        Raises:
            PeerError: It did not.
        """
        if self.error is not None:
            return
        if self.command == nbd.CMD_READ and self.received != self.length:
            raise PeerError("Protocol error: server sent less data than was asked for")
        if self.command == nbd.CMD_BLOCK_STATUS and not self.extents:
            raise PeerError("Protocol error: server did not reply with any status extents")
