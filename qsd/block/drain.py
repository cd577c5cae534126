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

A file node may be what an export of another node shows (:meth:`Driver.is_served`), so that its
requests end only while that export is not quiesced.  Where a section has both, exports that show
files are quiesced last, and the newest first: it must be older than what was opened from it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qsd.block.backend import Backend
from qsd.block.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
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
        quiet = list(self._backends)
        shown: list[Backend] = []
        if any(node.driver.is_served() for node in self._nodes):
            shown = [backend for backend in quiet if backend.listener.shows_file_since()]
            shown.sort(key=lambda backend: backend.listener.shows_file_since())
            quiet = [backend for backend in quiet if backend not in shown]
        for backend in quiet:
            backend.drained_begin()
        try:
            while shown:
                busy = shown[0].graph.descend([backend.node for backend in shown])
                await self._wait(quiet, [node for node in self._nodes if node not in busy])
                newest = shown.pop()
                newest.drained_begin()
                quiet.append(newest)
            await self._wait(self._backends, self._nodes)
        except BaseException:
            for backend in shown:
                backend.drained_begin()  # just to be ended with all others
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

    async def _wait(self, backends: Sequence[Backend], nodes: Sequence[Node]) -> None:
        """Wait until none of these has a request in flight."""
        while True:
            for backend in backends:
                await backend.wait_idle()
            for node in nodes:
                await node.wait_idle()
            if any(backend.listener.drained_poll() for backend in backends):
                # Owners finish their own activity in tasks of theirs; give them a turn.
                await asyncio.sleep(0.001)
                continue
            if not (
                any(backend.in_flight for backend in backends)
                or any(node.in_flight for node in nodes)
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
