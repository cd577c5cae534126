# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Memory of a VDUSE device: mapped when it is first used, forgotten when the kernel says so."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final

from qsd.errors import PeerError
from qsd.wire.virtio import vduse
from qsd.wire.virtio.memory import GuestMemory, Region

if TYPE_CHECKING:
    from collections.abc import Callable

#: Regions that may be mapped at once, a cap of ours.
_MAX_REGIONS: Final = 1024


class VduseMemory(GuestMemory):
    """A table of regions that asks the kernel for those it does not know.

    Addresses are I/O addresses; rings are named by them too.
    """

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[int, int], tuple[vduse.Mapping, int]]) -> None:
        """Begin with no region.

        Args:
            ask: Returns the first region in a range and a descriptor for it, raises OSError if
                there is none.
        """
        super().__init__([])
        self._ask = ask

    def find(self, guest: int, length: int) -> memoryview | None:
        """Return the view of a range, mapping it at need; None unless it lies in one region."""
        view = super().find(guest, length)
        if view is None and length and self._learn(guest, guest + length - 1):
            view = super().find(guest, length)
        return view

    def pieces(self, guest: int, length: int) -> list[memoryview]:
        """Return the views that make up a range, which may cross regions that touch.

        Raises:
            PeerError: Some of it is no memory.
        """
        end = guest + length
        at = guest
        while at < end and self._learn_around(at):
            at = next(r.guest + r.size for r in self.regions if r.guest <= at < r.guest + r.size)
        return super().pieces(guest, length)

    def find_user(self, user: int, length: int) -> memoryview:
        """Return the view of a part of a ring.

        Raises:
            PeerError: It does not lie in one region.
        """
        view = self.find(user, length)
        if view is None:
            raise PeerError(f"address {user:#x} of a ring is no memory")
        return view

    def _learn_around(self, address: int) -> bool:
        return super().find(address, 1) is not None or self._learn(address, address)

    def _learn(self, first: int, last: int) -> bool:
        """Map the region where a range begins; return whether there is one."""
        try:
            place, fd = self._ask(first, last)
        except (OSError, OverflowError):
            return False
        try:
            if place.first <= first <= place.last and len(self.regions) < _MAX_REGIONS:
                self.replace([*self.regions, _map(place, fd)])
                return True
        except (OSError, ValueError, OverflowError, PeerError):
            pass  # the device cannot use what cannot be mapped
        finally:
            os.close(fd)
        return False

    def forget(self, first: int, last: int) -> None:
        """Drop the regions that overlap a range; what still uses them keeps them mapped."""
        self.replace([r for r in self.regions if r.guest > last or r.guest + r.size <= first])


def _map(place: vduse.Mapping, fd: int) -> Region:
    size = place.last - place.first + 1
    protection = mmap.PROT_READ
    if place.access & vduse.ACCESS_WO:
        protection |= mmap.PROT_WRITE
    mapping = mmap.mmap(fd, place.offset + size, mmap.MAP_SHARED, protection)
    view = memoryview(mapping)[place.offset :]
    return Region(place.first, size, place.first, view)
