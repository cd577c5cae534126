# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""NBD block status: what an image is made of, one chunk for each metadata context.

A client that shows a map or copies everything asks for as many extents as fit; ``qemu-img`` asks
for one after the other and waits for each answer.  The first is served by the column
(:mod:`qsd.block.runs`), the second by :meth:`StatusRequests.serve`, which does as little as
possible between a request and its reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.block.mapping import ST_DATA, ST_ZERO
from qsd.block.runs import Runs
from qsd.block.status import MAX_DEPTH
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd import metacontext

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from mmap import mmap
    from typing import Any

    from qsd.block.backend import Backend
    from qsd.exports.buffers import Buffer
    from qsd.exports.nbd_bitmaps import ExportedBitmap
    from qsd.exports.nbd_known import KnownData
    from qsd.exports.outlet import Outlet
    from qsd.wire.nbd.server import Session

#: Extents; after so many a long request lets others run.
_TURN: Final = 256
#: Extents; so many from a fast path take as long as one that was asked for by itself.
_EXTENTS_PER_ASK: Final = 32
#: What most clients ask for.
_ONLY_ALLOCATION: Final = (metacontext.BASE_ALLOCATION_ID,)
#: Flags of runs to states of extents.
_STATES: Final = bytes(
    (0 if flags & ST_DATA else nbd.STATE_HOLE) | (nbd.STATE_ZERO if flags & ST_ZERO else 0)
    for flags in range(256)
)
#: The key (see the messages) of a request for one extent.
_ASK_ONE: Final = nbd.REQUEST_MAGIC << 32 | nbd.CMD_FLAG_REQ_ONE << 16 | nbd.CMD_BLOCK_STATUS
_HEADER_SIZE: Final = nbd.REQUEST.size
_unpack = nbd.KEYED_REQUEST.unpack_from


#: The same of the reply, and its length after that.
_CHUNK: Final = (
    nbd.STRUCTURED_REPLY_MAGIC << 32 | nbd.REPLY_FLAG_DONE << 16 | nbd.REPLY_BLOCK_STATUS
)
_EXTENT_SIZE: Final = nbd.U32.size + nbd.EXTENT.size
_pack_extent = nbd.KEYED_EXTENT_CHUNK.pack


def _find_nothing(offset: int, length: int) -> None:
    """Leave everything to the plain way."""


class StatusRequests:
    """Answers the block status requests of one connection."""

    __slots__ = (
        "_backend", "_bitmaps", "_find", "_generation", "_known", "_only_allocation", "_outlet",
        "_session", "_size",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        session: Session,
        bitmaps: Sequence[ExportedBitmap],
        known_data: KnownData,
        outlet: Outlet,
    ) -> None:
        self._backend = backend
        self._session = session
        self._size = session.size
        self._generation = -1
        self._find: Callable[[int, int], tuple[int, int] | None] = _find_nothing
        self._only_allocation = session.contexts == _ONLY_ALLOCATION
        self._bitmaps = bitmaps
        self._known = known_data
        self._outlet = outlet

    def serve(
        self, incoming: Buffer, position: int, end: int, send: Callable[[bytes], None]
    ) -> int:
        """Fast: answer requests for one extent of what is allocated, as far as it is known.

        The plain way is :meth:`answer`.

        Args:
            incoming: Where the requests are.
            position: Of the first of them.
            end: Of what was received.
            send: Takes the replies.

        Returns:
            How many bytes of requests were answered.
        """
        first = position
        while end - position >= _HEADER_SIZE:
            reply = self.reply_nowait(incoming.data, position)
            if not reply:
                break
            send(reply)
            position += _HEADER_SIZE
        return position - first

    def reply_nowait(self, memory: bytearray | mmap, position: int) -> bytes:
        """Fast: return the reply to a request for one extent of what is allocated.

        Nothing if it is another request, or one that must wait.  With `qemu-img map` of a file with
        many holes this and the system calls are most of what a request costs.
        """
        key, cookie, offset, length = _unpack(memory, position)
        if key != _ASK_ONE or not length or offset + length > self._size:
            return b""
        backend = self._backend
        if self._generation != backend.generation:
            self._generation = backend.generation
            self._find = self._choose()
        found = self._find(offset, length)
        if found is None:
            return b""
        extent, flags = found
        if flags == ST_DATA:
            self._known.note_extent(offset, extent)  # it will be read next
        return _pack_extent(
            _CHUNK, cookie, _EXTENT_SIZE, metacontext.BASE_ALLOCATION_ID, extent, _STATES[flags]
        )

    def _choose(self) -> Callable[[int, int], tuple[int, int] | None]:
        """Return what finds extents until the graph changes."""
        backend = self._backend
        if backend.edge is None or backend.quiesced or not self._only_allocation:
            return _find_nothing
        return backend.edge.node.driver.extent_path() or self._find_by_runs

    def _find_by_runs(self, offset: int, length: int) -> tuple[int, int] | None:
        """Find an extent, with its end, where many are found at once."""
        runs = self._backend.runs_nowait(offset, length, 1)
        if runs is None or not (runs.ends or runs.total >= length):
            return None  # the extent may go on
        return runs.lengths[0], runs.flags[0]

    async def answer(self, flags: int, cookie: int, offset: int, length: int) -> None:
        """Answer with one chunk for each negotiated context."""
        limit = 1 if flags & nbd.CMD_FLAG_REQ_ONE else nbd.MAX_EXTENTS
        contexts = self._session.contexts
        backend = self._backend
        for context in contexts:
            if context == metacontext.BASE_ALLOCATION_ID:
                runs = await _collect(backend.runs_nowait, self._content, offset, length, limit)
                states = runs.flags.translate(_STATES)
            elif context == metacontext.ALLOCATION_DEPTH_ID:
                runs = await _collect(backend.depths_nowait, self._depth, offset, length, limit)
                states = runs.flags
            else:
                bitmap = self._bitmaps[context - metacontext.FIRST_BITMAP_ID]
                runs = bitmap.runs(offset, length, limit)
                states = runs.flags
            final = context == contexts[-1]
            self._outlet.put(nbd.packed_status_chunk(cookie, context, runs.lengths, states, final))

    async def _content(self, offset: int, length: int, limit: int) -> Runs:
        """Tell what the start of a range is, in the plain way."""
        runs = await self._backend.runs(offset, length, limit)
        if runs is None:
            status = await self._backend.block_status(offset, length)
            runs = Runs()
            runs.add(status.length, status.flags & (ST_DATA | ST_ZERO))
        return runs

    async def _depth(self, offset: int, length: int, limit: int) -> Runs:
        """Tell which layer decides the start of a range, in the plain way."""
        extent, depth = await self._backend.allocation_depth(offset, length)
        runs = Runs()
        runs.add(extent, min(depth, MAX_DEPTH))
        return runs


async def _collect(
    fast: Callable[[int, int, int], Runs | None],
    plain: Callable[[int, int, int], Coroutine[Any, Any, Runs]],
    offset: int,
    length: int,
    limit: int,
) -> Runs:
    """Return what a range is made of, at most `limit` extents from its start."""
    runs = Runs()
    end = offset + length
    asked = 0
    while offset < end and len(runs) <= limit:
        # One more than there is room for: the last one must be known to its end.
        room = limit + 1 - len(runs)
        some = fast(offset, end - offset, room) or await plain(offset, end - offset, room)
        runs.extend_by(some)
        offset += some.total
        asked += 1 + len(some) // _EXTENTS_PER_ASK
        if asked >= _TURN:
            asked = 0
            await _turn()
    runs.cut(limit)
    return runs


async def _turn() -> None:
    """Let others run."""
    from asyncio import sleep

    await sleep(0)
