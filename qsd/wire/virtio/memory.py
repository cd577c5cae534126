# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Guest memory: from addresses to views of what is mapped.

A guest names memory by guest-physical address (descriptors), a vhost-user front end names rings by
its own addresses.  Both are looked up in the same table of regions.  No address is believed: what
does not lie in a region raises.
"""

from __future__ import annotations

from operator import attrgetter

from qsd.errors import PeerError
from qsd.util.namedtuple import NamedTuple


class Region(NamedTuple):
    """A mapped piece of guest memory.

    Attributes:
        guest: Guest-physical address of its first byte.
        size: Length in bytes.
        user: Address of its first byte in the front end.
        view: The memory, `size` bytes.
    """

    guest: int
    size: int
    user: int
    view: memoryview


class GuestMemory:
    """A table of regions.

    Attributes:
        regions: Sorted by guest address.
        largest: The largest of them, where nearly everything lies; an empty one if there is none.
    """

    __slots__ = ("largest", "regions")

    def __init__(self, regions: list[Region]) -> None:
        """Make a table.

        Raises:
            PeerError: Regions overlap.
        """
        self.replace(regions)

    def replace(self, regions: list[Region]) -> None:
        """Have other regions from now on.

        Raises:
            PeerError: Regions overlap; nothing changed.
        """
        ordered = sorted(regions, key=attrgetter("guest"))
        end = 0
        for region in ordered:
            if region.guest < end or not region.size:
                raise PeerError("memory regions overlap or are empty")
            end = region.guest + region.size
        self.regions = ordered
        largest = max(ordered, key=attrgetter("size"), default=None)
        self.largest = largest or Region(0, 0, 0, memoryview(b""))

    def find(self, guest: int, length: int) -> memoryview | None:
        """Return the view of a guest range, or None unless it lies in one region."""
        first = self.largest
        start = guest - first.guest
        if start >= 0 and start + length <= first.size:
            return first.view[start : start + length]
        for region in self.regions:
            start = guest - region.guest
            if start >= 0 and start + length <= region.size:
                return region.view[start : start + length]
        return None

    def pieces(self, guest: int, length: int) -> list[memoryview]:
        """Return the views that make up a guest range, which may cross regions that touch.

        Raises:
            PeerError: Some of it is no memory.
        """
        found: list[memoryview] = []
        for region in self.regions:
            start = guest - region.guest
            if length and 0 <= start < region.size:
                count = min(length, region.size - start)
                found.append(region.view[start : start + count])
                guest += count
                length -= count
        if length:
            raise PeerError(f"address {guest:#x} is no guest memory")
        return found

    def find_user(self, user: int, length: int) -> memoryview:
        """Return the view of a range of the front end's own addresses.

        Raises:
            PeerError: It does not lie in one region.
        """
        for region in self.regions:
            start = user - region.user
            if start >= 0 and start + length <= region.size:
                return region.view[start : start + length]
        raise PeerError(f"address {user:#x} of a ring is no guest memory")
