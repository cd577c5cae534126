# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is known to be data in a file: disjoint half-open ranges, in order, bounded in number."""

from __future__ import annotations

from bisect import bisect_right

#: Ranges; how many are remembered before the memory is emptied and filled anew.  A file in so many
#: pieces is searched again; the value bounds memory to some 100 KiB.
MAX_EXTENTS = 2048


class Extents:
    """A set of disjoint ranges of bytes."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def end_of(self, offset: int) -> int:
        """Return the end of the range that `offset` lies in, 0 if there is none."""
        index = bisect_right(self._starts, offset) - 1
        if index >= 0 and offset < (end := self._ends[index]):
            return end
        return 0

    def add(self, start: int, end: int) -> None:
        """Add ``[start, end)``, joining it with what it touches."""
        low, high = self._touched(start, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        elif len(self._starts) >= MAX_EXTENTS:
            self.clear()
            low = high = 0
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def forget(self, start: int, end: int) -> None:
        """Remove ``[start, end)``."""
        starts, ends = self._starts, self._ends
        low, high = self._touched(start, end)
        if low == high:
            return
        first, last = starts[low], ends[high - 1]
        left = [(first, min(start, ends[low]))] if first < start else []
        right = [(max(end, starts[high - 1]), last)] if end < last else []
        starts[low:high] = [piece[0] for piece in left + right]
        ends[low:high] = [piece[1] for piece in left + right]

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._ends.clear()

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """Return the slice of ranges that overlap or adjoin ``[start, end)``."""
        low = bisect_right(self._starts, start) - 1
        if low < 0 or self._ends[low] < start:
            low += 1
        return low, bisect_right(self._starts, end)
