# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Several users on one device."""

from __future__ import annotations

import socket

import pytest

from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, with_desk


def test_users_share_output_and_the_last_one_reads() -> None:
    async def main(desk: Desk) -> None:
        ours, theirs = socket.socketpair()
        await desk.option(f"socket,id=c,fd={ours.detach()},mux=on")
        assert [info.label for info in desk.registry.query()] == ["c-base", "c"]
        first, second = Recorder(), Recorder()
        mux = desk.registry.attach("c", first)
        desk.registry.attach("c", second)
        assert first.events == second.events == ["opened"]
        mux.write(b"out")
        assert theirs.recv(10) == b"out"
        theirs.send(b"in")
        await second.until_data(b"in")
        assert first.data == b""
        theirs.close()
        await first.until_event("closed")
        await second.until_event("closed")

    with_desk(main)


def test_errors() -> None:
    async def main(desk: Desk) -> None:
        registry = desk.registry
        with pytest.raises(QmpError, match="mux: base chardev x not found"):
            await registry.add("m", backend("mux", chardev="x"))
        await registry.add("n", backend("null"))
        await registry.add("m", backend("mux", chardev="n"))
        assert [info.frontend_open for info in registry.query()] == [False, False]
        with pytest.raises(QmpError, match="Device 'n' is in use"):
            await registry.add("m2", backend("mux", chardev="n"))
        for label in ("n", "m"):
            with pytest.raises(QmpError, match="is busy"):
                await registry.remove(label)
        with pytest.raises(QmpError, match="Mux device hotswap not supported yet"):
            await registry.change("m", backend("null"))
        for _ in range(4):
            registry.attach("m", Recorder())
        with pytest.raises(QmpError, match="too many uses"):
            registry.attach("m", Recorder())

    with_desk(main)
