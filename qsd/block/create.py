# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Making new images (QMP reference, "blockdev-create").

A driver that can make images has a *creator*: a coroutine function that takes the graph and the
driver's branch of BlockdevCreateOptions and returns when the image is there.  The catalog knows the
creators.

Formats write their structures into a node (or into a file that they are told how to open) through
:func:`open_target`.  It takes the permissions that this needs, so that an image that somebody else
uses is not overwritten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.open import open_node
from qsd.errors import QmpError

if TYPE_CHECKING:
    from types import TracebackType

    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.qapi.schema.block_options import BlockdevRef

Creator: TypeAlias = "Callable[[Graph, Any], Awaitable[None]]"


class Target:
    """``async with open_target(graph, ref) as backend:``, see there."""

    __slots__ = ("_backend", "_check", "_graph", "_perm", "_ref", "_shared")

    def __init__(
        self,
        graph: Graph,
        ref: BlockdevRef,
        perm: int,
        shared: int,
        check: Callable[[], None] | None,
    ) -> None:
        self._graph = graph
        self._ref = ref
        self._perm = perm
        self._shared = shared
        self._check = check
        self._backend: Backend | None = None

    async def _node(self) -> Node:
        if isinstance(self._ref, str):
            return find_target(self._graph, self._ref)
        return await open_node(self._graph, self._ref)

    async def __aenter__(self) -> Backend:
        node = await self._node()
        backend = Backend(self._graph, "", "an unnamed block device")
        try:
            if self._check is not None:
                self._check()
            backend.attach(node, self._perm, self._shared)
        except BaseException:
            if not node.parents and not node.monitor_owned:
                await self._graph.close_node(node)
            raise
        self._backend = backend
        return backend

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._backend is not None:
            await self._backend.detach()
            self._backend = None


def find_target(graph: Graph, name: str) -> Node:
    """Return the node that an image is to be made in.

    Raises:
        QmpError: There is none of that name.
    """
    node = graph.nodes.get(name)
    if node is None:
        raise QmpError(f"Cannot find device='{name}' nor node-name='{name}'")
    return node


def open_target(
    graph: Graph,
    ref: BlockdevRef,
    perm: int = perms.WRITE | perms.RESIZE,
    shared: int = perms.ALL,
    check: Callable[[], None] | None = None,
) -> Target:
    """Use a node, given by name or by options, while an image is made in it.

    Args:
        graph: The graph.
        ref: A node name, or options of a node that is opened now and closed at the end.
        perm: What is done to the node.
        shared: What others may do meanwhile.
        check: Called when the node is found and before its other users are asked; may raise
            QmpError.

    Returns:
        An asynchronous context manager, whose value is a Backend of the node.  Entering it raises
        QmpError if the node cannot be found or opened, or if its users do not allow this one.
    """
    return Target(graph, ref, perm, shared, check)
