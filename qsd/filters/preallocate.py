# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "preallocate" filter: a file grows in large steps (QEMU's manual, "Filter drivers",
"preallocate").

::

    |<---------- what users see ----------->|<-- preallocated -->|
    0                                    data end             file end

A write past the file's end makes the file longer than needed; the filter goes on reporting the data
end as its length.  While somebody above may resize the file the filter knows where the data ends;
as soon as nobody may, and when it is closed, it cuts off what was not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from qsd.block import perms
from qsd.errors import QmpError
from qsd.filters.base import FilterDriver
from qsd.util.namedtuple import NamedTuple
from qsd.util.ranges import align_up

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_options import BlockdevOptionsPreallocate

_SECTOR: Final = 512
_DEFAULT_ALIGN: Final = 1 << 20
_DEFAULT_SIZE: Final = 128 << 20
_GROWING: Final = perms.WRITE | perms.RESIZE


class Steps(NamedTuple):
    """How the file grows, bytes."""

    align: int
    size: int


def check_steps(options: BlockdevOptionsPreallocate) -> Steps:
    """Return the steps that the options ask for.

    Raises:
        QmpError: They are impossible.
    """
    align, size = options.prealloc_align, options.prealloc_size
    for name, value in (("prealloc-align", align), ("prealloc-size", size)):
        if value is not None and value < 0:
            raise QmpError(f"Parameter '{name}' expects a non-negative number below 2^64")
    if align is not None and align % _SECTOR:
        raise QmpError(
            f"prealloc-align parameter of preallocate filter is not aligned to {_SECTOR}"
        )
    return Steps(
        _DEFAULT_ALIGN if align is None else align, _DEFAULT_SIZE if size is None else size
    )


class PreallocateDriver(FilterDriver):
    """Makes the file below longer than it need be."""

    name: ClassVar[str] = "preallocate"
    changeable_options: ClassVar[frozenset[str]] = frozenset(("prealloc-align", "prealloc-size"))

    __slots__ = ("_data_end", "_growing", "_options", "_steps")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._steps = Steps(_DEFAULT_ALIGN, _DEFAULT_SIZE)
        self._options: BlockdevOptionsPreallocate
        self._growing = False
        self._data_end = -1  # unknown: the child's length is right

    async def open(self, options: BlockdevOptionsPreallocate, opener: ChildOpener) -> None:
        """Attach the file."""
        await super().open(options, opener)
        self._options = options
        self._steps = check_steps(options)

    async def close(self) -> None:
        """Cut off what was not used."""
        await self._trim()

    async def _trim(self) -> None:
        end, self._data_end = self._data_end, -1
        child = self.edge.node
        if 0 <= end < child.length() and not child.read_only:
            await child.truncate(end, exact=True)

    async def prepare_reopen(
        self, options: BlockdevOptionsPreallocate, read_only: bool
    ) -> BlockdevOptionsPreallocate:
        """Check the new steps."""
        check_steps(options)
        return options

    async def commit_reopen(self, token: BlockdevOptionsPreallocate) -> None:
        """Take other steps from now on."""
        self._options = token
        self._steps = check_steps(token)

    # Permissions

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Keep others from changing the file while its end is not where they think it is."""
        if perm & perms.WRITE and self._data_end >= 0:
            perm |= perms.RESIZE
        if perm & _GROWING == _GROWING:
            shared &= ~_GROWING
        return perm & perms.ALL, shared & perms.ALL

    def set_perms(self, perm: int, shared: int) -> None:
        """Start or stop to grow the file with what the users above may do."""
        self._growing = perm & _GROWING == _GROWING

    # Geometry

    def length(self) -> int:
        """Return where the data ends."""
        return self._data_end if self._data_end >= 0 else self.edge.node.length()

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Set the end of the data; what users want is exact, so unused space goes first."""
        await self._trim()
        await super().truncate(length, exact, prealloc, flags)

    # I/O

    async def _make_room(self, end: int) -> None:
        """Make the file long enough, and longer, for a write that ends at `end`."""
        if end <= self.length() or not self._growing:
            return
        child = self.edge.node
        if self._data_end < 0:
            self._data_end = child.length()
        self._data_end = max(self._data_end, end)
        if end <= child.length():
            return
        wanted = align_up(end + self._steps.size, self._steps.align or 1)
        try:
            await child.truncate(wanted, prealloc="falloc")
        except (OSError, QmpError):
            # Growing by being written to works without preallocation.
            self._data_end = -1

    async def read(self, offset: int, view: memoryview) -> None:
        """Read what is there; the rest of a last sector is zero."""
        await self.edge.node.read_or_zero(offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write at once what needs no room."""
        return offset + len(view) <= self.length() and super().write_nowait(offset, view)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Make room, then write."""
        await self._make_room(offset + len(view))
        await self.edge.node.write(offset, view, flags)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Make room, then zero; space behind the old end of the data is zero already."""
        await self._make_room(offset + length)
        await self.edge.node.zero(offset, length, flags)
