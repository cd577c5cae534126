# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The job behind block-commit of images that nobody writes to.

::

    overlay                overlay                        overlay
       |                      |                              |
      top                 commit_top                         |
       |     (start) ->      top           (success) ->      |
      mid                    mid   }  copied                 |
       |                      |    v  into                   |
     base                   base                           base    (top, mid: closed or alone)

While it runs, the images above the base show wrong content to anybody who looks at them directly,
so the job shares no consistent read on them.  On failure and cancellation the filter goes and the
overlay stands on top of the same images as before: what was copied does not show through, as every
copied range is decided by an image above the base.

The topmost image of a chain, which may be written to, is committed by a mirror job
(:mod:`qsd.jobs.mirror`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from qsd.block import perms
from qsd.block.chain import chain, is_allocated_above, skip_filters
from qsd.block.change import GraphChange
from qsd.block.copy import RangeCopier
from qsd.block.drain import Drained
from qsd.block.naming import filename
from qsd.block.reopen import set_read_only
from qsd.errors import QmpError, os_error
from qsd.filters.commit_top import CommitTopDriver
from qsd.jobs.copying import CHUNK, ChunkedJob, ChunkedJobOptions
from qsd.jobs.filters import drop_filter, insert_filter, make_backend, make_read_only_again

if TYPE_CHECKING:
    from qsd.block.graph import Edge, Graph
    from qsd.block.node import Node
    from qsd.jobs.job import JobRegistry
    from qsd.qapi.schema.job import JobType


class CommitJob(ChunkedJob):
    """Copies the data of images into the image below them, and takes them out of the chain."""

    TYPE: ClassVar[JobType] = "commit"

    __slots__ = (
        "_base", "_base_user", "_base_was_read_only", "_copier", "_filter", "_top", "_top_user",
    )  # fmt: skip

    def __init__(
        self,
        registry: JobRegistry,
        graph: Graph,
        job_id: str | None,
        top: Node,
        base: Node,
        options: ChunkedJobOptions,
    ) -> None:
        self._top = top
        self._base = base
        self._filter: Node | None = None
        self._base_was_read_only = False
        self._base_user = make_backend(graph)
        self._top_user = make_backend(graph)
        self._copier = RangeCopier(self._top_user, self._base_user, unmap=False, unit=CHUNK)
        super().__init__(registry, graph, job_id, options)

    async def set_up(self, active: Node) -> None:
        """Attach the job to the graph.

        Args:
            active: The node that the user named.

        Raises:
            QmpError: Names or permissions conflict; nothing changed, and the job is gone.
        """
        top, base = self._top, self._base
        try:
            self.use_node(active, "main node", 0, perms.ALL)
            self._filter = await insert_filter(
                self.graph, CommitTopDriver, self.options.filter_name, top, read_only=True
            )
            # Others must not look at what is between: it is not what it was.
            shared = perms.WRITE_UNCHANGED | perms.WRITE
            for node in chain(top):
                if node is base:
                    break
                self.use_node(node, "intermediate node", 0, shared)
            if base.read_only:
                await set_read_only(self.graph, base, False)
                self._base_was_read_only = True
            self.use_node(base, "base", 0, perms.ALL)
            taken = perms.CONSISTENT_READ | perms.WRITE
            if base.length() < top.length():
                taken |= perms.RESIZE
            self._base_user.attach(base, taken, perms.CONSISTENT_READ | perms.WRITE_UNCHANGED)
            self._top_user.attach(top, 0, perms.ALL)
        except BaseException:
            await self.abort()
            await self.clean()
            self.discard()
            raise

    # The work

    async def run(self) -> None:
        """Copy what the base does not have."""
        length = self._top.length()
        if self._base.length() < length:
            try:
                await self._base.truncate(length)
            except QmpError as exc:
                raise os_error(errno.EIO) from exc
        await self.go_over(length)

    async def look(self, offset: int, length: int) -> tuple[int, bool]:
        """Only what an image above the base decides is copied."""
        return await is_allocated_above(self._top, self._base, offset, length)

    async def treat(self, offset: int, length: int) -> None:
        """Copy a chunk."""
        await self._copier.copy(offset, length)

    # The end

    async def prepare(self) -> None:
        """Let the overlays stand on the base, and record that in them."""
        node = self._filter
        assert node is not None  # set_up has succeeded
        # The overlay must find in the base what it found above: that has to be there for good.
        await self._base_user.flush()
        await self._leave()
        name = self.options.backing_file
        if name is None:
            name = filename(self._base)
        fmt = _format_of(self._base)
        nodes = [node, *chain(self._top)]
        async with Drained(nodes):
            change = GraphChange(self.graph)
            overlays = [edge for edge in node.parents if _is_backing(edge)]
            change.move_users(node, self._base)
            for edge in list(node.children.values()):
                change.unlink(edge)
            change.apply([self._base])
            try:
                for edge in overlays:
                    await record_backing(self.graph, edge.user, name, fmt)  # type: ignore[arg-type]
            except BaseException:
                change.rollback()
                raise
            self._filter = None
            self._base.implicit = False  # not what opening the overlay brought along
            await change.finish()
        if not node.closed:
            await self.graph.close_node(node)

    async def _leave(self) -> None:
        """Let go of everything whose permissions stand in the way of the final graph."""
        await self._top_user.detach()
        await self.release_nodes()

    async def abort(self) -> None:
        """Take the filter out again; the chain is as it was."""
        node, self._filter = self._filter, None
        await self._leave()
        if node is not None:
            await drop_filter(self.graph, node)

    async def clean(self) -> None:
        """Let go of everything; the base becomes read-only again if it was."""
        await super().clean()
        await self._top_user.detach()
        await self._base_user.detach()
        if self._base_was_read_only:
            await make_read_only_again(self.graph, self._base)


def _is_backing(edge: Edge) -> bool:
    return bool(edge.role & perms.ROLE_COW)


def _format_of(node: Node) -> str:
    layer = skip_filters(node)
    return (layer or node).driver.name


async def record_backing(graph: Graph, overlay: Node, name: str | None, fmt: str | None) -> None:
    """Write another backing file into an image, which is made writable for that if need be.

    Raises:
        QmpError, OSError: That failed; the old record stands.
    """
    read_only = overlay.read_only
    if read_only:
        await set_read_only(graph, overlay, False)
    try:
        await overlay.driver.change_backing_file(name, fmt)
    finally:
        if read_only:
            await set_read_only(graph, overlay, True)


async def start_commit(
    registry: JobRegistry,
    graph: Graph,
    job_id: str | None,
    active: Node,
    top: Node,
    base: Node,
    options: ChunkedJobOptions,
) -> CommitJob:
    """Make and start a job that commits images below the topmost one.

    Args:
        registry: The jobs.
        graph: The graph.
        job_id: Identifier of the job.
        active: The node that the user named.
        top: The first image that is committed.
        base: What it is committed into.
        options: What the user says.

    Raises:
        QmpError: It cannot be done; nothing changed.
    """
    job = CommitJob(registry, graph, job_id, top, base, options)
    await job.set_up(active)
    await job.begin()
    return job


__all__ = ["CommitJob", "start_commit", "record_backing"]
