# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Helpers for the tests of character devices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from qsd.aio.loop import run
from qsd.chardev.options import parse_chardev
from qsd.chardev.registry import ChardevRegistry
from qsd.qapi.convert import from_json
from qsd.qapi.schema.char import ChardevBackend


class Recorder:
    """A frontend that notes what happens and lets tests wait for it."""

    is_ready = True

    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = b""
        self._changed = asyncio.Event()

    def _note(self, what: str) -> None:
        self.events.append(what)
        self._changed.set()

    def chardev_opened(self) -> None:
        self._note("opened")

    def chardev_data(self, data: bytes) -> None:
        self.data += data
        self._changed.set()

    def chardev_closed(self) -> None:
        self._note("closed")

    def chardev_drained(self) -> None:
        self._note("drained")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something happened after which `condition` holds."""
        async with asyncio.timeout(5):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_event(self, what: str, count: int = 1) -> None:
        await self.until(lambda: self.events.count(what) >= count)

    async def until_data(self, data: bytes) -> None:
        await self.until(lambda: self.data == data)


def backend(kind: str, **data: Any) -> ChardevBackend:
    """Return what chardev-add takes; underscores stand for hyphens."""
    members = {name.replace("_", "-"): value for name, value in data.items()}
    return from_json(ChardevBackend, {"type": kind, "data": members})


def unix(path: object, **more: Any) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": str(path), **more}}


def inet(host: str, port: str, **more: Any) -> dict[str, Any]:
    return {"type": "inet", "data": {"host": host, "port": port, **more}}


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds, for what nobody announces."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


class Desk:
    """A registry and what it reported."""

    def __init__(self, *, in_background: bool = False) -> None:
        self.reports: list[str] = []
        self.registry = ChardevRegistry(report=self.reports.append, in_background=in_background)

    async def option(self, text: str) -> str:
        """Make a device from a --chardev option; return its label."""
        option = parse_chardev(text, self.reports.append)
        assert option.backend is not None
        await self.registry.add_from_command_line(option.id, option.backend, mux=option.mux)
        return option.id

    def filename(self, label: str) -> str:
        (found,) = [info.filename for info in self.registry.query() if info.label == label]
        return found


def with_desk(test: Callable[[Desk], Awaitable[None]], **options: bool) -> None:
    """Run `test` with a registry that is closed at the end."""

    async def main() -> None:
        desk = Desk(**options)
        try:
            await test(desk)
        finally:
            await desk.registry.close()

    run(main())
