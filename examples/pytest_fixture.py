# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A pytest fixture that serves a scratch disk over NBD, in the process of the test.

Copy the fixture to your conftest.py, or try it here (it needs no NBD client to run)::

    pytest examples/pytest_fixture.py
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd.daemon import StorageDaemon

DISK = {"driver": "file", "node-name": "disk", "filename": "disk.raw"}


async def serve(folder: Path, ready: threading.Event, enough: asyncio.Event) -> None:
    """Serve a 1 MiB disk as "disk" until it is enough."""
    (folder / "disk.raw").write_bytes(bytes(1 << 20))
    async with StorageDaemon() as daemon:
        await daemon.qmp("blockdev-add", {**DISK, "filename": str(folder / "disk.raw")})
        address = {"type": "unix", "data": {"path": str(folder / "nbd.sock")}}
        await daemon.qmp("nbd-server-start", {"addr": address})
        export = {"type": "nbd", "id": "disk", "node-name": "disk", "writable": True}
        await daemon.qmp("block-export-add", export)
        ready.set()
        await enough.wait()


@pytest.fixture
def nbd_uri(tmp_path: Path) -> Iterator[str]:
    """Yield the URI of a scratch disk."""
    loop = asyncio.new_event_loop()
    ready, enough = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(serve(tmp_path, ready, enough))
    )
    thread.start()
    assert ready.wait(10)
    yield f"nbd+unix:///disk?socket={tmp_path}/nbd.sock"
    loop.call_soon_threadsafe(enough.set)
    thread.join()
    loop.close()


def test_the_disk_is_there(nbd_uri: str) -> None:
    """The server greets (NBD protocol, "Newstyle negotiation")."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(nbd_uri.partition("socket=")[2])
        assert client.recv(16, socket.MSG_WAITALL) == b"NBDMAGICIHAVEOPT"
