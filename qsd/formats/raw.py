# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "raw" format: a child as it is, or a window of it (QMP reference, "BlockdevOptionsRaw")."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from qsd.block import perms
from qsd.block.driver import Driver
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_OFFSET, ST_ZERO, Status
from qsd.block.status import chain_runs_nowait, chain_status
from qsd.errors import QmpError
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.block.graph import Edge
    from qsd.block.late import LatePath
    from qsd.block.loans import Lent
    from qsd.block.mapping import Patch
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.block.piped import Payload
    from qsd.block.relay import RelayPath
    from qsd.block.runs import Runs
    from qsd.qapi.schema.block_options import BlockdevOptionsRaw

_SECTOR: Final = 512
_INT64_MAX: Final = (1 << 63) - 1


class Window(NamedTuple):
    """The part of the child that the node shows.

    Attributes:
        offset: Where it starts in the child, bytes.
        size: Its size in bytes; None means that it ends where the child ends.
    """

    offset: int
    size: int | None


def check_window(options: BlockdevOptionsRaw, available: int) -> Window:
    """Return the window that the options describe.

    Args:
        options: The options.
        available: The length of the child.

    Raises:
        QmpError: The child does not have such a part.
    """
    offset = options.offset if options.offset is not None else 0
    size = options.size
    for name, value in (("offset", offset), ("size", size)):
        if value is not None and value < 0:
            raise QmpError(f"Parameter '{name}' expects a non-negative number below 2^64")
    if offset > available:
        raise QmpError(
            f"Offset ({offset}) cannot be greater than size of the containing file ({available})"
        )
    if size is not None and available - offset < size:
        raise QmpError(
            f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the "
            f" actual size of the containing file ({available})"
        )
    if size is not None and size % _SECTOR:
        raise QmpError("Specified size is not multiple of 512")
    return Window(offset, size)


class RawDriver(Driver):
    """Passes everything on, moved by an offset.

    Without `offset` and `size` it counts as transparent: its users' permissions are passed on as
    they are.  A window cannot stand a child that changes its size, so then resizing is not shared.
    """

    name: ClassVar[str] = "raw"
    resettable_options: ClassVar[frozenset[str]] = frozenset(("offset", "size"))
    file_role: ClassVar[int] = perms.ROLE_FILTERED

    __slots__ = ("_edge", "_window", "offset")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.offset = 0
        self._window = Window(0, None)
        self._edge: Edge

    async def open(self, options: BlockdevOptionsRaw, opener: ChildOpener) -> None:
        """Attach the child and check the window."""
        windowed = bool(options.offset) or options.size is not None
        role = perms.ROLE_DATA if windowed else perms.ROLE_FILTERED
        self._edge = await opener.child("file", options.file, role)
        self._use(check_window(options, self._edge.node.length()))

    def _use(self, window: Window) -> None:
        self._window = window
        self.offset = window.offset

    async def prepare_reopen(self, options: BlockdevOptionsRaw, read_only: bool) -> Window:
        """Check the new window against the child, which is the old one still."""
        return check_window(options, self._edge.node.length())

    async def commit_reopen(self, token: Window) -> None:
        """Move the window; where another child is shorter than the old one, it ends with that."""
        room = max(0, self._edge.node.length() - token.offset)
        if token.size is not None and token.size > room:
            token = token._replace(size=room)
        self._use(token)

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Pass on what the users take; a window does not share resizing."""
        if edge.role & perms.ROLE_FILTERED:
            return perm, shared
        return perm, shared & ~perms.RESIZE

    # Geometry

    def length(self) -> int:
        """Return the size of the window; without one it follows the child."""
        if self._window.size is not None:
            return self._window.size
        return max(0, self._edge.node.length() - self.offset)

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Resize the child so that the window gets the length wanted."""
        if self._window.size is not None:
            raise QmpError("Cannot resize fixed-size raw disks")
        if length > _INT64_MAX - self.offset:
            raise QmpError("Disk size too large for the chosen offset")
        await self._edge.node.truncate(
            length + self.offset, exact=exact, prealloc=prealloc, flags=flags
        )

    # I/O

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Ask the child; what lies outside of the window is none of our users' business."""
        if not 0 <= offset <= self.node._length - len(view):
            return False
        return self._edge.node.read_nowait(offset + self.offset, view)

    def read_path(self) -> Callable[[int, memoryview], bool]:
        """Return the child's function, unless there is a window."""
        if self._window != (0, None):
            return self.read_nowait
        return self._edge.node.read_nowait

    def view_nowait(self, offset: int, length: int) -> memoryview | None:
        """Ask the child; what lies outside of the window is none of our users' business."""
        if not 0 <= offset <= self.node._length - length:
            return None
        return self._edge.node.view_nowait(offset + self.offset, length)

    def view_path(self) -> Callable[[int, int], memoryview | None]:
        """Return the child's function, unless there is a window."""
        if self._window != (0, None):
            return self.view_nowait
        return self._edge.node.view_nowait

    def view_chunks(self) -> dict[int, memoryview]:
        """Return the child's, unless there is a window."""
        return {} if self._window != (0, None) else self._edge.node.view_chunks

    def later_path(self) -> Callable[[int, memoryview, Callable[[bool], None]], bool] | None:
        """Return the child's function, unless there is a window."""
        return None if self._window != (0, None) else self._edge.node.read_later

    def late_path(self, is_write: bool) -> LatePath | None:
        """Return the child's path, unless there is a window."""
        return None if self._window != (0, None) else self._edge.node.late_path(is_write)

    def relay_path(self) -> RelayPath | None:
        """Return the child's path, unless there is a window."""
        return None if self._window != (0, None) else self._edge.node.relay_path()

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Ask the child."""
        if not 0 <= offset <= self.node._length - len(view):
            return False
        return self._edge.node.read_later(offset + self.offset, view, done)

    async def read(self, offset: int, view: memoryview) -> None:
        """Read; a last sector that the child does not have in full ends with zeroes."""
        self._edge.node.driver.debug_event("read_aio")
        await self._edge.node.read_or_zero(offset + self.offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Ask the child; what lies outside of the window is none of our users' business."""
        if not 0 <= offset <= self.node._length - len(view):
            return False
        if not self._edge.node.write_nowait(offset + self.offset, view):
            return False
        node = self.node
        if offset + len(view) > node.wr_highest_offset:
            node.wr_highest_offset = offset + len(view)
        return True

    def write_views_nowait(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        """Ask the child."""
        if not 0 <= offset <= self.node._length - length:
            return False
        if not self._edge.node.write_views_nowait(offset + self.offset, views, length):
            return False
        node = self.node
        if offset + length > node.wr_highest_offset:
            node.wr_highest_offset = offset + length
        return True

    def receive_nowait(self, offset: int, payload: Payload) -> bool:
        """Ask the child; what lies outside of the window is none of our users' business."""
        end = offset + payload.length
        if not 0 <= offset <= end <= self.node._length:
            return False
        if not self._edge.node.receive_nowait(offset + self.offset, payload):
            return False
        self.node.wr_highest_offset = max(self.node.wr_highest_offset, end)
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Ask the child."""
        if not 0 <= offset <= self.node._length - len(view):
            return False
        return self._edge.node.write_later(offset + self.offset, view, done)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write to the child."""
        self._edge.node.driver.debug_event("write_aio")
        await self._edge.node.write(offset + self.offset, view, flags)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero a part of the child."""
        await self._edge.node.zero(offset + self.offset, length, flags)

    async def discard(self, offset: int, length: int) -> None:
        """Discard a part of the child."""
        await self._edge.node.discard(offset + self.offset, length)

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Let the child take over what lies below it."""
        await self._edge.node.copy_up(offset + self.offset, length, flags)

    def is_own_nowait(self, offset: int, length: int) -> bool:
        """Ask the child."""
        return self._edge.node.driver.is_own_nowait(offset + self.offset, length)

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Ask the child; what lies outside of the window is none of our users' business."""
        if not 0 <= offset <= self.node._length - length:
            return None
        return self._edge.node.driver.locate_nowait(offset + self.offset, length)

    def lend_nowait(self, offset: int, length: int) -> Lent | None:
        """Ask the child; what lies outside of the window is none of our users' business."""
        if not 0 <= offset <= self.node._length - length:
            return None
        return self._edge.node.driver.lend_nowait(offset + self.offset, length)

    def pin_nowait(
        self, offset: int, length: int, holds: list[Callable[[], None]]
    ) -> tuple[int, int, int] | None:
        """Ask the child; what lies outside of the window is none of our users' business."""
        if not 0 <= offset <= self.node.length() - length:
            return None
        return self._edge.node.driver.pin_nowait(offset + self.offset, length, holds)

    async def write_from(self, offset: int, descriptor: int, host_offset: int, length: int) -> bool:
        """Write to the child."""
        return await self._edge.node.write_from(
            offset + self.offset, descriptor, host_offset, length
        )

    async def write_patches(
        self, offset: int, length: int, patches: Sequence[Patch], flags: int
    ) -> int:
        """Write to the child."""
        if self.offset:
            patches = [patch._replace(offset=patch.offset + self.offset) for patch in patches]
        return await self._edge.node.write_patches(offset + self.offset, length, patches, flags)

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Describe the child with all its layers."""
        child, start = self._edge.node, offset + self.offset
        available = child.length() - start
        if available <= 0:
            return None
        return chain_runs_nowait(child, start, min(length, available), limit)

    def extent_path(self) -> Callable[[int, int], tuple[int, int] | None] | None:
        """Return the child's function, unless there is a window."""
        return self._edge.node.driver.extent_path() if self._window == (0, None) else None

    def allocated_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Ask the child alone, without its layers."""
        child, start = self._edge.node, offset + self.offset
        available = child.length() - start
        if available <= 0 or child.closed:
            return None
        return child.driver.allocated_nowait(start, min(length, available), limit)

    async def runs(self, offset: int, length: int, limit: int) -> Runs | None:
        """Ask the child."""
        child, start = self._edge.node, offset + self.offset
        available = child.length() - start
        if available <= 0:
            return None
        return await child.driver.runs(start, min(length, available), limit)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Describe the child with all its layers: it is the content of this one."""
        child = self._edge.node
        start = offset + self.offset
        available = child.length() - start
        if available <= 0:
            return Status(length, ST_ZERO | ST_ALLOCATED)
        length = min(length, available)
        if want_zero:
            below = await chain_status(child, start, length)
        else:
            below = await child.block_status(start, length, False)
        flags = below.flags & (ST_DATA | ST_ZERO | ST_ALLOCATED) | ST_OFFSET
        return Status(below.length, flags, start, self._edge)
