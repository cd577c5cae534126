# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Changing the options of open nodes, all in one transaction.

::

    drain everything involved
    stage    remember the old state, set new generic options, let the driver prepare, move edges
             (driver: its own options; missing ones; backing and file child; the others, which
             have to be as before: this order shows in error messages)
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
from qsd.block.naming import flat
from qsd.block.node import Node
from qsd.block.open import (
    ROOT,
    Inherited,
    apply_generic_options,
    check_detect_zeroes,
    inherited_by,
)
from qsd.errors import QmpError, ReadOnlyConflict
from qsd.qapi.convert import to_json
from qsd.qapi.member_order import ordered_names
from qsd.qapi.model import NULL, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qsd.block.graph import Edge, Graph
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


#: Options of a node that are looked at before the driver's; the order below is not theirs.
_ABSORBED = frozenset(
    ("node-name", "read-only", "auto-read-only", "discard", "cache", "detect-zeroes")
)
#: Options that name children, which :meth:`Reopen._stage_children` looks at.
_STAGED_CHILDREN = frozenset(("file", "backing"))


def _flat_options(options: BlockdevOptions, strangers: Iterable[str] = ()) -> dict[str, Any]:
    """Return the options that have to stay as they are, by dotted names.

    Args:
        options: All options.
        strangers: Children that are not staged although they are defined inside.
    """
    left_out = _ABSORBED | _STAGED_CHILDREN.difference(strangers)
    given = to_json(options)
    return flat({name: value for name, value in given.items() if name not in left_out})


def _check_resets(node: Node, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to leave out what was given once and has no way back to its default.

    What defined a child does not count: it is the child's from then on.
    """
    free = node.driver.resettable_options
    children = tuple(node.children)
    for name in ordered_names(list(old)):
        if name in children or name.startswith(tuple(f"{child}." for child in children)):
            continue
        if name not in new and name.partition(".")[0] not in free:
            raise QmpError(f"Option '{name}' cannot be reset to its default value")


def _check_unchanged(node: Node, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to change what the driver cannot change."""
    free = node.driver.resettable_options | node.driver.changeable_options
    for name in ordered_names(list(new)):
        if name.partition(".")[0] in free:
            continue
        if old.get(name) != new[name] or name == "force-share":  # which may not even be repeated
            raise QmpError(f"Cannot change the option '{name}'")


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
        for node, token in reversed(self._prepared):  # children before their parents
            await node.driver.commit_reopen(token)
        for node in self._nodes:
            node.refresh_fast_paths()
            node.length_changed()
        await self._change.finish()

    def _names(self) -> set[str]:
        return {node.name for node in self._nodes}

    async def _stage(self, node: Node, options: BlockdevOptions, inherited: Inherited) -> None:
        saved = {name: getattr(node, name) for name in _GENERIC}

        def restore() -> None:
            for name, value in saved.items():
                setattr(node, name, value)

        self._change.undo_with(restore)
        apply_generic_options(node, options, inherited)
        check_detect_zeroes(node)
        if node.read_only and not saved["read_only"]:
            await node.flush_for_reopen()
        strangers = _strangers(node, options)
        old, new = _flat_options(node.options), _flat_options(options, strangers)
        if node.driver.can_reopen():
            _check_resets(node, old, new)
        if options.driver == node.options.driver or not node.driver.can_reopen():
            token = await node.driver.prepare_reopen(options.branch, node.read_only)
            self._prepared.append((node, token))
        # else the node keeps its driver, so this fails; what is said first is for the user to see.
        await self._stage_children(node, options)
        if options.branch is not node.options.branch:
            _check_unchanged(node, old, new)
        node.options = options
        self._nodes.append(node)

    async def _stage_children(self, node: Node, options: BlockdevOptions) -> None:
        branch = options.branch
        followers = {edge: edge.node for edge in node.children.values() if _follows(edge)}
        for name in ("backing", "file"):
            ref = getattr(branch, name, None)
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
            elif edge is not None and edge in followers:
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
        if edge is None and name == "file":
            self._graph.check_acyclic(node, child, name)
            if not any(other.role & perms.ROLE_PRIMARY for other in node.children.values()):
                raise QmpError("Cannot set file child to format node without file child")
            # Only another driver has such an option, and that is refused in its turn.
        elif edge is None:
            if not node.driver.supports_backing:
                raise QmpError(
                    f"Driver '{node.driver.name}' of node '{node.name}' does not support backing "
                    "files"
                )
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


def _strangers(node: Node, options: BlockdevOptions) -> list[str]:
    """Return the children that new options define although the node has others, given by name."""
    found = []
    for name in _STAGED_CHILDREN:
        ref = getattr(options.branch, name, None)
        edge = node.children.get(name)
        if isinstance(ref, Struct) and (edge is None or not _follows(edge)):
            found.append(name)
    return found


def _check_same_child(child: Node, ref: BlockdevOptions) -> None:
    """Refuse inline options that define another child than the one there is."""
    if ref.node_name is not None and ref.node_name != child.name:
        raise QmpError("Cannot change the option 'node-name'")


async def reopen(graph: Graph, wanted: Sequence[BlockdevOptions]) -> None:
    """Carry out a blockdev-reopen; see the module's docstring.

    Raises:
        QmpError: The change is impossible; nothing changed.
    """
    await Reopen(graph).run(wanted)
