# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Commands about character devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qsd.commands import HANDLERS, chardev
from qsd.errors import QmpError
from qsd.qapi.convert import from_json, to_json
from qsd.qapi.schema import find_command
from tests.chardev.support import Desk, with_desk


async def call(desk: Desk, command: str, **arguments: Any) -> Any:
    context: Any = SimpleNamespace(chardevs=desk.registry)
    declared = find_command(command)
    assert declared is not None
    typed = from_json(declared.arguments, arguments)
    function = HANDLERS[command].removeprefix("chardev:")
    result = await getattr(chardev, function)(context, typed)
    return {} if result is None else to_json(result)


def test_life_cycle() -> None:
    async def main(desk: Desk) -> None:
        null = {"type": "null", "data": {}}
        assert await call(desk, "chardev-add", id="n", backend=null) == {}
        assert await call(desk, "query-chardev") == [
            {"label": "n", "filename": "null", "frontend-open": False}
        ]
        ring = {"type": "ringbuf", "data": {"size": 8}}
        assert await call(desk, "chardev-change", id="n", backend=ring) == {}
        assert await call(desk, "chardev-send-break", id="n") == {}
        assert await call(desk, "chardev-remove", id="n") == {}
        assert await call(desk, "query-chardev") == []
        assert {"name": "socket"} in await call(desk, "query-chardev-backends")
        made = await call(desk, "chardev-add", id="p", backend={"type": "pty", "data": {}})
        assert made["pty"].startswith("/dev/")

    with_desk(main)


def test_ring_buffer() -> None:
    async def main(desk: Desk) -> None:
        await desk.option("ringbuf,id=r,size=8")

        async def write(**arguments: Any) -> None:
            assert await call(desk, "ringbuf-write", device="r", **arguments) == {}

        async def read(size: int = 100, **arguments: Any) -> Any:
            return await call(desk, "ringbuf-read", device="r", size=size, **arguments)

        await write(data="abcdef")
        assert await read(3) == "abc"
        await write(data="0123456789")
        assert await read() == "23456789"
        assert await read() == ""
        await write(data="aGVsbG8=", format="base64")
        assert await read(format="base64") == "aGVsbG8="
        await write(data="YQBi", format="base64")
        assert await read() == "a"
        await write(data="//4=", format="base64")
        assert await read() == "\udcff\udcfe"

    with_desk(main)


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("ringbuf-read", {"device": "r", "size": 0}, "size must be greater than zero"),
        ("ringbuf-read", {"device": "x", "size": 1}, "Device 'x' not found"),
        ("ringbuf-read", {"device": "n", "size": 1}, "n is not a ringbuf device"),
        ("ringbuf-write", {"device": "n", "data": ""}, "n is not a ringbuf device"),
        (
            "ringbuf-write",
            {"device": "r", "data": "!!", "format": "base64"},
            "Base64 data contains invalid characters",
        ),
        ("chardev-remove", {"id": "x"}, "Chardev 'x' not found"),
        ("chardev-send-break", {"id": "x"}, "Chardev 'x' not found"),
    ],
)
def test_errors(command: str, arguments: dict[str, Any], text: str) -> None:
    async def main(desk: Desk) -> None:
        await desk.option("ringbuf,id=r")
        await desk.option("null,id=n")
        with pytest.raises(QmpError) as caught:
            await call(desk, command, **arguments)
        assert caught.value.desc == text

    with_desk(main)
