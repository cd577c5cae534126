# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The job behind block-stream: an image takes over the data of the images below it.

::

    users            users                          users
      |                |                              |
      |          copy-on-read                         |
     top    ->        top    ^                  ->   top
      |                |     | copied                 |
     mid             bottom  | up                     |
      |                |                              |
     base             base                           base

The job asks the filter to copy up what an image between top and base decides, and the guest's own
reads help.  Copying up happens under the lock of the image's mapping, so a write that comes
meanwhile goes before it or after it and is never lost.  After success the image's backing file is
the base; after failure or cancellation the chain is what it was, and what was copied is no more
than a second copy.

The lower bound is remembered as the last image that is streamed (`bottom`), not as the base: other
jobs may put another image below it meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qsd.block import perms
from qsd.block.chain import chain, cow_layer, is_allocated, is_allocated_above, skip_filters
from qsd.block.change import GraphChange
from qsd.block.copy import CopyError, begin_all
from qsd.block.drain import Drained
from qsd.block.naming import filename
from qsd.block.reopen import set_read_only
from qsd.block.status import backing_of
from qsd.errors import QmpError
from qsd.filters.copy_on_read import CopyOnReadDriver
from qsd.jobs.commit import record_backing
from qsd.jobs.copying import ChunkedJob, ChunkedJobOptions
from qsd.jobs.filters import drop_filter, insert_filter, make_backend, make_read_only_again
from qsd.qapi.schema.block_options import BlockdevOptions, BlockdevOptionsCor

if TYPE_CHECKING:
    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.jobs.job import JobRegistry
    from qsd.qapi.schema.job import JobType


class StreamJob(ChunkedJob):
    """Copies data up from the images below.

    Build it with :func:`start_stream`.
    """

    TYPE: ClassVar[JobType] = "stream"

    __slots__ = ("_bottom", "_error_met", "_filter", "_top", "_top_was_read_only", "_user")

    def __init__(
        self,
        registry: JobRegistry,
        graph: Graph,
        job_id: str | None,
        node: Node,
        *,
        top: Node,
        bottom: Node,
        top_was_read_only: bool,
        options: ChunkedJobOptions,
    ) -> None:
        self._filter: Node | None = node
        self._top = top
        self._bottom = bottom
        self._error_met: OSError | None = None
        self._top_was_read_only = top_was_read_only
        self._user = make_backend(graph)
        super().__init__(registry, graph, job_id, options)

    def set_up(self) -> None:
        """Attach the job to the graph.

        Raises:
            QmpError: Permissions conflict; nothing is attached.
        """
        node, top = self._filter, self._top
        assert node is not None  # until the end
        shared = perms.ALL & ~perms.RESIZE
        self.use_node(node, "main node", 0, perms.ALL)
        self._user.attach(node, perms.CONSISTENT_READ, shared)
        self.use_node(top, "active node", 0, shared)
        # What is copied must not change.
        below = backing_of(top)
        for layer in self._between(below):
            self.use_node(
                layer, "intermediate node", 0, perms.CONSISTENT_READ | perms.WRITE_UNCHANGED
            )

    def _between(self, below: Node | None) -> list[Node]:
        if self._bottom is self._top:
            return []
        nodes = []
        for node in chain(below):
            nodes.append(node)
            if node is self._bottom:
                break
        return nodes

    # The work

    async def run(self) -> None:
        """Copy up what is not there yet."""
        if self._bottom is self._top:
            return  # there is nothing below, or nothing that is wanted
        await self.go_over(self._top.length())
        if self._error_met is not None:
            raise self._error_met

    async def look(self, offset: int, length: int) -> tuple[int, bool]:
        """Only what an image below the top and above the base decides is copied."""
        top = self._top
        length, allocated = await is_allocated(top, offset, length)
        if allocated:
            return length, False
        return await is_allocated_above(cow_layer(top), cow_layer(self._bottom), offset, length)

    async def treat(self, offset: int, length: int) -> None:
        """Copy a chunk up."""
        await begin_all(self._user)
        try:
            await self._user.node.copy_up(offset, length)
            self._top.driver.write_behind()
        except OSError as exc:
            raise CopyError(True, await self._first_left(offset, length), exc) from exc
        finally:
            self._user.end()

    async def _first_left(self, offset: int, length: int) -> int:
        """Return where the first data is that could not be copied."""
        end = offset + length
        while offset < end:
            try:
                count, needed = await self.look(offset, end - offset)
            except OSError:
                break
            if needed:
                break
            offset += count
        return min(offset, end - 1)

    def ignored(self, offset: int, cause: OSError) -> bool:
        """Go on; the first error decides the result."""
        self._error_met = self._error_met or cause
        return True

    # The end

    async def prepare(self) -> None:
        """Make what is below the streamed images the backing file, and record that."""
        node, top, bottom = self._filter, self._top, self._bottom
        assert node is not None  # until the end
        await self._user.flush()
        await self._user.detach()
        await self.release_nodes()
        base = backing_of(bottom) if bottom is not top else None
        edge = top.children.get("backing")
        if edge is not None and bottom is not top:
            layer = skip_filters(base)
            name = fmt = None
            if layer is not None:
                name = self.options.backing_file
                if name is None:
                    name = filename(layer)
                fmt = layer.driver.name
            # The record first: if it cannot be written, nothing has changed.
            await record_backing(self.graph, top, name, fmt)
            async with Drained([top, edge.node]):
                change = GraphChange(self.graph)
                if base is None:
                    change.unlink(edge)
                else:
                    change.move(edge, base)
                    base.implicit = False  # not what opening the image brought along
                change.apply([top])
                await change.finish()
        self._filter = None
        await drop_filter(self.graph, node)

    async def abort(self) -> None:
        """Take the filter out; the chain is as it was."""
        node, self._filter = self._filter, None
        await self._user.detach()
        await self.release_nodes()
        if node is not None:
            await drop_filter(self.graph, node)

    async def clean(self) -> None:
        """Let go of everything; the image becomes read-only again if it was."""
        await super().clean()
        if self._top_was_read_only:
            await make_read_only_again(self.graph, self._top)


async def start_stream(
    registry: JobRegistry,
    graph: Graph,
    job_id: str | None,
    node: Node,
    bottom: Node,
    options: ChunkedJobOptions,
) -> StreamJob:
    """Make and start a job that streams into a node.

    Args:
        registry: The jobs.
        graph: The graph.
        job_id: Identifier of the job.
        node: The node that the user named.
        bottom: The last layer that is streamed.
        options: What the user says.

    Raises:
        QmpError: It cannot be done; nothing changed.
    """
    top = skip_filters(node) or node
    read_only = top.read_only
    if read_only:
        await set_read_only(graph, top, False)
    added: Node | None = None
    job: StreamJob | None = None
    try:
        added = await _insert_copy_on_read(graph, options.filter_name, node, bottom)
        job = StreamJob(
            registry,
            graph,
            job_id,
            added,
            top=top,
            bottom=bottom,
            top_was_read_only=read_only,
            options=options,
        )
        job.set_up()
    except BaseException:
        if job is not None:
            await job.abort()
            await job.clean()
            job.discard()
        else:
            if added is not None:
                await drop_filter(graph, added)
            if read_only:
                await set_read_only(graph, top, True)
        raise
    await job.begin()
    return job


async def _insert_copy_on_read(graph: Graph, name: str | None, node: Node, bottom: Node) -> Node:
    """Put a filter over a node that copies what is read from the layers down to `bottom`.

    Raises:
        QmpError: It cannot be made.
    """
    options = BlockdevOptions(driver="copy-on-read", branch=BlockdevOptionsCor(file=node.name))
    try:
        added = await insert_filter(
            graph, CopyOnReadDriver, name, node, child_name="file", options=options
        )
    except QmpError as exc:
        raise QmpError(f"Could not create node: {exc.desc}") from exc
    driver = added.driver
    assert isinstance(driver, CopyOnReadDriver)  # as asked for
    driver.limit_to(bottom)
    return added


__all__ = ["StreamJob", "start_stream"]
