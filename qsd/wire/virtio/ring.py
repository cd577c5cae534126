# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The split virtqueue, the device's side.

Source: virtio 1.2, 2.7 "Split Virtqueues".  A ring is three areas in guest memory::

    desc   size * {addr 64, len 32, flags 16, next 16}
    avail  {flags 16, idx 16, ring 16 * size, used_event 16}         written by the driver
    used   {flags 16, idx 16, ring {id 32, len 32} * size, avail_event 16}  written by the device

Nothing in them is believed: indexes, chain lengths and addresses are checked, and what is wrong
raises :class:`PeerError`, after which the ring must not be used any more.

Order of memory accesses: what is read or written here goes straight to shared memory, and the
processor keeps loads in order and stores in order (x86; elsewhere the lock in :func:`barrier`
helps too).  Only "store, then load" needs a fence: publish an index, then look whether the other
side wants to be told.
"""

from __future__ import annotations

import struct
from _thread import allocate_lock
from struct import pack_into
from typing import TYPE_CHECKING, Final

from qsd.errors import PeerError

if TYPE_CHECKING:
    from qsd.wire.virtio.memory import GuestMemory

#: Feature bits (virtio 1.2, 6 "Reserved Feature Bits").
F_NOTIFY_ON_EMPTY: Final = 1 << 24
F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_VERSION_1: Final = 1 << 32
F_ACCESS_PLATFORM: Final = 1 << 33

#: Flags of descriptors (virtio 1.2, 2.7.5).
D_NEXT, D_WRITE, D_INDIRECT = 1, 2, 4
_NO_INTERRUPT = _NO_NOTIFY = 1

#: Descriptors; a longer ring is not valid (virtio 1.2, 2.7).
MAX_SIZE: Final = 32768
#: Descriptors of one request at most; a cap of ours against endless work, as large as the C
#: daemon's.
MAX_CHAIN: Final = 1024

_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")

#: Chain: what the device reads, what it writes, the descriptor the chain begins with.
Chain = tuple[list[memoryview], list[memoryview], int]

_fence = allocate_lock()


def barrier() -> None:
    """Order earlier stores before later loads: taking a lock is a full fence everywhere."""
    _fence.acquire()
    _fence.release()


def area_sizes(size: int) -> tuple[int, int, int]:
    """Return the lengths in bytes of the three areas of a ring with `size` descriptors."""
    return 16 * size, 6 + 2 * size, 6 + 8 * size


class SplitRing:
    """One ring that runs.

    Attributes:
        size: Number of descriptors, a power of two.
        desc: The area of descriptors.
        memory: Where they point to.
        indirect: Whether they may lie elsewhere in memory.
        last_avail: Index of the next chain to take.
        used_idx: Index of the next element to return.
    """

    __slots__ = (
        "_avail",
        "_event_idx",
        "_mask",
        "_on_empty",
        "_signalled",
        "_used",
        "_used_ring",
        "desc",
        "indirect",
        "last_avail",
        "memory",
        "size",
        "used_idx",
    )

    def __init__(
        self,
        size: int,
        areas: tuple[memoryview, memoryview, memoryview],
        memory: GuestMemory,
        features: int,
        last_avail: int,
    ) -> None:
        """Begin to use a ring.

        Args:
            size: Number of descriptors.
            areas: Descriptors, available ring, used ring.
            memory: Where descriptors point to.
            features: What was negotiated.
            last_avail: Where to go on.

        Raises:
            PeerError: The size is none that a ring can have, or the memory is not to be written.
        """
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise PeerError(f"a ring cannot have {size} descriptors")
        self.size = size
        self._mask = size - 1
        desc, avail, used = areas
        if used.readonly:
            raise PeerError("a used ring in memory that is only to be read")
        self.desc = desc
        self._avail = avail.cast("H")
        self._used = used[: (len(used) // 2) * 2].cast("H")
        self._used_ring = used
        self.memory = memory
        self._event_idx = bool(features & F_EVENT_IDX)
        self._on_empty = bool(features & F_NOTIFY_ON_EMPTY)
        self.indirect = bool(features & F_INDIRECT_DESC)
        self.last_avail = last_avail
        self.used_idx = self._used[1]
        self._signalled = -1

    # The driver's side

    def take(self, limit: int) -> list[int]:
        """Take what is available: the first descriptors of at most `limit` chains.

        Raises:
            PeerError: The ring is damaged.
        """
        avail = self._avail
        last = self.last_avail
        ready = (avail[1] - last) & 0xFFFF
        if not ready:
            return []
        if ready > self.size:
            raise PeerError("more chains available than the ring has descriptors")
        ready = min(ready, limit)
        self.last_avail = (last + ready) & 0xFFFF
        first = 2 + (last & self._mask)
        end = 2 + self.size
        heads = avail[first : min(first + ready, end)].tolist()
        if first + ready > end:
            heads += avail[2 : first + ready - self.size].tolist()
        return heads

    def chain(self, head: int) -> Chain:
        """Follow the chain that begins at `head`.

        Raises:
            PeerError: It is damaged.
        """
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        find = self.memory.find
        for address, length, flags in self._descriptors(head):
            if not flags & D_WRITE and writable:
                raise PeerError("a descriptor to read follows one to write")
            side = writable if flags & D_WRITE else readable
            view = find(address, length)
            if view is not None:
                side.append(view)
            else:
                side += self.memory.pieces(address, length)
        if any(view.readonly for view in writable):
            raise PeerError("a descriptor to write in memory that is only to be read")
        return readable, writable, head

    def written_ranges(self, head: int) -> list[tuple[int, int]]:
        """Return (guest address, length) of what the device may have written for a chain.

        Raises:
            PeerError: The driver has changed the chain meanwhile, and damaged it.
        """
        return [
            (address, length)
            for address, length, flags in self._descriptors(head)
            if flags & D_WRITE
        ]

    def _descriptors(self, head: int) -> list[tuple[int, int, int]]:
        """Return (address, length, flags) of the descriptors of a chain; lengths are not 0.

        Raises:
            PeerError: The chain is damaged.
        """
        table: bytes | memoryview = self.desc
        limit = self.size
        if head >= limit:
            raise PeerError(f"descriptor {head} is beyond the ring")
        address, length, flags, link = _DESC.unpack_from(table, 16 * head)
        if flags & D_INDIRECT:
            table = self._indirect_table(address, length, flags)
            limit = length // 16
            address, length, flags, link = _DESC.unpack_from(table, 0)
        found: list[tuple[int, int, int]] = []
        while True:
            if not length or flags & D_INDIRECT:
                raise PeerError("an empty or nested descriptor")
            found.append((address, length, flags))
            if not flags & D_NEXT:
                return found
            if link >= limit or len(found) == min(limit, MAX_CHAIN):
                raise PeerError("a chain of descriptors has no end")
            address, length, flags, link = _DESC.unpack_from(table, 16 * link)

    def _indirect_table(self, address: int, length: int, flags: int) -> bytes:
        """Return a table elsewhere in memory (virtio 1.2, 2.7.5.3 "Indirect Descriptors")."""
        if not self.indirect or flags & D_NEXT:
            raise PeerError("an indirect descriptor where none may be")
        if not length or length % 16 or length > 16 * MAX_CHAIN:
            raise PeerError(f"an indirect table of {length} bytes")
        table = self.memory.find(address, length)
        if table is None:
            raise PeerError(f"address {address:#x} is no guest memory")
        # A copy: the driver could change it between check and use.
        return bytes(table)

    # The device's side

    def push(self, head: int, written: int) -> None:
        """Give a chain back; `written` bytes of it were written."""
        used_idx = self.used_idx
        _USED.pack_into(self._used_ring, 4 + 8 * (used_idx & self._mask), head, written)
        self.used_idx = used_idx = (used_idx + 1) & 0xFFFF
        self._used[1] = used_idx

    def push_all(self, finished: list[int]) -> None:
        """Give several chains back: head and bytes written of each, one after the other."""
        used_idx = self.used_idx
        first = used_idx & self._mask
        count, room = len(finished), 2 * (self.size - first)
        if count <= room:
            pack_into(f"<{count}I", self._used_ring, 4 + 8 * first, *finished)
        else:
            pack_into(f"<{room}I", self._used_ring, 4 + 8 * first, *finished[:room])
            pack_into(f"<{count - room}I", self._used_ring, 4, *finished[room:])
        self.used_idx = used_idx = (used_idx + count // 2) & 0xFFFF
        self._used[1] = used_idx

    def wants_call(self) -> bool:
        """Tell whether the driver wants to hear of what was pushed since the last call."""
        barrier()
        old, new = self._signalled, self.used_idx
        self._signalled = new
        if old == new:
            return False
        if self._on_empty and self._avail[1] == self.last_avail:
            return True  # whatever the driver says otherwise
        if not self._event_idx:
            return not self._avail[0] & _NO_INTERRUPT
        if old < 0:
            return True
        event = self._avail[2 + self.size]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def stop_kicks(self) -> None:
        """Tell the driver that kicks are not needed: the ring is being looked at."""
        if not self._event_idx:
            self._used[0] = _NO_NOTIFY

    def want_kicks(self) -> bool:
        """Ask the driver for a kick; return whether something became available meanwhile."""
        if self._event_idx:
            self._used[2 + 4 * self.size] = self.last_avail
        else:
            self._used[0] = 0
        barrier()
        return self._avail[1] != self.last_avail
