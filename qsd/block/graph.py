# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The block graph: nodes, edges, and the rules for changing them.

Edges own their permissions (see perms.py).  Every change that can affect permissions goes through
:meth:`Graph.update`: it computes new permissions for the whole reachable subgraph, top down, checks
them, lets the drivers prepare (file locks), and only then applies everything; on a conflict nothing
has changed.  The computation never awaits, so it is atomic.

A node lives while the monitor owns it (blockdev-add) or somebody uses it; :meth:`Graph.detach` and
:meth:`Graph.release` close nodes that nobody holds any more, children last.
"""

from __future__ import annotations

from os import urandom
from typing import TYPE_CHECKING, Any, Protocol

from qsd.aio.pagemap import PageMaps
from qsd.aio.polling import BusyPoll
from qsd.block import perms
from qsd.block.node import Node
from qsd.errors import PermissionConflict, QmpError, ReadOnlyConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qsd.aio.tasks import TaskOwner
    from qsd.aio.workers import WorkerPool
    from qsd.block.backend import Backend
    from qsd.block.driver import Driver
    from qsd.qapi.events import EventSink


class User(Protocol):
    """The upper end of an edge: a Node or a Backend."""

    def child_resized(self, edge: Edge) -> None:
        """The child's length changed."""

    def rebind(self) -> None:
        """The child's fast paths changed."""


class Edge:
    """A parent's use of a child node.

    Attributes:
        user: The parent, a Node or a Backend.
        node: The child.
        name: The child's name in the parent ("file", "backing", "root", ...).
        role: perms.ROLE_* flags.
        perm: What the parent does.
        shared: What it lets others do.
    """

    __slots__ = ("name", "node", "perm", "role", "shared", "user")

    def __init__(self, user: Node | Backend, node: Node, name: str, role: int) -> None:
        self.user = user
        self.node = node
        self.name = name
        self.role = role
        self.perm = 0
        self.shared = perms.ALL

    def describe(self) -> str:
        """Return the words with which a permission conflict names this user."""
        user = self.user
        who = f"node '{user.name}'" if isinstance(user, Node) else user.description
        return f"{who} (uses node '{self.node.name}' as '{self.name}' child)"


class Graph:
    """All nodes of one daemon.

    Attributes:
        nodes: Nodes by name, oldest first.
        backends: Everything attached from outside, oldest first.
        pool: Worker threads for drivers.
        by_monitor: Whether a QMP client asks for what is opened now.  The command line may name
            descriptors of this process, a client may not.
        poll: Keeps the loop awake between requests; told by exports.
        maps: What is mapped of image files.
        tasks: Owner of the tasks that I/O spawns.
        events: Where drivers send QMP events.
        objects: The object tree, for drivers that refer to objects (secrets, throttle groups).
        find_driver: Returns the class of a driver, None if there is none of that name.
    """

    def __init__(
        self,
        pool: WorkerPool,
        tasks: TaskOwner,
        events: EventSink,
        objects: Any,
        find_driver: Callable[[str], type[Driver] | None],
    ) -> None:
        self.nodes: dict[str, Node] = {}
        self.backends: list[Backend] = []
        self.pool = pool
        self.by_monitor = True
        self.poll = BusyPoll()
        self.maps = PageMaps()
        self.tasks = tasks
        self.events = events
        self.objects = objects
        self.find_driver = find_driver
        self._names_made = 0

    # Names

    def make_name(self) -> str:
        """Return a name for a node that got none; '#' keeps it apart from users' names.

        The two random digits keep people from relying on such names.
        """
        while True:
            name = f"#block{self._names_made}{urandom(1)[0] % 100:02d}"
            self._names_made += 1
            if name not in self.nodes:
                return name

    def find(self, name: str) -> Node:
        """Return the node called `name`.

        Raises:
            QmpError: There is none.
        """
        node = self.nodes.get(name)
        if node is None:
            raise QmpError(f"Failed to find node with node-name='{name}'")
        return node

    def lookup(self, device: str | None, node_name: str | None) -> Node:
        """Return the node that a command names by device or node name (there are no devices).

        Raises:
            QmpError: There is none.
        """
        node = self.nodes.get(node_name) if node_name is not None else None
        if node is None:
            raise QmpError(f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'")
        return node

    def register(self, node: Node) -> None:
        """Make a node known by its name.

        Raises:
            QmpError: The name is taken.
        """
        if node.name in self.nodes:
            raise QmpError(f"Duplicate nodes with node-name='{node.name}'")
        self.nodes[node.name] = node

    # Edges

    def attach_root(
        self, user: Backend, node: Node, perm: int, shared: int, name: str = "root"
    ) -> Edge:
        """Attach a backend, which is the user of a child of that name.

        Raises:
            QmpError: Permission conflict; nothing changed.
        """
        edge = Edge(user, node, name, 0)
        self._link(edge)
        try:
            self.update([node], {edge: (perm, shared)})
        except BaseException:
            node.parents.remove(edge)
            raise
        self.backends.append(user)
        if node.quiesced:
            for _ in range(node.quiesced):
                user.drained_begin()
        return edge

    def attach_child(self, parent: Node, child: Node, name: str, role: int) -> Edge:
        """Make `child` a child of `parent`.

        Raises:
            QmpError: A cycle or a permission conflict; nothing changed.
        """
        self.check_acyclic(parent, child, name)
        edge = Edge(parent, child, name, role)
        parent.children[name] = edge
        self._link(edge)
        try:
            self.update([parent])
        except BaseException:
            child.parents.remove(edge)
            del parent.children[name]
            raise
        return edge

    def _link(self, edge: Edge) -> None:
        # Newest first: conflicts are reported in this order.
        edge.node.parents.insert(0, edge)

    def check_acyclic(self, parent: Node, child: Node, name: str) -> None:
        """Refuse an edge that would close a cycle.

        Raises:
            QmpError: It would.
        """
        if any(node is parent for node in self.descend([child])):
            raise QmpError(
                f"Making '{child.name}' a {name} child of '{parent.name}' would create a cycle"
            )

    def set_edge_perms(self, edge: Edge, perm: int, shared: int) -> None:
        """Change the permissions of a root edge.

        Raises:
            QmpError: Permission conflict; nothing changed.
        """
        self.update([edge.node], {edge: (perm, shared)})

    def move_edge(self, edge: Edge, node: Node) -> None:
        """Let an edge point to another child without any check; the caller calls `update`."""
        edge.node.parents.remove(edge)
        edge.node = node
        self._link(edge)

    async def detach(self, edge: Edge) -> None:
        """Remove an edge; the child is closed if nobody holds it any more."""
        child = edge.node
        child.parents.remove(edge)
        if isinstance(edge.user, Node):
            edge.user.children.pop(edge.name, None)
        else:
            self.backends.remove(edge.user)
        if child.parents or child.monitor_owned:
            try:
                self.update([child])
            except QmpError:
                # A file cannot be opened with less access, say.  It stays open with what it has:
                # the edge is gone all the same, and its user counts on that.
                pass
        else:
            await self.close_node(child)

    async def release(self, node: Node) -> None:
        """Drop the monitor's reference (blockdev-del)."""
        node.monitor_owned = False
        if not node.parents:
            await self.close_node(node)

    async def close_node(self, node: Node, *, flush: bool = True) -> None:
        """Flush and close a node without users, then let go of its children."""
        if node.closed:
            return
        # From now on nobody finds it any more, so nobody can attach to it while it closes.
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]
        await node.wait_idle()
        try:
            if flush and not node.read_only:
                await node.flush()
        except OSError:
            # Closing goes on: there is nobody left to tell, and the descriptor must not leak.
            pass
        await self._close_driver(node)

    async def _close_driver(self, node: Node) -> None:
        try:
            await node.driver.close()
        finally:
            node.closed = True
            node.refresh_fast_paths()
            for edge in reversed(list(node.children.values())):
                await self.detach(edge)

    # Walking

    def descend(self, roots: Iterable[Node]) -> list[Node]:
        """Return all nodes reachable from `roots`, every parent before its children."""
        order: list[Node] = []
        seen: set[Node] = set()
        for root in roots:
            if root in seen:
                continue
            stack: list[tuple[Node, Iterator[Edge]]] = [(root, iter(root.children.values()))]
            seen.add(root)
            while stack:
                node, edges = stack[-1]
                for edge in edges:
                    if edge.node not in seen:
                        seen.add(edge.node)
                        stack.append((edge.node, iter(edge.node.children.values())))
                        break
                else:
                    order.append(node)
                    stack.pop()
        order.reverse()
        return order

    # Permissions

    def update(
        self, roots: Iterable[Node], changes: dict[Edge, tuple[int, int]] | None = None
    ) -> None:
        """Recompute, check and apply the permissions of everything below `roots`.

        Args:
            roots: Where something changed (a new edge, new options, read-only state).
            changes: New (perm, shared) of single edges, usually root edges.

        Raises:
            QmpError: A conflict or a driver's refusal; nothing changed.
        """
        new: dict[Edge, tuple[int, int]] = dict(changes or {})
        checked: list[tuple[Node, int, int]] = []
        try:
            for node in self.descend(roots):
                perm, shared = self._check_node(node, new)
                node.driver.check_perms(perm, shared)
                checked.append((node, perm, shared))
                for edge in node.children.values():
                    new[edge] = node.driver.child_perms(edge, perm, shared)
        except BaseException:
            for node, _, _ in reversed(checked):
                node.driver.abort_perms()
            raise
        for edge, (perm, shared) in new.items():
            edge.perm, edge.shared = perm, shared
        for node, perm, shared in checked:
            node.driver.set_perms(perm, shared)

    def _check_node(self, node: Node, new: dict[Edge, tuple[int, int]]) -> tuple[int, int]:
        """Return the cumulative (perm, shared) of a node's users after checking them pairwise."""
        perm, shared = 0, perms.ALL
        users = [(edge, *new.get(edge, (edge.perm, edge.shared))) for edge in node.parents]
        for _, edge_perm, edge_shared in users:
            perm |= edge_perm
            shared &= edge_shared
        if perm & ~shared:
            _check_pairs(node, users)
        if node.read_only and perm & (perms.WRITE | perms.WRITE_UNCHANGED):
            raise ReadOnlyConflict(node.name)
        return perm, shared


def _check_pairs(node: Node, users: list[tuple[Edge, int, int]]) -> None:
    for refusing, _, shared in users:
        for wanting, perm, _ in users:
            if wanting is not refusing and (conflict := perm & ~shared):
                raise PermissionConflict(
                    f"Permission conflict on node '{node.name}': permissions "
                    f"'{perms.names(conflict)}' are both required by {wanting.describe()} "
                    f"and unshared by {refusing.describe()}."
                )
