# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The character devices of one daemon."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from qsd.chardev.base import Chardev, Environment
from qsd.errors import QmpError, prefixed
from qsd.qapi.schema.char import ChardevBackendInfo, ChardevInfo, ChardevReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qsd.chardev.base import Frontend
    from qsd.net.tls import TlsSession
    from qsd.objects.tree import ObjectTree
    from qsd.qapi.schema.char import ChardevBackend

#: Seconds; how long the end of the daemon may be held up by pending output.
DRAIN_TIME: Final = 0.5
#: Seconds between looks at it.
DRAIN_STEP: Final = 0.002

BACKENDS: Final[Mapping[str, str]] = {
    "pty": "pty:PtyChardev",
    "udp": "udp:UdpChardev",
    "memory": "ringbuf:MemoryChardev",
    "file": "file:FileChardev",
    "socket": "socket:SocketChardev",
    "stdio": "stdio:StdioChardev",
    "ringbuf": "ringbuf:RingbufChardev",
    "null": "null:NullChardev",
    "parallel": "hostdev:ParallelChardev",
    "pipe": "pipe:PipeChardev",
    "mux": "mux:MuxChardev",
    "serial": "hostdev:SerialChardev",
}
"""From a backend's name to "module:class", in the order in which the original's help lists them."""


def check_kind(kind: str) -> None:
    """Raise QmpError if there is no such backend."""
    if kind not in BACKENDS:
        raise QmpError(f"'{kind}' is not a valid char driver name")


def _make(label: str, backend: ChardevBackend) -> Chardev:
    check_kind(backend.type)
    module, _, name = BACKENDS[backend.type].partition(":")
    cls = getattr(import_module(f"qsd.chardev.{module}"), name)
    wrapper: Any = backend.branch
    made: Chardev = cls(label, wrapper.data)
    return made


class ChardevRegistry:
    """Character devices by label, in the order in which they were made."""

    def __init__(
        self,
        objects: ObjectTree | None = None,
        *,
        report: Callable[[str], None] | None = None,
        in_background: bool = False,
    ) -> None:
        """Make an empty registry.

        Args:
            objects: Where TLS credentials are found and where devices are shown; may be None.
            report: Prints a message for whoever runs the daemon.
            in_background: Whether the process goes to the background, where it has no terminal.
        """
        self._in_background = in_background
        self._report = report or _drop
        self._objects = objects
        self._devices: dict[str, Chardev] = {}

    def __iter__(self) -> Iterator[Chardev]:
        return iter(tuple(self._devices.values()))

    def __len__(self) -> int:
        return len(self._devices)

    def find(self, label: str) -> Chardev | None:
        """Return the device of that label, or None."""
        return self._devices.get(label)

    def _get(self, label: str) -> Chardev:
        device = self._devices.get(label)
        if device is None:
            raise QmpError(f"Chardev '{label}' not found")
        return device

    # ---------------------------------------------------------------------- adding and removing

    async def add_from_command_line(
        self, label: str, backend: ChardevBackend, *, mux: bool = False
    ) -> Chardev:
        """Make a device as ``--chardev`` does.

        Args:
            label: Its name.
            backend: What it is.
            mux: Whether to put a multiplexer on it, which then has the name.

        Raises:
            QmpError: It cannot be opened, or the name is taken.
        """
        device = await self._open(f"{label}-base" if mux else label, backend, by_monitor=False)
        try:
            self._insert(device)
        except BaseException:
            await device.close()
            raise
        if not mux:
            return device
        from qsd.chardev.mux import MuxChardev

        multiplexer = MuxChardev.over(label, device)
        self._insert(multiplexer)
        return multiplexer

    async def add(self, label: str, backend: ChardevBackend) -> ChardevReturn:
        """Make a device as ``chardev-add`` does.

        Raises:
            QmpError: The name is taken, or it cannot be opened.
        """
        if label in self._devices:
            raise QmpError(f"Chardev with id '{label}' already exists")
        device = await self._open_for_monitor(label, backend)
        try:
            self._insert(device)
        except BaseException:
            await device.close()
            raise
        return ChardevReturn(pty=device.pty)

    async def change(self, label: str, backend: ChardevBackend) -> ChardevReturn:
        """Put another backend under a name that nobody uses now, as ``chardev-change`` does.

        Raises:
            QmpError: There is no such device, it is in use, or the new one cannot be opened, in
                which case the old one stays.
        """
        old = self._devices.get(label)
        if old is None:
            raise QmpError(f"Chardev '{label}' does not exist")
        if old.kind == "mux":
            raise QmpError("Mux device hotswap not supported yet")
        if old.is_busy:
            # The original asks the user of the device; a monitor says no, and so does a mux.
            raise QmpError("Chardev user does not support chardev hotswap")
        new = await self._open_for_monitor(label, backend)
        self._forget(old)
        await old.close()
        self._insert(new)
        return ChardevReturn(pty=new.pty)

    async def remove(self, label: str) -> None:
        """Close a device and forget it, as ``chardev-remove`` does.

        Raises:
            QmpError: There is no such device, or it is in use.
        """
        device = self._get(label)
        if device.is_busy:
            raise QmpError(f"Chardev '{label}' is busy")
        self._forget(device)
        await device.close()

    async def close(self) -> None:
        """Close all devices, the last one first.  Idempotent.

        Whoever reads slowly gets a moment to take what is pending: the reply to ``quit``, say.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN_TIME
        while loop.time() < deadline and any(device.pending for device in self):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_STEP)
        for device in reversed(tuple(self._devices.values())):
            self._forget(device)
            await device.close()

    async def _open_for_monitor(self, label: str, backend: ChardevBackend) -> Chardev:
        try:
            return await self._open(label, backend, by_monitor=True)
        except QmpError as exc:
            raise prefixed(exc, f"Failed to add chardev '{label}': ") from exc

    async def _open(self, label: str, backend: ChardevBackend, *, by_monitor: bool) -> Chardev:
        device = _make(label, backend)
        env = Environment(
            by_monitor=by_monitor,
            in_background=self._in_background,
            report=self._report,
            find=self.find,
            has_kind=self._has_kind,
            find_tls=self._find_tls,
        )
        common: Any = backend.branch
        await device.open(common.data, env)
        return device

    def _has_kind(self, kind: str) -> bool:
        return any(device.kind == kind for device in self._devices.values())

    def _find_tls(
        self, name: str, endpoint: str, authz: str | None
    ) -> Callable[[str | None], TlsSession]:
        from qsd.objects.tls_creds import ServerTls, TlsCreds, find_creds

        if self._objects is None:
            raise QmpError(TlsCreds.NOT_FOUND.format(name))
        creds = find_creds(self._objects, name, endpoint)
        if endpoint == "server":
            server = ServerTls(self._objects, creds, authz)
            return lambda _hostname: server.session()
        return lambda hostname: creds.session(hostname=hostname)

    def _insert(self, device: Chardev) -> None:
        label = device.label
        if label in self._devices:
            raise QmpError(
                f"attempt to add duplicate property '{label}' to object (type 'container')"
            )
        if self._objects is not None:
            self._objects.add_chardev(label, f"chardev-{device.kind}")
        self._devices[label] = device

    def _forget(self, device: Chardev) -> None:
        del self._devices[device.label]
        if self._objects is not None:
            self._objects.remove_chardev(device.label)

    # --------------------------------------------------------------------------------- using

    def attach(self, label: str, frontend: Frontend) -> Chardev:
        """Give a device a user and return it.

        Raises:
            QmpError: There is no such device, or it has a user.
        """
        device = self.for_monitor(label)
        device.attach(frontend)
        return device

    def for_monitor(self, label: str) -> Chardev:
        """Return the device that a monitor wants.

        Raises:
            QmpError: There is none, as ``--monitor`` says it.
        """
        device = self._devices.get(label)
        if device is None:
            raise QmpError(f'chardev "{label}" not found')
        return device

    def send_break(self, label: str) -> None:
        """Send a break through a device, as ``chardev-send-break`` does.

        Raises:
            QmpError: There is no such device.
        """
        self._get(label).send_break()

    def query(self) -> list[ChardevInfo]:
        """Tell about all devices, as ``query-chardev`` does."""
        return [
            ChardevInfo(
                label=device.label,
                filename=device.filename,
                frontend_open=device.has_open_frontend,
            )
            for device in self
        ]

    @staticmethod
    def query_backends() -> list[ChardevBackendInfo]:
        """List the kinds of devices, as ``query-chardev-backends`` does."""
        return [ChardevBackendInfo(name=name) for name in BACKENDS]


def _drop(text: str) -> None:
    """Report to nobody."""
    del text
