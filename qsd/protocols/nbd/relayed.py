# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests of a connection that came from clients of ours as they are (:mod:`qsd.block.relay`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.errors import PeerError
from qsd.protocols.nbd.request import Request
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from qsd.block.relay import Relayed, RelayOwner

_SIMPLE_SIZE: Final = nbd.SIMPLE_REPLY.size
_CHUNK_SIZE: Final = nbd.CHUNK.size
_DATA_SIZE: Final = nbd.DATA_CHUNK.size
_STRUCTURED_BYTE: Final = nbd.STRUCTURED_REPLY_MAGIC >> 24

#: Keys (see the messages) of replies that tell of success.
_SIMPLE: Final = nbd.SIMPLE_REPLY_MAGIC << 32
_CHUNK: Final = nbd.STRUCTURED_REPLY_MAGIC << 32 | nbd.REPLY_FLAG_DONE << 16 | nbd.REPLY_OFFSET_DATA

_unpack_simple = nbd.KEYED_SIMPLE_REPLY.unpack_from
_unpack_chunk = nbd.KEYED_DATA_CHUNK.unpack_from
_pack_cookie = nbd.U64.pack_into
#: Bytes in front of the cookie, in replies of both kinds.
_COOKIE: Final = 8


class RelayedReplies:
    """Finds the usual replies to relayed requests in what was received.

    Attributes:
        requests: Those on their way, by the cookie that the server knows.
        is_partial: The last look met the beginning of a usual reply.
        runs: What the last look found: where replies begin and end, and requests of one owner.
    """

    __slots__ = ("_is_structured", "is_partial", "requests", "runs")

    def __init__(self, is_structured: bool) -> None:
        self._is_structured = is_structured
        self.requests: dict[int, Relayed] = {}
        self.is_partial = False
        self.runs: list[tuple[int, int, list[Relayed]]] = []

    def look(self, staging: bytearray, start: int, end: int) -> int:
        """Fast path: find replies, with the cookies of those who asked, until something else comes.

        Args:
            staging: What was received.
            start: Where in it a reply begins.
            end: Where it ends.

        Returns:
            Where the usual replies end.
        """
        requests, is_structured = self.requests, self._is_structured
        self.is_partial = False
        runs = self.runs = []
        run: list[Relayed] = []
        owner: RelayOwner | None = None
        first = start
        while end - start >= _SIMPLE_SIZE:
            if staging[start] == _STRUCTURED_BYTE:
                if end - start < _DATA_SIZE:
                    break
                key, cookie, length, offset = _unpack_chunk(staging, start)
                request = requests.get(cookie)
                if (
                    request is None
                    or key != _CHUNK
                    or offset != request[2]
                    or length != request[3] + 8
                    or request[4] is not None
                ):
                    break
                stop = start + _CHUNK_SIZE + length
            else:
                key, cookie = _unpack_simple(staging, start)
                request = requests.get(cookie)
                if request is None or key != _SIMPLE:
                    break
                stop = start + _SIMPLE_SIZE
                if request[4] is None:
                    if is_structured:
                        break
                    stop += request[3]
            if stop > end:
                self.is_partial = True
                break
            if request[0] is not owner:
                if run:
                    runs.append((first, start, run))
                owner, run, first = request[0], [], start
            if request[1] != cookie:
                _pack_cookie(staging, start + _COOKIE, request[1])
            del requests[cookie]
            run.append(request)
            start = stop
        if run:
            runs.append((first, start, run))
        return start

    def make_full(self, cookie: int) -> Request:
        """Make a relayed request, whose reply is not one to hand on, a full one.

        Raises:
            PeerError: There is none.
        """
        relayed = self.requests.pop(cookie, None)
        if relayed is None:
            raise PeerError(f"Unexpected reply to cookie {cookie}")
        owner, _, offset, length, held, _ = relayed
        data = memoryview(bytearray(length)) if held is None else None

        def done(request: Request) -> None:
            if request.error is None:
                owner.answered(relayed, data)
            else:
                owner.not_relayed(relayed)

        return Request(
            nbd.CMD_WRITE if data is None else nbd.CMD_READ, 0, offset, length, data, done
        )
