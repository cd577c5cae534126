# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "luks" format: an encrypted volume (QMP reference, "BlockdevOptionsLUKS").

The header is read and written by :mod:`qsd.formats.encryption`; behind it lie the sectors, each
encrypted by itself, numbered from the payload on.  What is read is decrypted where it was read to;
what is written is encrypted into other memory first.

There are no holes and no zeroes in an encrypted volume: zeroing means writing zeroes, and all of it
counts as data.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.aio.rangelock import RangeLock
from qsd.block import perms
from qsd.block.create import open_target
from qsd.block.driver import Driver
from qsd.errors import QmpError, os_error
from qsd.formats.encryption import (
    LuksHeader,
    Place,
    check_create_options,
    find_password,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.block.graph import Edge, Graph
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.formats.sectors import Sectors
    from qsd.qapi.schema.block_create import BlockdevCreateOptionsLUKS
    from qsd.qapi.schema.block_options import BlockdevOptionsLUKS

_SECTOR: Final = 512
_INT64_MAX: Final = (1 << 63) - 1
_TOO_LARGE: Final = "The requested file size is too large"


class LuksDriver(Driver):
    """One open volume."""

    name: ClassVar[str] = "luks"
    checks_alignment: ClassVar[bool] = True

    __slots__ = (
        "_amending", "_amendments", "_edge", "_header", "_key_secret", "_payload", "_sectors",
    )  # fmt: skip

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._edge: Edge
        self._header: LuksHeader
        self._sectors: Sectors
        self._payload = 0
        self._key_secret: str | None = None
        # One change of the header at a time, and how many were begun.
        self._amending = RangeLock()
        self._amendments = 0

    # Life cycle

    async def open(self, options: BlockdevOptionsLUKS, opener: ChildOpener) -> None:
        """Read the header and unlock it."""
        self._edge = await opener.child("file", options.file, perms.ROLE_IMAGE)
        graph = self.node.graph
        password = find_password(graph, options.key_secret)
        self._header = await LuksHeader.read(Place(self._edge.node, 0, None), graph.pool)
        self._sectors = self._header.make_sectors(await self._header.unlock(password))
        self._payload = self._header.header.payload_offset
        self._key_secret = options.key_secret
        self.limits.request_alignment = _SECTOR
        try:
            self.length()
        except OSError as exc:
            raise QmpError(f"Could not refresh total sector count: {exc.strerror}") from exc

    async def close(self) -> None:
        """Forget the key."""
        self._sectors.forget()

    async def prepare_reopen(self, options: BlockdevOptionsLUKS, read_only: bool) -> None:
        """Accept the same options again."""

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Take what the users take, and always read; others may do as the users allow.

        While keys change, the file is nobody else's: another volume over it would keep the old
        header in memory, and bring its keys back with the next change.
        """
        taken = perm | perms.CONSISTENT_READ
        if self._amendments:
            taken |= perms.WRITE
            shared &= ~(perms.CONSISTENT_READ | perms.WRITE)
        return taken, shared

    def begin_amend(self) -> None:
        """Take the file for a change of keys.

        That the volume itself is read-only is about its payload: the C daemon changes keys then.
        """
        if self._edge.node.read_only:
            raise QmpError("Block node is read-only")
        self._amendments += 1
        try:
            self.node.graph.update([self.node])
        except QmpError:
            self._amendments -= 1
            raise

    def end_amend(self) -> None:
        """Let others use the file again."""
        self._amendments -= 1
        try:
            self.node.graph.update([self.node])
        except QmpError:
            # A file cannot be opened with less access, say.  The change is over all the same.
            pass

    async def amend(self, options: Any, force: bool) -> None:
        """Add or erase keys, one job after the other; see :meth:`begin_amend`."""
        hold = await self._amending.claim(0, 1, True)
        try:
            await self._header.amend(self.node.graph, options, self._key_secret, force=force)
        finally:
            self._amending.release(hold)

    # Geometry

    def length(self) -> int:
        """Return the length of the payload.

        Raises:
            OSError: The child ends before it.
        """
        length = self._edge.node.length() - self._payload
        if length < 0:
            raise os_error(errno.EIO)
        return length

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Resize the child."""
        if length > _INT64_MAX - self._payload:
            raise QmpError(_TOO_LARGE)
        await self._edge.node.truncate(
            length + self._payload, exact=exact, prealloc=prealloc, flags=flags
        )

    # I/O

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast: read and decrypt a short request at once."""
        length = len(view)
        if self._sectors.defers(offset, length) or not 0 <= offset <= self.node._length - length:
            return False
        return self._sectors.read_nowait(self._edge.node, offset, offset + self._payload, view)

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Fast: decrypt a short request together with others, or a long one in a thread."""
        host = offset + self._payload
        return self._sectors.read_later(self._edge.node, offset, host, view, done)

    async def read(self, offset: int, view: memoryview) -> None:
        """Read and decrypt whole sectors."""
        await self._edge.node.read(offset + self._payload, view)
        await self._sectors.decrypt(offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast: encrypt and write a short request at once."""
        length = len(view)
        node = self.node
        if self._sectors.defers(offset, length) or not 0 <= offset <= node._length - length:
            return False
        if node.rmw is not None and node.rmw.exclusive_count:
            return False  # somebody reads sectors in order to write them back
        if not self._sectors.write_nowait(self._edge.node, offset, offset + self._payload, view):
            return False
        if offset + length > node.wr_highest_offset:
            node.wr_highest_offset = offset + length
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Fast: encrypt a short request together with others, or a long one in a thread."""
        host = offset + self._payload
        return self._sectors.write_later(self._edge.node, offset, host, view, done)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Encrypt and write whole sectors."""
        host = offset + self._payload
        child = self._edge.node

        async def store(start: int, encrypted: memoryview) -> None:
            await child.write(host + start, encrypted, flags)

        await self._sectors.write(offset, view, store)

    # Several requests at once: see :mod:`qsd.exports.nbd_runs`

    def run_path(self) -> LuksDriver | None:
        """Return this, if calls of the cipher are what a request costs."""
        return None if self._sectors.volume.is_slow else self

    def read_run(self, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fast: read and decrypt several short requests."""
        pieces = self._pieces(requests)
        return len(pieces) if pieces and self._sectors.read_run(self._edge.node, pieces) else 0

    def write_run(self, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fast: encrypt and write several short requests."""
        node = self.node
        pieces = self._pieces(requests)
        if not pieces or (node.rmw is not None and node.rmw.exclusive_count):
            return 0  # or somebody reads sectors in order to write them back
        count = self._sectors.write_run(self._edge.node, pieces)
        for offset, view in requests[:count]:
            if offset + len(view) > node.wr_highest_offset:
                node.wr_highest_offset = offset + len(view)
        return count

    def _pieces(
        self, requests: Sequence[tuple[int, memoryview]]
    ) -> list[tuple[int, int, memoryview]]:
        """Return where requests go; nothing if one of them is not of whole sectors or outside."""
        bits, payload, length = 0, self._payload, self.node._length
        for offset, view in requests:
            bits |= offset | len(view)
            if not 0 <= offset <= length - len(view):
                return []
        if bits & (_SECTOR - 1):
            return []
        return [(offset, offset + payload, view) for offset, view in requests]

    # Description

    def image_info(self) -> dict[str, Any]:
        """Return ImageInfo members."""
        return {
            "dirty-flag": False,
            "encrypted": True,
            "format-specific": {"type": "luks", "data": self._header.info()},
        }


async def create(graph: Graph, options: BlockdevCreateOptionsLUKS) -> None:
    """Make a volume; the creator of the catalog.

    Raises:
        QmpError: With the C daemon's text.
    """
    async with open_target(graph, options.file) as target:
        prealloc = options.preallocation or "off"
        if prealloc == "metadata":
            prealloc = "off"  # all metadata there is, the header, is written anyway
        password = find_password(graph, options.key_secret)
        spec = check_create_options(options)
        length = spec.header_length
        if not 0 <= options.size <= _INT64_MAX - length:
            raise QmpError(_TOO_LARGE)
        node = target.node
        try:
            await node.truncate(options.size + length, prealloc=prealloc)
        except QmpError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EFBIG:
                raise QmpError(_TOO_LARGE) from exc  # whoever says so, it is the same
            raise
        await LuksHeader.create(Place(node, 0, None), graph.pool, spec, password)
