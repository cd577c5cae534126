# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Locks over byte ranges: overlapping requests take turns, others do not notice each other.

Requests are served in order of arrival: each one waits for all *earlier* conflicting requests, held
or waiting, and for no later one.  So there is neither starvation nor deadlock among requests that
take one range each.
"""

from __future__ import annotations

import asyncio


class RangeHold:
    """One request's claim on ``[start, end)``."""

    __slots__ = ("end", "exclusive", "start", "waiters")

    def __init__(self, start: int, end: int, exclusive: bool) -> None:
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.waiters: list[asyncio.Future[None]] | None = None


class RangeLock:
    """Shared and exclusive claims on ranges of one address space.

    Attributes:
        exclusive_count: Number of exclusive claims held or waiting; fast paths look only at this.
    """

    __slots__ = ("_holds", "exclusive_count")

    def __init__(self) -> None:
        # A dict keeps arrival order and removes in constant time.
        self._holds: dict[RangeHold, None] = {}
        self.exclusive_count = 0

    def __len__(self) -> int:
        return len(self._holds)

    def is_blocked(self, start: int, end: int, exclusive: bool) -> bool:
        """Tell whether a claim made now would have to wait."""
        if not exclusive and not self.exclusive_count:
            return False
        return any(
            hold.start < end and start < hold.end and (exclusive or hold.exclusive)
            for hold in self._holds
        )

    def claim_nowait(self, start: int, end: int, exclusive: bool) -> RangeHold | None:
        """Claim a range if nothing conflicts, else return None."""
        if (exclusive or self.exclusive_count) and self.is_blocked(start, end, exclusive):
            return None
        hold = RangeHold(start, end, exclusive)
        self._holds[hold] = None
        self.exclusive_count += exclusive
        return hold

    async def claim(self, start: int, end: int, exclusive: bool) -> RangeHold:
        """Claim a range, waiting for earlier conflicting claims.  Cancelling gives up the claim."""
        hold = RangeHold(start, end, exclusive)
        if not exclusive and not self.exclusive_count:
            self._holds[hold] = None
            return hold
        earlier = [
            other
            for other in self._holds
            if other.start < end and start < other.end and (exclusive or other.exclusive)
        ]
        self._holds[hold] = None
        self.exclusive_count += exclusive
        try:
            for other in earlier:
                if other in self._holds:
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    if other.waiters is None:
                        other.waiters = [future]
                    else:
                        other.waiters.append(future)
                    await future
        except BaseException:
            self.release(hold)
            raise
        return hold

    def release(self, hold: RangeHold) -> None:
        """Give a claim back and wake who waits for it."""
        del self._holds[hold]
        self.exclusive_count -= hold.exclusive
        if hold.waiters:
            for future in hold.waiters:
                if not future.done():
                    future.set_result(None)
            hold.waiters = None
