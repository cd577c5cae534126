# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The connection to the persistent reservation helper."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from qsd.aio.loop import run
from qsd.aio.workers import WorkerPool
from qsd.errors import QmpError
from qsd.objects import pr_manager
from qsd.objects.pr_manager import PrManagerStatusChanged
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.qom_properties import PrManagerHelperProperties

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qsd.qapi.model import Event


class Events:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def emit(self, event: Event) -> None:
        self.seen.append(event)


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "pr.sock"))
        listener.listen()
        yield listener


async def add(tree: ObjectTree, path: str) -> None:
    await tree.create("pr-manager-helper", "p", PrManagerHelperProperties(path=path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nope/x", "Failed to connect to '/nope/x': No such file or directory"),
        ("", "Failed to connect to '': Connection refused"),
        ("/etc/passwd", "Failed to connect to '/etc/passwd': Connection refused"),
        ("x" * 108, f"UNIX socket path '{'x' * 108}' is too long"),
    ],
)
def test_nobody_there(path: str, message: str) -> None:
    events = Events()
    with pytest.raises(QmpError) as caught:
        run(add(ObjectTree(events=events), path))
    assert caught.value.desc == message
    assert events.seen == []


def test_path_is_needed() -> None:
    with pytest.raises(QmpError, match=r"^path not set$"):
        run(ObjectTree().create("pr-manager-helper", "p"))


def test_handshake(helper: socket.socket) -> None:
    events = Events()
    tree = ObjectTree(events=events)

    async def story() -> None:
        tree.workers = workers = WorkerPool()
        making = asyncio.ensure_future(add(tree, helper.getsockname()))  # noqa: TID251
        peer, _ = await asyncio.to_thread(helper.accept)
        with peer:
            peer.sendall(b"\0\0\0\1")  # whatever the features, we have none
            await making
            assert peer.recv(100) == bytes(4)
            await tree.delete("p")
            assert peer.recv(100) == b""
        await workers.close()

    run(story())
    assert events.seen == [PrManagerStatusChanged(id="p", connected=True)]


def test_helper_goes_away(helper: socket.socket) -> None:
    events = Events()
    tree = ObjectTree(events=events)

    async def story() -> None:
        tree.workers = workers = WorkerPool()
        making = asyncio.ensure_future(add(tree, helper.getsockname()))  # noqa: TID251
        peer, _ = await asyncio.to_thread(helper.accept)
        peer.sendall(b"\0\0")
        peer.close()
        try:
            await making
        finally:
            await workers.close()

    with pytest.raises(QmpError, match=r"^Unexpected end-of-file before all data were read$"):
        run(story())
    assert events.seen == [PrManagerStatusChanged(id="p", connected=False)]
    assert tree.find("p") is None


def test_a_listener_with_nothing_to_say(
    helper: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a server of this very daemon: who waits for a request does not answer."""
    monkeypatch.setattr(pr_manager, "_PATIENCE", 0.01)
    events = Events()
    with pytest.raises(QmpError, match=r"^Unable to read from socket: Connection timed out$"):
        run(add(ObjectTree(events=events), helper.getsockname()))
    assert events.seen == [PrManagerStatusChanged(id="p", connected=False)]
