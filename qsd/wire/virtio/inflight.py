# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A log, in memory that outlives the daemon, of the chains it has taken and not given back.

Source: QEMU documentation, "Vhost-user Protocol", "Inflight I/O tracking", for split virtqueues.
Each queue has a region::

    features 64 | version 16 | desc_num 16 | last_batch_head 16 | used_idx 16
    desc_num * { inflight 8, padding 40, next 16, counter 64 }

A chain is marked before it is served.  To give it back it is noted as the last batch, put into the
used ring, unmarked, and `used_idx` follows the ring's own index.  A daemon that dies in between
leaves `used_idx` behind the ring's index; its successor then unmarks what the last batch says, and
serves once more all chains that are still marked, oldest first.
"""

from __future__ import annotations

import struct
from operator import itemgetter
from typing import Final

_VERSION: Final = 1
_HEADER = struct.Struct("<QHHHH")
_DESC = struct.Struct("<B5xHQ")
_COUNTER = struct.Struct("<Q")
_NEXT_OFFSET = 6
_COUNTER_OFFSET = 8
#: Bytes; regions of queues begin at multiples of it.
_ALIGNMENT: Final = 64


def region_size(queue_size: int) -> int:
    """Return the bytes that one queue's region takes."""
    size = _HEADER.size + _DESC.size * queue_size
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


class InflightLog:
    """One queue's region."""

    __slots__ = ("_counter", "_region", "_size")

    def __init__(self, region: memoryview, queue_size: int) -> None:
        self._region = region
        self._size = queue_size
        self._counter = 0

    def recover(self, used_idx: int) -> list[int]:
        """Return the heads to serve once more, oldest first.

        Args:
            used_idx: The index in the used ring.
        """
        region = self._region
        features, version, number, last, logged = _HEADER.unpack_from(region)
        if version != _VERSION or number != self._size:
            _HEADER.pack_into(region, 0, features, _VERSION, self._size, 0, used_idx)
            return []
        done = (used_idx - logged) & 0xFFFF
        if done and last < self._size:
            # One chain is given back at a time, so at most one is not unmarked yet.
            region[self._at(last)] = 0
        self._set_used_idx(used_idx)
        found: list[tuple[int, int]] = []
        for head in range(self._size):
            marked, _, counter = _DESC.unpack_from(region, self._at(head))
            if marked == 1:
                found.append((counter, head))
        found.sort(key=itemgetter(0))
        if found:
            self._counter = found[-1][0] + 1
        return [head for _, head in found]

    def _at(self, head: int) -> int:
        return _HEADER.size + _DESC.size * head

    def _set_used_idx(self, used_idx: int) -> None:
        self._region[14:16] = used_idx.to_bytes(2, "little")

    def begin(self, head: int) -> None:
        """Mark a chain that was taken."""
        at = self._at(head)
        _COUNTER.pack_into(self._region, at + _COUNTER_OFFSET, self._counter & ((1 << 64) - 1))
        self._counter += 1
        self._region[at] = 1

    def finish(self, head: int) -> None:
        """Note a chain that is about to be given back."""
        self._region[12:14] = head.to_bytes(2, "little")

    def finished(self, head: int, used_idx: int) -> None:
        """Unmark a chain that was given back."""
        self._region[self._at(head)] = 0
        self._set_used_idx(used_idx)
