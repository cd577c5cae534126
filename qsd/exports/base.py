# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Block exports: their life cycle and the registry of them.

An export serves one node to the outside by some protocol.  Its life, with `MOVES` as the list of
legal steps::

    STARTING --> RUNNING --> SHUTTING_DOWN --> DELETED
        \----------------------------------------^      (starting failed)

SHUTTING_DOWN lasts as long as clients are connected or requests in flight.  With the step to
DELETED the export lets go of its node and BLOCK_EXPORT_DELETED is sent (not for one that never
ran).

What kinds of exports there are is told to the registry by a lookup function, so that it knows none
of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from qsd.aio import eager
from qsd.block import perms
from qsd.block.backend import Backend, BackendListener
from qsd.errors import QmpError
from qsd.qapi.schema.block_export import BlockExportDeleted, BlockExportInfo
from qsd.util.ids import is_valid_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.objects.tree import ObjectTree
    from qsd.qapi.events import EventSink
    from qsd.qapi.schema.block_export import BlockExportOptions, BlockExportType

STARTING: Final = "starting"
RUNNING: Final = "running"
SHUTTING_DOWN: Final = "shutting-down"
DELETED: Final = "deleted"

MOVES: Final = {
    STARTING: (RUNNING, DELETED),
    RUNNING: (SHUTTING_DOWN,),
    SHUTTING_DOWN: (DELETED,),
    DELETED: (),
}


def _drop(text: str) -> None:
    """Nobody wants to read it."""
    del text


#: Turns of the loop; reading the end of a connection, ending its task and letting go of the export
#: take one or two each.
_TURNS_TO_NOTICE: Final = 10


class Export(BackendListener):
    """Base of all exports.

    Attributes:
        id: The identifier.
        state: One of the states above.
        backend: The use of the node.
        writable: Whether clients may change the node.
        registry: The registry it belongs to.
        by_monitor: Whether a QMP client asked for it, which matters for file descriptors.
    """

    #: The name in QMP, e.g. "nbd".
    TYPE: ClassVar[str] = ""

    __slots__ = (
        "_deleted",
        "_users",
        "backend",
        "by_monitor",
        "id",
        "registry",
        "state",
        "writable",
    )

    def __init__(
        self, registry: ExportRegistry, export_id: str, backend: Backend, writable: bool
    ) -> None:
        self.registry = registry
        self.id = export_id
        self.backend = backend
        self.writable = writable
        self.by_monitor = False
        self.state = STARTING
        self._users = 0
        self._deleted: list[asyncio.Future[None]] = []
        backend.listener = self

    def __repr__(self) -> str:
        return f"<{self.TYPE} export {self.id}, {self.state}>"

    # For subclasses to implement

    async def start(self, options: Any) -> None:
        """Begin to serve.

        Args:
            options: The type's branch of BlockExportOptions.

        Raises:
            QmpError: It is impossible; everything taken so far was released.
        """
        raise NotImplementedError

    def disconnect(self) -> None:
        """Ask all clients to go, now; each one's end is reported by :meth:`remove_user`."""

    def stop_serving(self) -> None:
        """Let no new client in.  Called once, when the export begins to shut down."""

    async def released(self) -> None:
        """Release what `start` took.  Called once, when no user is left."""

    # Users: clients, mounts, anything that keeps the export busy.

    @property
    def is_busy(self) -> bool:
        """Whether there are users."""
        return self._users > 0

    def add_user(self) -> None:
        """Count one more user."""
        self._users += 1

    def remove_user(self) -> None:
        """Count one user less; the last one's end completes a shutdown."""
        self._users -= 1
        if not self._users and self.state == SHUTTING_DOWN:
            eager.start(self._delete(), self.registry.tasks, f"delete export {self.id}")

    def _move(self, state: str) -> None:
        if state not in MOVES[self.state]:
            raise RuntimeError(f"export '{self.id}' cannot go from {self.state} to {state}")
        self.state = state

    async def run(self, options: Any) -> None:
        """Start, and be ready to be used.

        Raises:
            QmpError: It failed; the node is not used any more.
        """
        try:
            await self.start(options)
        except BaseException:
            self._move(DELETED)
            await self.backend.detach()
            raise
        self._move(RUNNING)

    async def shut_down(self) -> None:
        """Begin to end.  With no users the export is deleted when this returns."""
        if self.state != RUNNING:
            return
        self._move(SHUTTING_DOWN)
        self.stop_serving()
        if self._users:
            self.disconnect()
        else:
            await self._delete()

    async def _delete(self) -> None:
        if self.state != SHUTTING_DOWN:
            return
        self._move(DELETED)
        await self.released()
        await self.backend.detach()
        self.registry.forget(self)
        for future in self._deleted:
            if not future.done():
                future.set_result(None)
        self._deleted.clear()

    async def wait_deleted(self) -> None:
        """Wait until the export is gone."""
        while self in self.registry:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._deleted.append(future)
            await future


class ExportServer:
    """A server that exports of one type need, and that a command starts and stops."""

    __slots__ = ()

    async def stop(self) -> None:
        """Close everything and wait until it is closed."""


class ExportRegistry:
    """The exports of one daemon.

    Attributes:
        graph: Whose nodes are exported.
        objects: Where iothreads and other objects are looked up.
        events: Where BLOCK_EXPORT_DELETED goes.
        tasks: Owner of the tasks of exports and their clients.
        servers: Servers that exports need, by export type ("nbd").
        find_type: Returns the class for an export type, None if we have none.
        report: Prints a message about clients for whoever runs the daemon.
    """

    def __init__(
        self,
        graph: Graph,
        objects: ObjectTree,
        events: EventSink,
        tasks: TaskOwner,
        find_type: Callable[[str], type[Export] | None],
        *,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.graph = graph
        self.objects = objects
        self.events = events
        self.tasks = tasks
        self.find_type = find_type
        self.report = report or _drop
        self.servers: dict[str, ExportServer] = {}
        self._exports: dict[str, Export] = {}

    def __contains__(self, export: Export) -> bool:
        return self._exports.get(export.id) is export

    def __len__(self) -> int:
        return len(self._exports)

    def find(self, export_id: str) -> Export:
        """Return an export by its id.

        Raises:
            QmpError: There is none.
        """
        export = self._exports.get(export_id)
        if export is None:
            raise QmpError(f"Export '{export_id}' is not found")
        return export

    def of_type(self, export_type: str) -> list[Export]:
        """Return the exports of one type, oldest first."""
        return [export for export in self._exports.values() if export_type == export.TYPE]

    async def add(self, options: BlockExportOptions, *, by_monitor: bool = False) -> Export:
        """Make an export, as block-export-add does.

        Args:
            options: What and how.
            by_monitor: Whether a QMP client asks.

        Raises:
            QmpError: It is impossible; nothing changed.
        """
        if not is_valid_id(options.id):
            raise QmpError("Invalid block export id")
        if options.id in self._exports:
            raise QmpError(f"Block export id '{options.id}' is already in use")
        cls = self.find_type(options.type)
        if cls is None:
            raise QmpError(f"Block export type '{options.type}' is not supported yet")
        node = self.graph.lookup(None, options.node_name)
        writable = bool(options.writable)
        if node.read_only and writable:
            raise QmpError("Cannot export read-only node as writable")
        if options.iothread:  # the C daemon takes an empty name for none
            from qsd.objects.iothread import IOThread

            # All exports are served by one loop; the object must only be there.
            self.objects.resolve(options.iothread, IOThread)
        backend = await self._attach(node, writable, bool(options.writethrough))
        export = cls(self, options.id, backend, writable)
        export.by_monitor = by_monitor
        self._exports[options.id] = export
        try:
            await export.run(options.branch)
        except BaseException:
            del self._exports[options.id]
            raise
        return export

    async def _attach(self, node: Node, writable: bool, writethrough: bool) -> Backend:
        backend = Backend(self.graph, "", "an unnamed block device")
        backend.force_writethrough = writethrough
        perm = perms.CONSISTENT_READ | (perms.WRITE if writable else 0)
        backend.attach(node, perm, perms.ALL)
        return backend

    async def delete(self, export_id: str, mode: str | None) -> None:
        """Take an export away, as block-export-del does.

        Args:
            export_id: The export.
            mode: "safe" (or None) refuses while clients are connected, "hard" disconnects them.

        Raises:
            QmpError: There is no such export, or it is in use.
        """
        export = self.find(export_id)
        if export.state != RUNNING:
            raise QmpError(f"Export '{export_id}' is already shutting down")
        if mode != "hard":
            # A client that hung up before this command was sent is not in the way any more: let the
            # loop look at the sockets before judging.
            turns = _TURNS_TO_NOTICE
            while export.is_busy and turns:
                turns -= 1
                await asyncio.sleep(0)
            if export.is_busy:
                raise QmpError(f"export '{export_id}' still in use")
        await export.shut_down()

    def forget(self, export: Export) -> None:
        """Take note that an export is deleted, and say so."""
        del self._exports[export.id]
        self.events.emit(BlockExportDeleted(id=export.id))

    def query(self) -> list[BlockExportInfo]:
        """Describe all exports, newest first."""
        return [
            BlockExportInfo(
                id=export.id,
                type=cast("BlockExportType", export.TYPE),
                node_name=export.backend.node.name,
                shutting_down=export.state == SHUTTING_DOWN,
            )
            for export in reversed(self._exports.values())
            if export.state in (RUNNING, SHUTTING_DOWN)
        ]

    async def close_type(self, export_type: str) -> None:
        """End all exports of a type, oldest first, and wait for their end."""
        await self._end(self.of_type(export_type))

    async def _end(self, exports: list[Export]) -> None:
        for export in exports:
            await export.shut_down()
        for export in exports:
            await export.wait_deleted()

    async def close(self, *, keep_files: bool = False) -> None:
        """End everything: at the end of the daemon.

        Args:
            keep_files: Leave exports alone that show files; :meth:`close_files` ends them.
        """
        for name in list(self.servers):
            server = self.servers.pop(name)
            await server.stop()
        await self._end(
            [
                export
                for export in self._exports.values()
                if not (keep_files and export.shows_file_since())
            ]
        )

    async def close_files(self) -> None:
        """End what :meth:`close` left, the newest first: it may show what is read from another."""
        for export in reversed(list(self._exports.values())):
            await self._end([export])
