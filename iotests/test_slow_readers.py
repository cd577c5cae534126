# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Clients that receive late get what their range held, whatever became of its place meanwhile.

Every block of the disk holds its own number all over, or zeroes.  While readers ask for several
blocks at once and receive them some time later, a writer discards and rewrites, and snapshots come
and go, so that clusters are used for one block after the other.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.nbd import FLUSH, READ, TRIM, WRITE, Client
from iotests.harness.tools import check_image, need, run

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(120)]

BLOCK = 65536
BLOCKS = 64
#: Seconds.
DURATION = 4.0


def content(index: int) -> bytes:
    return bytes([index + 1]) * BLOCK


class Players:
    """Threads that play until time is over; the first error is kept."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "nbd.sock"
        self.end = time.monotonic() + DURATION
        self.errors: list[BaseException] = []
        self.reads = self.rewritten = 0

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end or bool(self.errors)

    def run(self, play: str, seed: int) -> None:
        try:
            with contextlib.closing(Client(self.socket, "disk")) as client:
                getattr(self, play)(client, random.Random(seed))
        except BaseException as exc:
            self.errors.append(exc)

    def read(self, client: Client, dice: random.Random) -> None:
        while not self.is_over:
            asked = [dice.randrange(BLOCKS) for _ in range(dice.choice((1, 2, 8)))]
            for number, index in enumerate(asked):
                client.send(READ, number, index * BLOCK, BLOCK)
            time.sleep(dice.choice((0, 0, 0.001, 0.02)))
            for _ in asked:
                number, error, data = client.receive()
                assert error == 0
                assert data in (content(asked[number]), bytes(BLOCK)), f"block {asked[number]}"
                self.reads += 1

    def write(self, client: Client, dice: random.Random) -> None:
        while not self.is_over:
            indices = dice.sample(range(BLOCKS), dice.randint(1, 6))
            for index in indices:
                client.call(TRIM, index * BLOCK, BLOCK)
            if dice.random() < 0.7:
                client.call(FLUSH)
            dice.shuffle(indices)
            for index in indices:
                client.call(WRITE, index * BLOCK, data=content(index))
                self.rewritten += 1


def test_late_receivers(daemon_kind: str, tmp_path: Path) -> None:
    need("qemu-img")
    run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "disk", str(BLOCKS * BLOCK))
    arguments = (
        "--blockdev", "file,node-name=file,filename=disk",
        "--blockdev", "qcow2,node-name=disk,file=file,discard=unmap",
        "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
        "--export", "nbd,id=e,node-name=disk,writable=on",
    )  # fmt: skip
    with Daemon(daemon_kind, tmp_path, *arguments) as daemon:
        filler = Client(tmp_path / "nbd.sock", "disk")
        for index in range(BLOCKS):
            filler.call(WRITE, index * BLOCK, data=content(index))
        filler.close()
        players = Players(tmp_path)
        threads = [
            threading.Thread(target=players.run, args=(play, seed))
            for seed, play in enumerate(("read", "read", "read", "write"))
        ]
        for thread in threads:
            thread.start()
        while not players.is_over:
            name = {"device": "disk", "name": "s"}
            daemon.ok("blockdev-snapshot-internal-sync", **name)
            time.sleep(0.1)
            daemon.ok("blockdev-snapshot-delete-internal-sync", **name)
        for thread in threads:
            thread.join()
        assert not players.errors, players.errors
        assert players.reads > 50
        assert players.rewritten > 10
        assert daemon.quit() == 0
    check_image(tmp_path, "disk")
