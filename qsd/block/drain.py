# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Drained sections: a part of the graph stands still while it is changed.

To drain a node means that no request can be in flight in it: everything that can send requests to
it (its ancestors up to the backends) is quiesced, then what is in flight is waited for::

    backend A   backend B          1. quiesce every backend above: it queues new requests
        \\       /                  2. wait until backends and nodes have nothing in flight
         overlay                      and their owners (jobs, exports) report no activity
            |                      3. the section's body may change edges and options
          node  <- drained         4. resume

Sections nest; a backend attached inside a section is quiesced from the start.  The body must not do
I/O through a quiesced backend: it would wait for itself.  Direct node I/O (a format writing its
header) is allowed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qsd.block.backend import Backend
from qsd.block.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


class Drained:
    """``async with Drained(nodes):`` keeps the nodes without requests inside the block."""

    __slots__ = ("_backends", "_nodes", "_roots")

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._roots = list(nodes)
        self._nodes: list[Node] = []
        self._backends: list[Backend] = []

    async def __aenter__(self) -> None:
        self._collect()
        for node in self._nodes:
            node.quiesced += 1
            node.driver.drained_begin()
        for backend in self._backends:
            backend.drained_begin()
        try:
            await self._wait()
        except BaseException:
            self._end()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _collect(self) -> None:
        """Find all ancestors: their requests may reach the roots."""
        seen: set[Node | Backend] = set()
        todo: list[Node] = list(self._roots)
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            self._nodes.append(node)
            for edge in node.parents:
                user = edge.user
                if isinstance(user, Node):
                    todo.append(user)
                elif user not in seen:
                    seen.add(user)
                    self._backends.append(user)

    async def _wait(self) -> None:
        while True:
            for backend in self._backends:
                await backend.wait_idle()
            for node in self._nodes:
                await node.wait_idle()
            if any(backend.listener.drained_poll() for backend in self._backends):
                # Owners finish their own activity in tasks of theirs; give them a turn.
                await asyncio.sleep(0.001)
                continue
            if not (
                any(backend.in_flight for backend in self._backends)
                or any(node.in_flight for node in self._nodes)
            ):
                return

    def _end(self) -> None:
        for node in self._nodes:
            node.quiesced -= 1
        # A backend that was attached meanwhile took over the node's count, so it takes part too.
        for backend in self._users_now():
            if backend.quiesced:
                backend.drained_end()

    def _users_now(self) -> list[Backend]:
        users = dict.fromkeys(backend for backend in self._backends if backend.quiesced)
        for node in self._nodes:
            for edge in node.parents:
                if isinstance(edge.user, Backend):
                    users.setdefault(edge.user)
        return list(users)
