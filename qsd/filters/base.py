# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What all filters share: requests pass through to one filtered child.

A filter shows the content of its filtered child and stands in the way of requests to it.  This base
class passes everything on; a filter overrides what it cares about.  Where it does nothing to a kind
of request, the plain-function fast path goes straight through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qsd.block import perms
from qsd.block.driver import Driver
from qsd.block.mapping import ST_ALLOCATED, ST_COMPRESSED, ST_DATA, ST_OFFSET, ST_ZERO, Status
from qsd.block.status import layer_status

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.loans import Lent
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener

_PASSED_STATUS = ST_DATA | ST_ZERO | ST_ALLOCATED | ST_COMPRESSED


class FilterDriver(Driver):
    """Passes everything on to the filtered child.

    Attributes:
        edge: The filtered child; set by `open`.
    """

    family: ClassVar[str] = "filter"
    file_role: ClassVar[int] = perms.ROLE_FILTERED
    #: FUA travels down with the request; whoever cannot do it below flushes there.
    native_fua: ClassVar[bool] = True

    __slots__ = ("edge",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.edge: Edge

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Attach the filtered child."""
        self.edge = await opener.child("file", options.file, perms.ROLE_FILTERED)

    # Geometry

    @property
    def grows(self) -> bool:  # type: ignore[override]  # follows the child, not the class
        """Whether a write behind the end makes the child longer."""
        return self.edge.node.driver.grows

    def length(self) -> int:
        """Return the child's length."""
        return self.edge.node.length()

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Resize the child."""
        await self.edge.node.truncate(length, exact=exact, prealloc=prealloc, flags=flags)

    # I/O

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Ask the child."""
        return self.edge.node.read_nowait(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        """Read from the child; the rest of a last block that is not whole is zero."""
        await self.edge.node.read_or_zero(offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Ask the child."""
        if not self.edge.node.write_nowait(offset, view):
            return False
        node = self.node
        if offset + len(view) > node.wr_highest_offset:
            node.wr_highest_offset = offset + len(view)
        return True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write to the child."""
        await self.edge.node.write(offset, view, flags)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero a part of the child."""
        await self.edge.node.zero(offset, length, flags)

    async def discard(self, offset: int, length: int) -> None:
        """Discard a part of the child."""
        await self.edge.node.discard(offset, length)

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Let the child take over what lies below it."""
        await self.edge.node.copy_up(offset, length, flags)

    def is_own_nowait(self, offset: int, length: int) -> bool:
        """Ask the child."""
        return self.edge.node.driver.is_own_nowait(offset, length)

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Ask the child: the fast path of reading goes through, so sending from a file may too."""
        return self.edge.node.driver.locate_nowait(offset, length)

    def lend_nowait(self, offset: int, length: int) -> Lent | None:
        """Ask the child, where it may be asked for the place."""
        if self.locate_nowait(offset, length) is None:
            return None
        return self.edge.node.driver.lend_nowait(offset, length)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Describe the child's own layer; what is not allocated there lies below this one too."""
        below = await layer_status(self.edge.node, offset, length, want_zero)
        return Status(below.length, below.flags & _PASSED_STATUS | ST_OFFSET, offset, self.edge)


def filtered_filename(edge: Edge) -> str | None:
    """Return the plain name of a child for a filter that goes by the same name."""
    from qsd.block.naming import exact_filename

    return exact_filename(edge.node)


def same_buffers(one: memoryview, other: memoryview) -> int:
    """Return the offset of the first byte in which two buffers of one length differ, or -1."""
    if one == other:
        return -1
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


__all__ = ["FilterDriver", "filtered_filename", "same_buffers"]
