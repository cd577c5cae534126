# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status of many extents at once, packed.

A fragmented image has tens of thousands of extents, and an object for each of them costs more than
finding it.  So the fast path of block status hands on two arrays, which are joined, translated and
sent as a whole.
"""

from __future__ import annotations

from array import array


class Runs:
    """Extents one after the other, neighbours of one kind joined.

    Attributes:
        lengths: Bytes of each.
        flags: One byte for each: ST_DATA or ST_ZERO, both, or 0.  What 0 says is up to who gives
            the runs: a layer leaves it to its backing file, of a whole chain nothing is known.
        total: How many bytes are described.
    """

    __slots__ = ("flags", "lengths", "total")

    def __init__(self) -> None:
        self.lengths: array[int] = array("Q")
        self.flags = bytearray()
        self.total = 0

    def __len__(self) -> int:
        return len(self.flags)

    def add(self, length: int, flags: int) -> None:
        """Append one extent."""
        self.total += length
        if self.flags and self.flags[-1] == flags:
            self.lengths[-1] += length
        else:
            self.lengths.append(length)
            self.flags.append(flags)

    def extend(self, lengths: array[int], flags: bytes | bytearray, total: int) -> None:
        """Append extents, which are joined already among themselves and are so long in all."""
        self.total += total
        if self.flags and flags and self.flags[-1] == flags[0]:
            self.lengths[-1] += lengths[0]
            lengths, flags = lengths[1:], flags[1:]
        self.lengths.extend(lengths)
        self.flags.extend(flags)

    def extend_by(self, other: Runs) -> None:
        """Append the extents of another one."""
        self.extend(other.lengths, other.flags, other.total)

    def trim(self, start: int, end: int) -> None:
        """Shorten the first extent by so many bytes at its start, and the last one at its end."""
        self.lengths[0] -= start
        self.lengths[-1] -= end
        self.total -= start + end

    def cut(self, limit: int) -> None:
        """Drop what goes beyond `limit` extents."""
        if len(self.flags) > limit:
            self.total -= sum(self.lengths[limit:])
            del self.lengths[limit:]
            del self.flags[limit:]
