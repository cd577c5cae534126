# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vhost-user-blk export: a node is the disk of a virtual machine.

The export listens on a socket and serves one front end (QEMU, say) at a time; the next one waits
until the first has gone, so a front end that restarts just connects again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.block import perms
from qsd.errors import QmpError
from qsd.exports.base import DELETED, Export
from qsd.exports.vhost_session import VhostSession
from qsd.exports.virtio_blk import VirtioBlk, check_block_size
from qsd.net.listen import listen

if TYPE_CHECKING:
    import socket

    from qsd.block.backend import Backend
    from qsd.exports.base import ExportRegistry
    from qsd.net.listen import Listening

#: Turns of the loop in which a session without requests in flight ends.
_TURNS_TO_END: Final = 10
#: Answer to the driver's question for the disk's serial number.
_SERIAL: Final = b"vhost_user_blk"


class VhostUserBlkExport(Export):
    """A node served to one front end at a time."""

    TYPE: ClassVar[str] = "vhost-user-blk"

    __slots__ = ("_device", "_listening", "_loop", "_session")

    def __init__(
        self, registry: ExportRegistry, export_id: str, backend: Backend, writable: bool
    ) -> None:
        super().__init__(registry, export_id, backend, writable)
        self._listening: Listening | None = None
        self._session: VhostSession | None = None
        self._device: VirtioBlk
        self._loop: asyncio.AbstractEventLoop

    async def start(self, options: Any) -> None:
        """Listen.

        Raises:
            QmpError: An option or the address is impossible.
        """
        block_size = check_block_size(self.id, options.logical_block_size)
        num_queues = 1 if options.num_queues is None else options.num_queues
        if not num_queues:
            raise QmpError("num-queues must be greater than 0")
        if options.addr.type not in ("unix", "fd"):
            raise QmpError("Only socket address types 'unix' and 'fd' are supported")
        # A front end can be told of a new length.
        perm = perms.CONSISTENT_READ | (perms.WRITE if self.writable else 0)
        self.backend.set_perms(perm, perms.ALL)
        self._device = VirtioBlk(
            self.backend,
            self.registry.tasks,
            writable=self.writable,
            block_size=block_size,
            num_queues=num_queues,
            serial=_SERIAL,
        )
        self._loop = asyncio.get_running_loop()
        self._listening = listen(options.addr, by_monitor=self.by_monitor)
        self._wait_for_client()

    def _wait_for_client(self) -> None:
        if self._listening is not None:
            sock = self._listening.sockets[0]
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # it went away again
        self._loop.remove_reader(listener.fileno())
        self._session = VhostSession(self._device, sock)
        self.add_user()
        self.registry.tasks.spawn(self._serve(self._session), f"vhost-user-blk {self.id}")

    async def _serve(self, session: VhostSession) -> None:
        try:
            reason = await session.run()
        finally:
            self._session = None
            self._wait_for_client()
            self.remove_user()
        if reason is not None:
            self.registry.report(f"vhost-user-blk export '{self.id}': {reason}")

    def resized(self) -> None:
        """Tell the front end that the configuration changed."""
        if self._session is not None:
            self._session.config_changed()

    def stop_serving(self) -> None:
        """Listen no more."""
        listening, self._listening = self._listening, None
        if listening is not None:
            if self._session is None:
                self._loop.remove_reader(listening.sockets[0].fileno())
            listening.close()

    @property
    def is_busy(self) -> bool:
        """Never: a front end does not keep the export from being deleted."""
        return False

    async def shut_down(self) -> None:
        """Begin to end; the end is waited for unless requests are in flight."""
        await super().shut_down()
        for _ in range(_TURNS_TO_END):
            if self.state == DELETED:
                break
            await asyncio.sleep(0)

    def disconnect(self) -> None:
        """Hang up."""
        if self._session is not None:
            self._session.hang_up()
