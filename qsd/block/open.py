# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From options to open nodes.

The order of steps is visible in error messages and in the order of ``query-named-block-nodes``, so
it follows the C daemon's::

    open_node(options)
      find the driver, make the node, inherit options from the parent
      1. open the node for the "file" child, if the driver has one  (its errors come first)
      2. check the generic options, check and register the node name
      3. attach the "file" child                                    (permissions)
      4. driver.open(): header, further children
      5. open the backing file, from the options or from the image's own record

Whatever an image opens on its own account (backing file, data file, json: names) passes through
:class:`ChildOpener`; drivers have no other way to reach nodes or files.  If any step fails,
everything that was opened for this node is closed again.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from qsd.block import perms
from qsd.block.node import Node
from qsd.errors import QmpError, describe, prefixed
from qsd.qapi.model import NULL
from qsd.util.ids import is_valid_id
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.block.graph import Edge, Graph
    from qsd.qapi.schema.block_options import BlockdevOptions

#: Characters; longer node names are refused (the C daemon keeps them in 32 bytes).
MAX_NODE_NAME = 31


class Inherited(NamedTuple):
    """Option values that a child takes over from its parent unless it sets its own."""

    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    cache_direct: bool = False
    cache_no_flush: bool = False
    discard_unmap: bool = False


ROOT = Inherited()


def inherited_by(parent: Node, role: int) -> Inherited:
    """Return what a child in `role` inherits from `parent`.

    Backing files are read-only.  The children that hold an image pass discards on: whether they
    arrive is decided above.
    """
    backing = bool(role & perms.ROLE_COW)
    return Inherited(
        read_only=backing or parent.read_only,
        auto_read_only=not backing and parent.auto_read_only,
        force_share=parent.force_share,
        cache_direct=parent.cache_direct,
        cache_no_flush=parent.cache_no_flush,
        discard_unmap=not backing,
    )


class _Backing(NamedTuple):
    """What a driver knows of its backing file."""

    ref: Any
    filename: str | None
    format: str | None


class ChildOpener:
    """What a driver gets to open its children with."""

    __slots__ = ("backing_request", "graph", "node", "opened")

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.node = node
        self.opened: dict[str, Edge] = {}
        self.backing_request: _Backing | None = None

    async def child(self, name: str, ref: BlockdevOptions | str, role: int) -> Edge:
        """Open or look up a child and attach it.

        Args:
            name: The child's name ("file", "data-file", ...).
            ref: A node name, or options for a new node.
            role: perms.ROLE_* flags.

        Raises:
            QmpError: It cannot be opened, or permissions conflict.
        """
        if name in self.opened:
            edge = self.opened[name]  # opened by the engine before the driver
            if edge.role != role | perms.ROLE_PRIMARY:
                edge.role = role | perms.ROLE_PRIMARY
                self.graph.update([self.node])
            return edge
        edge = await open_child(self.graph, self.node, name, ref, role)
        self.opened[name] = edge
        return edge

    async def image_file(self, name: str, ref: Any, filename: str | None, role: int) -> Edge | None:
        """Open a file that the options or the image itself name (e.g. an external data file).

        Args:
            name: The child's name.
            ref: From the options: a node name, options, or None.
            filename: The image's own record, used where `ref` is None.
            role: perms.ROLE_* flags.

        Returns:
            The edge, or None if neither names a file.
        """
        if ref is not None:
            return await self.child(name, ref, role)
        if filename is None:
            return None
        from qsd.block.filename import options_for_filename, resolve_relative

        path = resolve_relative(self.node, filename)
        return await self.child(name, await options_for_filename(path, self.graph), role)

    async def backing(self, ref: Any, filename: str | None, fmt: str | None) -> None:
        """Tell which backing file the image has; the engine opens it once the driver is open.

        Args:
            ref: The `backing` member of the options: node name, options, NULL or None.
            filename: The image's own record, None if it has none.
            fmt: The recorded format, None if unknown.
        """
        self.backing_request = _Backing(ref, filename, fmt)


async def open_child(
    graph: Graph, parent: Node, name: str, ref: BlockdevOptions | str, role: int
) -> Edge:
    """Open a node as a child of `parent`, or attach an existing one by its name."""
    node = await _child_node(graph, parent, name, ref, role)
    return await _attach(graph, parent, node, name, role)


async def _child_node(
    graph: Graph, parent: Node, name: str, ref: BlockdevOptions | str, role: int
) -> Node:
    """Find or open the node that is to become a child of `parent`."""
    if not isinstance(ref, str):
        return await open_node(graph, ref, inherited_by(parent, role))
    node = graph.nodes.get(ref)
    if node is None:
        raise QmpError(f"Cannot find device='{ref}' nor node-name='{ref}'")
    if node.opening:
        # The parent itself, or a node that the parent is opened for.
        raise QmpError(f"Making '{ref}' a {name} child of '{parent.name}' would create a cycle")
    return node


async def _attach(graph: Graph, parent: Node, node: Node, name: str, role: int) -> Edge:
    """Attach a child; a node that was opened for it alone is closed again if that fails."""
    try:
        return graph.attach_child(parent, node, name, role)
    except BaseException:
        if node is not parent:  # whose opening has failed
            await _close_unused(graph, node)
        raise


async def _close_unused(graph: Graph, node: Node) -> None:
    """Close a node that was opened for a user who does not take it."""
    if not node.parents and not node.monitor_owned:
        await graph.close_node(node)


def _pick(own: bool | None, inherited: bool) -> bool:
    return inherited if own is None else own


def apply_generic_options(node: Node, options: BlockdevOptions, inherited: Inherited) -> None:
    """Set the options that all drivers share.

    Raises:
        QmpError: They contradict each other.
    """
    node.read_only = _pick(options.read_only, inherited.read_only)
    node.auto_read_only = _pick(options.auto_read_only, inherited.auto_read_only)
    node.force_share = _pick(options.force_share, inherited.force_share)
    cache = options.cache
    node.cache_direct = _pick(cache.direct if cache else None, inherited.cache_direct)
    node.cache_no_flush = _pick(cache.no_flush if cache else None, inherited.cache_no_flush)
    discard = options.discard
    node.discard_unmap = discard == "unmap" if discard is not None else inherited.discard_unmap
    node.detect_zeroes = options.detect_zeroes or "off"


def check_generic_options(node: Node, options: BlockdevOptions) -> None:
    """Refuse contradicting generic options.

    Raises:
        QmpError: They contradict each other.
    """
    if node.force_share and not node.read_only:
        raise QmpError("force-share=on can only be used with read-only images")
    check_detect_zeroes(node)


def check_detect_zeroes(node: Node) -> None:
    """Refuse to unmap what is found to be zero where nothing may be unmapped.

    Raises:
        QmpError: So it is.
    """
    if node.detect_zeroes == "unmap" and not node.discard_unmap:
        raise QmpError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation "
            "to unmap"
        )


def check_node_name(name: str) -> None:
    """Refuse a malformed node name.

    Raises:
        QmpError: It is malformed.
    """
    if not is_valid_id(name):
        raise QmpError(f"Invalid node-name: '{name}'")
    if len(name) > MAX_NODE_NAME:
        raise QmpError("Node name too long")


async def open_node(graph: Graph, options: BlockdevOptions, inherited: Inherited = ROOT) -> Node:
    """Open a node and everything below it.

    The caller attaches it or marks it as owned by the monitor; else it has to close it.

    Raises:
        QmpError: With the text a user should read; nothing is left open.
    """
    name = options.node_name
    _modernise(options)
    cls = graph.find_driver(options.driver)
    if cls is None:
        raise QmpError(f"Unknown driver '{options.driver}'")
    node = Node(graph, name if name is not None else "")
    node.options = options
    node.opening = True
    apply_generic_options(node, options, inherited)
    node.driver = cls(node)
    opener = ChildOpener(graph, node)
    opened = False
    try:
        file_ref = getattr(options.branch, "file", None)
        if cls.family == "protocol" or file_ref is None:
            check_generic_options(node, options)
            _register(graph, node, name)
        else:
            role = cls.file_role | perms.ROLE_PRIMARY
            file_node = await _child_node(graph, node, "file", file_ref, role)
            try:
                check_generic_options(node, options)
                _register(graph, node, name)
            except BaseException:
                await _close_unused(graph, file_node)
                raise
            opener.opened["file"] = await _attach(graph, node, file_node, "file", role)
        await node.driver.open(options.branch, opener)
        opened = True
        node.opening = False
        node.refresh_fast_paths()
        await _open_backing(graph, node, opener)
        graph.update([node])
    except BaseException as exc:
        await _undo(graph, node, opened)
        if isinstance(exc, OSError):
            raise QmpError(f"Could not open image: {describe(exc)}") from exc
        raise
    return node


def _modernise(options: BlockdevOptions) -> None:
    """Replace an old way to say that there is no backing file by the present one."""
    branch: Any = options.branch
    if getattr(branch, "backing", None) == "":
        branch.backing = NULL
        sys.stderr.write(
            'warning: Use of "backing": "" is deprecated; use "backing": null instead\n'
        )
        sys.stderr.flush()


def _register(graph: Graph, node: Node, name: str | None) -> None:
    if name is None:
        node.name = graph.make_name()
    else:
        check_node_name(name)
    graph.register(node)


async def _undo(graph: Graph, node: Node, opened: bool) -> None:
    """Close a node whose opening failed."""
    if opened:
        await graph.close_node(node)
        return
    node.closed = True
    if graph.nodes.get(node.name) is node:
        del graph.nodes[node.name]
    for edge in reversed(list(node.children.values())):
        await graph.detach(edge)


async def _open_backing(graph: Graph, node: Node, opener: ChildOpener) -> None:
    """Open and attach the backing file that options or image ask for."""
    request = opener.backing_request
    if request is None or request.ref is NULL:
        return
    ref = request.ref
    path = ""
    if ref is None:
        if not request.filename:
            return
        from qsd.block.filename import resolve_relative

        path = resolve_relative(node, request.filename)
    try:
        if ref is None:
            ref = await backing_options(graph, path, request.format)
        elif not isinstance(ref, str):
            _check_backing_options(ref, request)
        child = await _child_node(graph, node, "backing", ref, perms.ROLE_COW)
    except QmpError as exc:
        raise prefixed(exc, "Could not open backing file: ") from exc
    await _attach(graph, node, child, "backing", perms.ROLE_COW)
    if request.ref is None:
        child.implicit = True


async def open_recorded_backing(graph: Graph, node: Node) -> None:
    """Open the backing file that an image records, which had been left out until now.

    Raises:
        QmpError: It cannot be opened.
    """
    recorded = node.driver.backing_file()
    if recorded is None or "backing" in node.children:
        return
    opener = ChildOpener(graph, node)
    await opener.backing(None, *recorded)
    await _open_backing(graph, node, opener)
    branch: Any = node.options.branch
    branch.backing = None  # it said that there is none


def _check_backing_options(ref: BlockdevOptions, request: _Backing) -> None:
    """Refuse drivers that cannot do with the file name where the image records one.

    The C daemon hands the recorded name to the driver that the options choose.  null-co and
    null-aio take no other than their own, and drivers of files got one by their options already.
    """
    if request.filename and ref.driver in ("null-co", "null-aio"):
        raise QmpError(f"The only allowed filename for this driver is '{ref.driver}://'")
    if request.filename and getattr(ref.branch, "filename", None) is not None:
        raise QmpError("Can't specify 'file' and 'filename' options at the same time")


async def backing_options(graph: Graph, path: str, fmt: str | None) -> BlockdevOptions:
    """Build options for the backing file that an image records."""
    from qsd.block.filename import format_over, options_for_filename

    return await format_over(await options_for_filename(path, graph, fmt), fmt, graph)
