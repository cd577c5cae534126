# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""NBD exports: a node under a name on the NBD server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qsd.block import perms
from qsd.errors import QmpError
from qsd.exports.base import Export, ExportServer
from qsd.exports.nbd_known import KnownData
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd import metacontext

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.block.node import Node
    from qsd.exports.base import ExportRegistry
    from qsd.exports.nbd_bitmaps import ExportedBitmap
    from qsd.qapi.schema.block_export import BlockExportOptionsNbd


class NbdClient:
    """What an export knows of a client that uses it."""

    __slots__ = ()

    def kill(self) -> None:
        """End the connection now."""


class NbdDirectory(ExportServer):
    """The exports of the running NBD server by name, in the order they were added.

    Attributes:
        exports: As said.
        max_connections: Clients at a time; 0 means no limit.
    """

    __slots__ = ("exports", "max_connections")

    def __init__(self, max_connections: int) -> None:
        self.exports: dict[str, NbdExport] = {}
        self.max_connections = max_connections

    def find(self, name: str) -> NbdExport | None:
        """Return the export of that name."""
        return self.exports.get(name)

    def offers(self) -> list[NbdExport]:
        """Return all exports, oldest first."""
        return list(self.exports.values())


class NbdExport(Export):
    """A node that NBD clients can choose by name.

    Attributes:
        name: The name clients ask for.
        description: A text for people, or None.
        size: Length in bytes, which stays as it was when the export began.
        contexts: Ids and names of the metadata contexts.
        bitmaps: The exported dirty bitmaps.
        clients: Clients in the transmission phase.
        known_data: See :class:`KnownData`.
    """

    TYPE: ClassVar[str] = "nbd"

    __slots__ = (
        "_directory",
        "bitmaps",
        "clients",
        "contexts",
        "description",
        "known_data",
        "name",
        "size",
    )

    def __init__(
        self, registry: ExportRegistry, export_id: str, backend: Backend, writable: bool
    ) -> None:
        super().__init__(registry, export_id, backend, writable)
        self._directory: NbdDirectory | None = None
        self.name = ""
        self.description: str | None = None
        self.size = 0
        self.contexts: tuple[tuple[int, str], ...] = ()
        self.bitmaps: list[ExportedBitmap] = []
        self.clients: set[NbdClient] = set()
        self.known_data = KnownData(0)

    @property
    def flags(self) -> int:
        """Transmission flags, without DF."""
        flags = nbd.FLAGS_WRITABLE if self.writable else nbd.FLAGS_READ_ONLY
        if self._directory is not None and self._directory.max_connections == 1:
            flags &= ~nbd.FLAG_CAN_MULTI_CONN  # a second connection would wait for the first
        return flags

    @property
    def minimum_block(self) -> int:
        """Bytes; the alignment that the node would like requests to have."""
        limits = self.backend.node.driver.limits
        return max(limits.request_alignment, limits.write_alignment)

    @property
    def maximum_block(self) -> int:
        """Bytes; the longest payload that the node passes on in one piece."""
        return _longest_transfer(self.backend.node)

    async def start(self, options: Any) -> None:
        """Offer the node on the running server (QMP reference, "BlockExportOptionsNbd").

        Raises:
            QmpError: There is no server, or an option does not fit.
        """
        settings: BlockExportOptionsNbd = options
        directory = self.registry.servers.get(self.TYPE)
        if not isinstance(directory, NbdDirectory):
            raise QmpError("NBD server not running")
        name = self.backend.node.name if settings.name is None else settings.name
        if _length(name) > nbd.MAX_STRING:
            raise QmpError(f"export name '{name}' too long")
        if settings.description is not None and _length(settings.description) > nbd.MAX_STRING:
            raise QmpError(f"description '{settings.description}' too long")
        if name in directory.exports:
            raise QmpError(f"NBD server already has export named '{name}'")
        # Clients are told the length once: nobody else may change it.
        perm = perms.CONSISTENT_READ | (perms.WRITE if self.writable else 0)
        self.backend.set_perms(perm, perms.ALL & ~perms.RESIZE)
        try:
            self.size = self.backend.length()
        except OSError as exc:
            raise QmpError(f"Failed to determine the NBD export's length: {exc.strerror}") from exc
        if settings.bitmaps:
            from qsd.exports.nbd_bitmaps import take_bitmaps

            self.bitmaps = take_bitmaps(
                self.registry.graph,
                self.backend.node,
                settings.bitmaps,
                read_only=not self.writable,
            )
        self.known_data = KnownData(self.size)
        self.name = name
        self.description = settings.description
        self.contexts = metacontext.offered_contexts(
            bool(settings.allocation_depth), [bitmap.name for bitmap in self.bitmaps]
        )
        self._directory = directory
        directory.exports[name] = self

    def stop_serving(self) -> None:
        """Free the name: a new export may take it while old clients are still there."""
        assert self._directory is not None
        del self._directory.exports[self.name]

    def disconnect(self) -> None:
        """End all connections that use the export."""
        for client in list(self.clients):
            client.kill()

    async def released(self) -> None:
        """Let others use the bitmaps again."""
        for bitmap in self.bitmaps:
            bitmap.release()

    def add_client(self, client: NbdClient) -> None:
        """Count a client that entered the transmission phase."""
        self.clients.add(client)
        self.add_user()

    def remove_client(self, client: NbdClient) -> None:
        """Count a client that has gone."""
        self.clients.discard(client)
        self.remove_user()


def _longest_transfer(node: Node) -> int:
    """Return how long a request for data of a node may be without being cut, bytes."""
    longest = node.driver.limits.max_transfer or nbd.MAX_REQUEST
    for edge in node.children.values():
        if edge.role & (perms.ROLE_DATA | perms.ROLE_FILTERED | perms.ROLE_COW):
            longest = min(longest, _longest_transfer(edge.node))
    return longest


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
