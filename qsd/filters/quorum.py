# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "quorum" driver: several children hold the same data, and the majority is right (QMP
reference, "BlockdevOptionsQuorum").

::

    read    all children ──▶ versions of the data ──▶ the one with the most votes, if those
                                                      reach the threshold
    write   all children ──▶ done if as many as the threshold succeeded

A child that fails or disagrees is reported by QUORUM_REPORT_BAD, an operation that too few children
agree about by QUORUM_FAILURE.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.aio import eager
from qsd.block import perms
from qsd.block.drain import Drained
from qsd.block.driver import Driver
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_ZERO, UNCHANGED, Status
from qsd.block.status import chain_status
from qsd.errors import QmpError, os_error
from qsd.filters.base import same_buffers
from qsd.qapi.schema.block_events import QuorumFailure, QuorumReportBad

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_events import QuorumOpType
    from qsd.qapi.schema.block_options import BlockdevOptionsQuorum

_SECTOR: Final = 512
_ROLE: Final = perms.ROLE_DATA


def _as_int(value: int) -> int:
    """Return what the C daemon keeps of a number: its lower 32 bits, with a sign."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


class QuorumDriver(Driver):
    """Asks several children.

    Attributes:
        edges: The children, oldest first.
    """

    name: ClassVar[str] = "quorum"
    family: ClassVar[str] = "filter"
    native_fua: ClassVar[bool] = False

    __slots__ = ("_blkverify", "_fifo", "_next_index", "_rewrite", "_threshold", "edges")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.edges: list[Edge] = []
        self._threshold = 0
        self._blkverify = False
        self._rewrite = False
        self._fifo = False
        self._next_index = 0

    async def open(self, options: BlockdevOptionsQuorum, opener: ChildOpener) -> None:
        """Check the options and attach all children."""
        count = len(options.children)
        self._threshold = _as_int(options.vote_threshold)
        if not count:
            raise QmpError("Number of provided children must be 1 or more")
        if self._threshold < 1:
            raise QmpError("Parameter 'vote-threshold' expects a value >= 1")
        if self._threshold > count:
            raise QmpError("threshold may not exceed children count")
        self._fifo = options.read_pattern == "fifo"
        if not self._fifo:
            self._set_modes(options)
        for index, ref in enumerate(options.children):
            self.edges.append(await opener.child(f"children.{index}", ref, _ROLE))
        self._next_index = count
        self._check_lengths()

    def _set_modes(self, options: BlockdevOptionsQuorum) -> None:
        """Take the options that only count where children vote."""
        if options.blkverify:
            if len(options.children) != 2 or self._threshold != 2:
                raise QmpError(
                    "blkverify=on can only be set if there are exactly two files "
                    "and vote-threshold is 2"
                )
            self._blkverify = True
        if options.rewrite_corrupted:
            if self._blkverify:
                raise QmpError("rewrite-corrupted=on cannot be used with blkverify=on")
            self._rewrite = True

    def _check_lengths(self) -> None:
        if len({edge.node.length() for edge in self.edges}) > 1:
            raise QmpError("Could not refresh total sector count: Input/output error")

    # Children

    async def add_child(self, child: Node) -> None:
        """Attach one more copy; it is taken to hold the same data."""
        if child.parents:
            raise QmpError(f"The node {child.name} already has a parent")
        if self._blkverify:
            raise QmpError("Cannot add a child to a quorum in blkverify mode")
        name = f"children.{self._next_index}"
        async with Drained([self.node]):
            self.edges.append(self.node.graph.attach_child(self.node, child, name, _ROLE))
        self._next_index += 1

    async def remove_child(self, edge: Edge) -> None:
        """Detach a copy."""
        if len(self.edges) <= self._threshold:
            raise QmpError(
                f"The number of children cannot be lower than the vote threshold {self._threshold}"
            )
        if edge.name == f"children.{self._next_index - 1}":
            self._next_index -= 1
        async with Drained([self.node]):
            self.edges.remove(edge)
            await self.node.graph.detach(edge)

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Let nobody change a copy behind our back; correcting one is a write of our own."""
        taken = perm & perms.ALL
        if self._rewrite:
            taken |= perms.WRITE
        return taken, shared & perms.CONSISTENT_READ | perms.WRITE_UNCHANGED

    @property
    def grows(self) -> bool:  # type: ignore[override]  # follows the children, not the class
        """Whether a write behind the end makes the children longer."""
        return all(edge.node.driver.grows for edge in self.edges)

    def length(self) -> int:
        """Return the length that all have; while they are resized one by one, the shortest."""
        return min(edge.node.length() for edge in self.edges)

    # Reports

    def _report_bad(
        self, kind: QuorumOpType, edge: Edge, offset: int, length: int, code: int
    ) -> None:
        start, end = offset // _SECTOR, -(-(offset + length) // _SECTOR)
        self.node.graph.events.emit(
            QuorumReportBad(
                type=kind,
                error=os.strerror(code) if code else None,
                node_name=edge.node.name,
                sector_num=start,
                sectors_count=end - start,
            )
        )

    def _report_failure(self, offset: int, length: int) -> None:
        start, end = offset // _SECTOR, -(-(offset + length) // _SECTOR)
        self.node.graph.events.emit(
            QuorumFailure(reference=self.node.name, sector_num=start, sectors_count=end - start)
        )

    # Asking all

    async def _ask_all(
        self, edges: Sequence[Edge], request: Callable[[int, Node], Coroutine[Any, Any, None]]
    ) -> list[int]:
        """Send a request to several children at once; return an errno, or 0, for each."""
        codes = [0] * len(edges)

        async def ask(index: int, node: Node) -> None:
            try:
                await request(index, node)
            except OSError as exc:
                codes[index] = exc.errno or errno.EIO

        tasks: list[asyncio.Task[None]] = []
        for index, edge in enumerate(edges):
            task = eager.start(ask(index, edge.node), self.node.graph.tasks, "quorum")
            if task is not None:
                tasks.append(task)
        for task in tasks:
            await task
        return codes

    def _judge(
        self, kind: QuorumOpType, edges: Sequence[Edge], codes: Sequence[int],
        offset: int, length: int,
    ) -> None:  # fmt: skip
        """Report who failed.

        Raises:
            OSError: Too few succeeded; the errno is the one that most of the others had, of equals
                the last.
        """
        for edge, code in zip(edges, codes, strict=True):
            if code:
                self._report_bad(kind, edge, offset, length, code)
        failures = [code for code in reversed(codes) if code]
        if len(codes) - len(failures) < self._threshold:
            if kind != "flush":
                self._report_failure(offset, length)
            raise os_error(max(failures, key=failures.count) if failures else errno.EIO)

    # Reading

    async def read(self, offset: int, view: memoryview) -> None:
        """Read what the majority has, or what the first child has that can be read."""
        if self._fifo:
            await self._read_first(offset, view)
        else:
            await self._read_majority(offset, view)

    async def _read_first(self, offset: int, view: memoryview) -> None:
        code = errno.EIO
        for edge in self.edges:
            try:
                await edge.node.read(offset, view)
            except OSError as exc:
                code = exc.errno or errno.EIO
                self._report_bad("read", edge, offset, len(view), code)
            else:
                return
        raise os_error(code)

    async def _read_majority(self, offset: int, view: memoryview) -> None:
        edges = list(self.edges)
        length = len(view)
        # Each child needs a buffer of its own; the first uses the caller's.
        buffers = [view, *(memoryview(bytearray(length)) for _ in edges[1:])]
        codes = await self._ask_all(edges, lambda index, node: node.read(offset, buffers[index]))
        self._judge("read", edges, codes, offset, length)
        # Newest first, both the versions and who has them: of equals the last one wins.
        versions: list[list[int]] = []
        for index, code in enumerate(codes):
            if code:
                continue
            for version in versions:
                if buffers[version[0]] == buffers[index]:
                    version.insert(0, index)
                    break
            else:
                versions.insert(0, [index])
        if len(versions) > 1 and self._blkverify:
            self._disagree(offset, buffers)
        winner = max(versions, key=len)
        if len(winner) < self._threshold:
            self._report_failure(offset, length)
            raise os_error(errno.EIO)
        bad = [index for version in versions if version is not winner for index in version]
        for index in bad:
            self._report_bad("read", edges[index], offset, length, 0)
        right = buffers[winner[-1]]
        if bad and self._rewrite:
            await self._correct([edges[index] for index in bad], offset, right)
        if right is not view:
            view[:] = right

    async def _correct(self, edges: Sequence[Edge], offset: int, data: memoryview) -> None:
        """Overwrite copies that are wrong; if that fails too, they were reported already."""
        await self._ask_all(edges, lambda _, node: node.write(offset, data, UNCHANGED))

    def _disagree(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Say that the two copies differ, and exit before anything is overwritten."""
        at = same_buffers(buffers[0], buffers[1])
        sys.stderr.write(
            f"quorum: offset={offset} bytes={len(buffers[0])} contents mismatch at offset "
            f"{offset + at}\n"
        )
        sys.stderr.flush()
        os._exit(1)

    # Writing

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write to all."""
        edges = list(self.edges)
        codes = await self._ask_all(edges, lambda _, node: node.write(offset, view, flags))
        self._judge("write", edges, codes, offset, len(view))

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero all."""
        edges = list(self.edges)
        codes = await self._ask_all(edges, lambda _, node: node.zero(offset, length, flags))
        self._judge("write", edges, codes, offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Refuse, so that the copies stay the same: what is discarded may read differently."""
        raise os_error(errno.ENOTSUP)

    async def flush(self) -> None:
        """Flush all."""
        edges = list(self.edges)
        codes = await self._ask_all(edges, lambda _, node: node.flush())
        self._judge("flush", edges, codes, 0, 0)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Zeroes where all children say so, data elsewhere, and where one cannot tell."""
        zero = True
        for edge in self.edges:
            try:
                status = await chain_status(edge.node, offset, length)
            except OSError as exc:
                self._report_bad("read", edge, offset, length, exc.errno or errno.EIO)
                zero = False
                break
            length = min(length, status.length)
            if not status.flags & ST_ZERO:
                zero = False
                break
        return Status(length, ST_ALLOCATED | (ST_ZERO if zero else ST_DATA))
