# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Changing the shape of the graph: several edge moves that happen together or not at all.

Everything here runs inside a drained section of the nodes concerned (:mod:`qsd.block.drain`)::

    change = GraphChange(graph)
    change.link(overlay, node, "backing", ROLE_COW)
    change.move_users(node, overlay)
    change.apply([overlay, node])        permissions checked once; a conflict undoes every move
    ...
    change.rollback()                    still possible, e.g. when a later part of a transaction
    fails await change.finish()                nodes that nobody uses any more are closed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.block.graph import Edge
from qsd.block.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qsd.block.driver import Driver
    from qsd.block.graph import Graph
    from qsd.qapi.schema.block_options import BlockdevOptions


class GraphChange:
    """A group of edge moves with one outcome."""

    __slots__ = ("_graph", "_roots", "_unused", "_undo")

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._undo: list[Callable[[], None]] = []
        self._unused: list[Node] = []
        self._roots: list[Node] = []

    def move(self, edge: Edge, node: Node) -> None:
        """Let an edge point to another child."""
        graph = self._graph
        old = edge.node
        graph.move_edge(edge, node)
        self._undo.append(lambda: graph.move_edge(edge, old))
        self._unused.append(old)

    def move_users(self, old: Node, new: Node, keep: Callable[[Edge], bool] | None = None) -> None:
        """Let all users of `old` use `new`, except `new` itself and those `keep` is true for.

        Raises:
            QmpError: `new` would come to stand below itself; nothing was moved by this call.
        """
        below_new = set(self._graph.descend([new]))
        edges = [
            edge
            for edge in old.parents
            if edge.user is not new and not (keep is not None and keep(edge))
        ]
        for edge in edges:
            if isinstance(edge.user, Node) and edge.user in below_new:
                self._graph.check_acyclic(edge.user, new, edge.name)
        # The list of users is newest first; moving oldest first keeps that order.
        for edge in reversed(edges):
            self.move(edge, new)

    def link(self, parent: Node, child: Node, name: str, role: int) -> Edge:
        """Add a child edge.

        Raises:
            QmpError: It would close a cycle.
        """
        self._graph.check_acyclic(parent, child, name)
        edge = Edge(parent, child, name, role)
        parent.children[name] = edge
        child.parents.insert(0, edge)

        def undo() -> None:
            child.parents.remove(edge)
            del parent.children[name]

        self._undo.append(undo)
        return edge

    def unlink(self, edge: Edge) -> None:
        """Remove a child edge."""
        parent, child = edge.user, edge.node
        assert isinstance(parent, Node)
        children = list(parent.children.items())
        position = child.parents.index(edge)
        child.parents.remove(edge)
        del parent.children[edge.name]

        def undo() -> None:
            child.parents.insert(position, edge)
            parent.children.clear()
            parent.children.update(children)

        self._undo.append(undo)
        self._unused.append(child)

    def undo_with(self, undo: Callable[[], None]) -> None:
        """Remember how to undo something that belongs to the change (an option, a flag)."""
        self._undo.append(undo)

    def apply(self, roots: Iterable[Node]) -> None:
        """Recompute and check permissions below `roots` and below every node that lost a user.

        Raises:
            QmpError: A conflict; every move was undone.
        """
        self._roots = [*roots, *self._unused]
        try:
            self._graph.update(self._roots)
        except BaseException:
            self.undo()
            raise
        self._refresh()

    def rollback(self) -> None:
        """Undo everything after a successful `apply`."""
        self.undo()
        self._graph.update(self._roots)
        self._refresh()

    def undo(self) -> None:
        """Undo what was moved before `apply`.  Idempotent."""
        while self._undo:
            self._undo.pop()()
        self._unused.clear()

    def _refresh(self) -> None:
        for node in self._graph.descend(self._roots):
            node.refresh_fast_paths()
        for node in self._roots:
            node.length_changed()
            # Users that were moved may see another length even if no node changed its own.
            for edge in node.parents:
                edge.user.child_resized(edge)

    async def finish(self) -> None:
        """Close the nodes that nobody uses any more."""
        self._undo.clear()
        for node in self._unused:
            if not node.parents and not node.monitor_owned and not node.closed:
                await self._graph.close_node(node)


def make_internal_node(
    graph: Graph,
    cls: type[Driver],
    name: str | None,
    below: Node,
    *,
    implicit: bool,
    options: BlockdevOptions | None = None,
) -> Node:
    """Make a filter node that no option tree describes, for the use of a job.

    The node is registered but not linked; ``GraphChange.link`` does that.  It takes over read-only
    state and cache options of the node it will stand above.  The driver's ``open`` is not called.

    Args:
        graph: The graph.
        cls: The driver.
        name: Node name, None for one of our own.
        below: The node it will stand above.
        implicit: Whether it is hidden from the user's view of the chain.
        options: How a user would have opened it; needed where the driver is in the schema.

    Raises:
        QmpError: The name is malformed or taken.
    """
    from qsd.block.open import check_node_name
    from qsd.qapi.schema.block_options import BlockdevOptions as Options

    node = Node(graph, name if name is not None else graph.make_name())
    if name is not None:
        check_node_name(name)
    node.options = options or Options(driver=cls.name)  # type: ignore[arg-type]
    node.implicit = implicit
    node.read_only = below.read_only
    node.auto_read_only = below.auto_read_only
    node.cache_direct = below.cache_direct
    node.cache_no_flush = below.cache_no_flush
    node.discard_unmap = True
    node.driver = cls(node)
    graph.register(node)
    return node
