# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Devices on datagrams."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, inet, unix, with_desk


def test_talk() -> None:
    async def main(desk: Desk) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            port = str(peer.getsockname()[1])
            await desk.registry.add(
                "u",
                backend("udp", remote=inet("127.0.0.1", port), local=inet("127.0.0.1", "0")),
            )
            assert desk.filename("u") == "udp"
            user = Recorder()
            device = desk.registry.attach("u", user)
            assert user.events == ["opened"]
            device.write(b"ping")
            data, where = peer.recvfrom(100)
            assert data == b"ping"
            peer.sendto(b"pong", where)
            await user.until_data(b"pong")

    with_desk(main)


def test_a_peer_that_comes_late() -> None:
    """What is sent to nobody comes back as an error; the device still hears who comes later."""

    async def main(desk: Desk) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        await desk.registry.add(
            "u", backend("udp", remote=inet("127.0.0.1", str(port)), local=inet("127.0.0.1", "0"))
        )
        user = Recorder()
        device = desk.registry.attach("u", user)
        device.write(b"anybody?")
        await asyncio.sleep(0.02)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", port))
            device.write(b"ping")
            peer.settimeout(5)
            data, where = peer.recvfrom(100)
            assert data == b"ping"
            peer.sendto(b"pong", where)
            await user.until_data(b"pong")

    with_desk(main)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"remote": unix("x")}, "socket type unsupported for datagram"),
        (
            {"remote": inet("127.0.0.1", "9"), "local": unix("x")},
            "socket type unsupported for datagram",
        ),
        ({"remote": inet("127.0.0.1", "")}, "remote port not specified"),
        (
            {"remote": inet("127.0.0.1", "9"), "local": inet("192.0.2.1", "7")},
            "Failed to bind socket: Cannot assign requested address",
        ),
    ],
)
def test_errors(data: dict[str, Any], text: str) -> None:
    async def main(desk: Desk) -> None:
        with pytest.raises(QmpError) as caught:
            await desk.registry.add("u", backend("udp", **data))
        assert caught.value.desc == f"Failed to add chardev 'u': {text}"

    with_desk(main)
