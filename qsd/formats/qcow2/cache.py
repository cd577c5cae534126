# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A bounded cache of metadata tables (L2 slices, refcount blocks).

Vocabulary:

* A **slot** is one table in memory, under a key (a slice number, a block number).
* A slot is **dirty** over a range of entries until that range was written; **writing** while a
  write of it is in flight.  Only slots that are neither may be evicted.
* **hot** is the dict that fast paths look into: key -> packed array, nothing else.

Recency costs nothing on a hit.  Tables live in two generations: `hot` holds those touched in the
present one; a miss in `hot` that finds its slot promotes it.  When the cache is full and `hot`
holds half of what it may hold, a new generation starts: what was touched in neither is evicted.

The bound is soft: dirty slots stay until somebody wrote them, which is the owner's duty (it looks
at `needs_write_back` before it dirties more).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable


class Slot:
    """One cached table.

    Attributes:
        key: Its key in the cache.
        table: The entries in host byte order.
        dirty_from, dirty_to: Range of entries to write; empty if equal.
        writing: Number of writes in flight.
    """

    __slots__ = ("dirty_from", "dirty_to", "key", "table", "writing")

    def __init__(self, key: int, table: array[int]) -> None:
        self.key = key
        self.table = table
        self.dirty_from = 0
        self.dirty_to = 0
        self.writing = 0


class TableCache:
    """Tables by key.

    Attributes:
        hot: The fast paths' view; the dict object never changes.
        dirty: Slots with something to write, by key.
        capacity: Number of tables to keep.
        never_hot: Keys of tables that fast paths must not see.
    """

    __slots__ = ("_cold", "_loading", "_slots", "capacity", "dirty", "hot", "never_hot")

    def __init__(self, capacity: int) -> None:
        self.capacity = max(capacity, 2)
        self.hot: dict[int, array[int]] = {}
        self.dirty: dict[int, Slot] = {}
        self.never_hot: set[int] = set()
        self._slots: dict[int, Slot] = {}
        self._cold: set[int] = set()
        self._loading: dict[int, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: int) -> bool:
        return key in self._slots

    def get(self, key: int) -> array[int] | None:
        """Return a cached table, or None."""
        table = self.hot.get(key)
        if table is None:
            slot = self._slots.get(key)
            if slot is None:
                return None
            table = slot.table
            if key not in self.never_hot:
                self.hot[key] = table
        return table

    async def load(self, key: int, read: Callable[[int], Awaitable[array[int]]]) -> array[int]:
        """Return a table, reading it if need be; concurrent callers share one read.

        Raises:
            OSError: The read failed.
        """
        while (table := self.get(key)) is None:
            other = self._loading.get(key)
            if other is not None:
                await asyncio.wait([other])
                continue
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._loading[key] = future
            try:
                table = await read(key)
                # A table may have been put here while its old content was being read.
                if key not in self._slots:
                    self.put(key, table)
            finally:
                del self._loading[key]
                future.set_result(None)
        return table

    def put(self, key: int, table: array[int]) -> Slot:
        """Add a table, evicting others if need be."""
        slot = self._slots[key] = Slot(key, table)
        if key in self.never_hot:
            return slot
        self.hot[key] = table
        if len(self._slots) > self.capacity and len(self.hot) * 2 > self.capacity:
            self._new_generation(key)
        return slot

    def keep_cold(self, key: int) -> None:
        """Hide a table from the fast paths for good."""
        self.never_hot.add(key)
        self.hot.pop(key, None)

    def _new_generation(self, keep: int) -> None:
        """Evict what neither this generation nor the one before it touched."""
        hot = self.hot
        for key in self._cold:
            if key not in hot:
                self._evict(key)
        self._cold = {key for key in self._slots if key != keep}
        table = hot[keep]
        hot.clear()
        hot[keep] = table

    def _evict(self, key: int) -> None:
        slot = self._slots.get(key)
        if slot is not None and not slot.writing and slot.dirty_from == slot.dirty_to:
            del self._slots[key]
            self.hot.pop(key, None)

    def clean_unused(self) -> None:
        """Evict what was not touched since the last call (the cache-clean-interval option)."""
        hot = self.hot
        for key in list(self._slots):
            if key not in hot:
                self._evict(key)
        self._cold = set(self._slots)
        hot.clear()

    def forget_clean(self) -> dict[int, array[int]]:
        """Evict all that can be read again; return the other tables by key."""
        for key in list(self._slots):
            self._evict(key)
        return {key: slot.table for key, slot in self._slots.items()}

    def mark(self, key: int, start: int, end: int) -> None:
        """Declare entries ``[start, end)`` of a cached table changed."""
        slot = self._slots[key]
        if slot.dirty_from == slot.dirty_to:
            slot.dirty_from, slot.dirty_to = start, end
            self.dirty[key] = slot
        else:
            if start < slot.dirty_from:
                slot.dirty_from = start
            if end > slot.dirty_to:
                slot.dirty_to = end

    @property
    def needs_write_back(self) -> bool:
        """Whether the next table would evict another one, and so much is dirty that this is hard.

        While there is room nothing is written: a write-back waits for all data of the guest, 0.4 s
        in the middle of filling an image of 1 GiB.
        """
        return len(self._slots) >= self.capacity and len(self.dirty) * 2 >= self.capacity

    def begin_write(self, slot: Slot) -> tuple[int, int]:
        """Take the dirty range of a slot; call `end_write` once it was written or not."""
        dirty = slot.dirty_from, slot.dirty_to
        slot.dirty_from = slot.dirty_to = 0
        slot.writing += 1
        self.dirty.pop(slot.key, None)
        return dirty

    def end_write(self, slot: Slot, failed: tuple[int, int] | None = None) -> None:
        """Finish `begin_write`; a range that could not be written is dirty again."""
        slot.writing -= 1
        if failed is not None and self._slots.get(slot.key) is slot:
            self.mark(slot.key, *failed)

    def drop(self, key: int) -> None:
        """Forget a table, dirty or not: it does not exist any more."""
        self._slots.pop(key, None)
        self.hot.pop(key, None)
        self.dirty.pop(key, None)
        self._cold.discard(key)

    def clear(self) -> None:
        """Forget everything."""
        self.hot.clear()
        self.dirty.clear()
        self._slots.clear()
        self._cold.clear()

    def keys(self) -> list[int]:
        """Return the keys of all cached tables."""
        return list(self._slots)
