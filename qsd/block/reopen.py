# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Changing the options of open nodes, all in one transaction.

::

    drain everything involved
    stage    remember the old state, set new generic options, move child edges
    prepare  each driver checks its new options
    check    permissions of the changed graph, once for all
    commit   drivers switch over; children nobody uses any more are closed
    (any failure before commit: restore everything in reverse order)

Options that are not given go back to their defaults, as if the node were opened anew (QMP
reference, "blockdev-reopen").  Children that were defined inside their parent's options follow it:
they inherit what it has now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsd.block import perms
from qsd.block.change import GraphChange
from qsd.block.drain import Drained
from qsd.block.node import Node
from qsd.block.open import (
    ROOT,
    Inherited,
    apply_generic_options,
    check_generic_options,
    inherited_by,
)
from qsd.errors import QmpError, ReadOnlyConflict
from qsd.qapi.model import NULL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qsd.block.graph import Edge, Graph
    from qsd.qapi.model import Struct
    from qsd.qapi.schema.block_options import BlockdevOptions

#: Node attributes that apply_generic_options sets.
_GENERIC = (
    "options",
    "read_only",
    "auto_read_only",
    "force_share",
    "cache_direct",
    "cache_no_flush",
    "discard_unmap",
    "detect_zeroes",
)


def reject_changes(old: Struct, new: Struct, allowed: Iterable[str] = ()) -> None:
    """Refuse new driver options that differ from the old ones, for use by drivers.

    Args:
        old: The branch of the options in force.
        new: The branch wanted.
        allowed: Attribute names that may differ, children among them.

    Raises:
        QmpError: An option that cannot be changed differs, or was given once and is missing now.
    """
    from qsd.qapi.model import members

    free = set(allowed)
    for item in members(type(new)):
        attribute = item.attr
        if attribute not in free and getattr(new, attribute) is None:
            if getattr(old, attribute) is not None:
                raise QmpError(f"Option '{item.name}' cannot be reset to its default value")
    for item in members(type(new)):
        attribute = item.attr
        if attribute not in free and getattr(old, attribute) != getattr(new, attribute):
            raise QmpError(f"Cannot change the option '{item.name}'")


class Reopen:
    """One blockdev-reopen."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._change = GraphChange(graph)
        self._prepared: list[tuple[Node, Any]] = []
        self._nodes: list[Node] = []
        self._wanted: set[Node] = set()

    async def run(self, wanted: Sequence[BlockdevOptions]) -> None:
        """Give the named nodes new options.

        Raises:
            QmpError: The change is impossible; nothing changed.
        """
        pairs: list[tuple[Node, BlockdevOptions]] = []
        for options in wanted:
            if options.node_name is None:
                raise QmpError("node-name not specified")
            pairs.append((self._graph.find(options.node_name), options))
        self._wanted = {node for node, _ in pairs}
        # Requests from above could reach any node below the changed ones: drain those.
        async with Drained(self._graph.descend([node for node, _ in pairs])):
            await self._run(pairs)

    async def _run(self, pairs: list[tuple[Node, BlockdevOptions]]) -> None:
        try:
            for node, options in pairs:
                await self._stage(node, options, ROOT)
            self._change.apply(self._nodes)
        except BaseException as exc:
            self._change.undo()
            for node, token in reversed(self._prepared):
                await node.driver.abort_reopen(token)
            if isinstance(exc, ReadOnlyConflict) and exc.node_name in self._names():
                raise QmpError(
                    f"Read-only block node '{exc.node_name}' cannot support read-write users"
                ) from exc
            raise
        for node, token in self._prepared:
            await node.driver.commit_reopen(token)
        for node in self._nodes:
            node.refresh_fast_paths()
            node.length_changed()
        await self._change.finish()

    def _names(self) -> set[str]:
        return {node.name for node in self._nodes}

    async def _stage(self, node: Node, options: BlockdevOptions, inherited: Inherited) -> None:
        if options.driver != node.options.driver:
            raise QmpError("Cannot change the option 'driver'")
        if options is not node.options:
            _check_force_share(node, options)
        saved = {name: getattr(node, name) for name in _GENERIC}

        def restore() -> None:
            for name, value in saved.items():
                setattr(node, name, value)

        self._change.undo_with(restore)
        apply_generic_options(node, options, inherited)
        check_generic_options(node, options)
        if node.read_only and not saved["read_only"]:
            await node.flush_for_reopen()
        await self._stage_children(node, options)
        token = await node.driver.prepare_reopen(options.branch, node.read_only)
        self._prepared.append((node, token))
        node.options = options
        self._nodes.append(node)

    async def _stage_children(self, node: Node, options: BlockdevOptions) -> None:
        branch = options.branch
        followers = {edge: edge.node for edge in node.children.values() if _follows(edge)}
        for name in ("file", "backing"):
            if not hasattr(branch, name):
                continue
            ref = getattr(branch, name)
            edge = node.children.get(name)
            if isinstance(ref, str):
                self._replace_child(node, name, edge, self._find_child(ref))
            elif ref is NULL:
                if edge is not None:
                    self._change.unlink(edge)
            elif ref is None:
                if name == "backing" and edge is not None and not edge.node.implicit:
                    # Absent means "as the image says", and that is not what is attached now.
                    raise QmpError("backing is missing for '" + node.name + "'")
            elif edge is None or edge not in followers:
                raise QmpError(f"Cannot change the option '{name}.driver'")
            else:
                child = followers.pop(edge)
                _check_same_child(child, ref)
                await self._stage(child, ref, inherited_by(node, edge.role))
        for edge, child in followers.items():
            if node.children.get(edge.name) is edge and edge.node is child:
                await self._let_follow(child, inherited_by(node, edge.role))

    async def _let_follow(self, child: Node, inherited: Inherited) -> None:
        """Give a child what it inherits from its parent now, unless the user reopens it himself."""
        if child in self._wanted:
            return
        before = [getattr(child, name) for name in _GENERIC]
        apply_generic_options(child, child.options, inherited)
        after = [getattr(child, name) for name in _GENERIC]
        for name, value in zip(_GENERIC, before, strict=True):
            setattr(child, name, value)
        if before != after:
            await self._stage(child, child.options, inherited)

    def _find_child(self, name: str) -> Node:
        node = self._graph.nodes.get(name)
        if node is None:
            raise QmpError(f"Cannot find device='' nor node-name='{name}'")
        return node

    def _replace_child(self, node: Node, name: str, edge: Edge | None, child: Node) -> None:
        if edge is None:
            self._change.link(node, child, name, perms.ROLE_COW)
        elif edge.node is not child:
            self._graph.check_acyclic(node, child, name)
            self._change.move(edge, child)


class _AccessChange(Reopen):
    """Makes one node read-only or writable; nothing else of it or its children is looked at."""

    async def _stage_children(self, node: Node, options: BlockdevOptions) -> None:
        for edge in list(node.children.values()):
            if not edge.role & perms.ROLE_COW and _follows(edge):
                await self._let_follow(edge.node, inherited_by(node, edge.role))


async def set_read_only(graph: Graph, node: Node, read_only: bool) -> None:
    """Make a node read-only or writable for the time of a job.

    Raises:
        QmpError: It cannot be written, or somebody writes to it; nothing changed.
    """
    if node.read_only == read_only:
        return
    from copy import copy

    options = copy(node.options)
    options.read_only = read_only
    change = _AccessChange(graph)
    change._wanted = {node}
    async with Drained(graph.descend([node])):
        await change._run([(node, options)])


def _follows(edge: Edge) -> bool:
    """Tell whether a child was defined inside its parent's options, as opposed to named there."""
    child = edge.node
    if child.monitor_owned:
        return False
    return all(other is edge or not isinstance(other.user, Node) for other in child.parents)


def _check_force_share(node: Node, options: BlockdevOptions) -> None:
    """Refuse to touch an option that can only be set when a node is opened."""
    if options.force_share is not None:
        raise QmpError("Cannot change the option 'force-share'")
    if node.options.force_share is not None:
        raise QmpError("Option 'force-share' cannot be reset to its default value")


def _check_same_child(child: Node, ref: BlockdevOptions) -> None:
    """Refuse inline options that define another child than the one there is."""
    if ref.node_name is not None and ref.node_name != child.name:
        raise QmpError("Cannot change the option 'node-name'")
    if ref.driver != child.options.driver and hasattr(child.options.branch, "filename"):
        raise QmpError("Option 'filename' cannot be reset to its default value")


async def reopen(graph: Graph, wanted: Sequence[BlockdevOptions]) -> None:
    """Carry out a blockdev-reopen; see the module's docstring.

    Raises:
        QmpError: The change is impossible; nothing changed.
    """
    await Reopen(graph).run(wanted)
