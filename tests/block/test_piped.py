# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Who takes data that it does not see, and who does not."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.dirty import DirtyBitmap
from qsd.block.drain import Drained
from qsd.block.node import Node
from qsd.block.piped import receive_nowait
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.formats.secrets import SecretRig
from tests.support.memory import Rig
from tests.support.tools import need

MIB = 1 << 20
CLUSTER = 64 << 10


class Bytes:
    """A payload that is in memory after all."""

    def __init__(self, length: int, seed: int = 1) -> None:
        self.length = length
        self.data = random.Random(seed).randbytes(length)

    def write_to(self, fd: int, offset: int) -> None:
        assert os.pwrite(fd, self.data, offset) == self.length


class Full(Bytes):
    def write_to(self, fd: int, offset: int) -> None:
        os.pwrite(fd, self.data[:10], offset)
        raise OSError(28, "full")


class PipedRig(Rig):
    """A file of 1 MiB and what is above it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(file=FileDriver, raw=RawDriver, qcow2=Qcow2Driver)
        self.path = folder / "image"
        self.path.write_bytes(bytes(MIB))

    async def file(self, **more: Any) -> Node:
        more.setdefault("filename", str(self.path))
        return await self.add(driver="file", node_name="f", **more)

    async def content(self, node: Node, offset: int, length: int) -> bytes:
        view = memoryview(bytearray(length))
        await node.read(offset, view)
        return bytes(view)


@pytest.mark.parametrize("window", [{}, {"offset": 8192, "size": 512 << 10}])
def test_raw(window: dict[str, int], tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            file = await rig.file()
            node = await rig.add(driver="raw", node_name="n", file="f", **window)
            start, length = window.get("offset", 0), node.length()
            payload = Bytes(100_000)
            assert receive_nowait(node, 5000, payload)
            assert await rig.content(node, 5000, 100_000) == payload.data
            assert rig.path.read_bytes()[start + 5000 :][:100_000] == payload.data
            assert node.wr_highest_offset == 105_000
            assert file.wr_highest_offset == start + 105_000
            assert receive_nowait(node, length - 100_000, payload)
            assert not receive_nowait(node, length - 99_999, payload)
            with pytest.raises(OSError, match="full"):
                receive_nowait(node, 0, Full(20))
            assert node.wr_highest_offset == length

    run(main())


def test_a_flush_makes_it_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.file()
            synced: list[int] = []
            monkeypatch.setattr(os, "fdatasync", synced.append)
            await node.flush()
            before = len(synced)
            await node.flush()
            assert len(synced) == before  # there was nothing to do
            assert receive_nowait(node, 0, Bytes(100))
            await node.flush()
            assert len(synced) == before + 1

    run(main())


def watch(node: Node) -> None:
    DirtyBitmap(node, "b", 4096).attach()


def set_threshold(node: Node) -> None:
    node.write_threshold = MIB


def detect_zeroes(node: Node) -> None:
    node.detect_zeroes = "on"


def forbid(node: Node) -> None:
    node.read_only = True


@pytest.mark.parametrize("change", [watch, set_threshold, detect_zeroes, forbid])
@pytest.mark.parametrize("below", [False, True])
def test_who_wants_to_see_each_write_does(change: Any, below: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            file = await rig.file()
            node = await rig.add(driver="raw", node_name="n", file="f")
            assert node.length() == MIB
            assert receive_nowait(node, 0, Bytes(100))
            change(file if below else node)
            (file if below else node).refresh_fast_paths()
            assert not receive_nowait(node, 0, Bytes(100, 2))
            assert rig.path.read_bytes()[:100] == Bytes(100).data

    run(main())


def test_who_makes_the_kernel_wait_is_not_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.file()
            driver = node.driver
            assert isinstance(driver, FileDriver)
            driver.io.watch.was_slow(0.0, 1e12)
            driver.io.watch._paused_until = 1e12
            assert not receive_nowait(node, 0, Bytes(100))
            driver.io.watch._paused_until = 0.0
            assert receive_nowait(node, 0, Bytes(100))
            assert not receive_nowait(node, MIB - 99, Bytes(100))  # the file would grow

    run(main())


def test_drivers_that_do_not_know_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            await rig.memory("m")
            node = await rig.add(driver="copy-on-read", node_name="c", file="m")
            assert not receive_nowait(rig.graph.nodes["m"], 0, Bytes(100))
            assert not receive_nowait(node, 0, Bytes(100))

    run(main())


def test_backends(tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.file()
            user = Backend(rig.graph, "u", "user")
            assert not user.receive_nowait(0, Bytes(100))
            user.attach(node, perms.WRITE, perms.ALL)
            assert user.receive_nowait(0, Bytes(100))
            async with Drained([node]):
                assert not user.receive_nowait(0, Bytes(100))
            user.force_writethrough = True
            assert not user.receive_nowait(0, Bytes(100))
            await user.detach()

    run(main())


def test_qcow2(tmp_path: Path) -> None:
    """What is in place is overwritten; all else is left to the plain way."""
    need("qemu-img")
    image = str(tmp_path / "q")

    file = {"driver": "file", "filename": image}
    payload = Bytes(3 * CLUSTER)

    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.add(driver="qcow2", node_name="q", file=file)
            assert not receive_nowait(node, CLUSTER, payload)  # there is nothing yet
            old = memoryview(bytearray(b"o" * 5 * CLUSTER))
            await node.write(0, old)
            node.wr_highest_offset = 0
            assert receive_nowait(node, 1000, payload)
            assert node.wr_highest_offset == 1000 + payload.length
            old[1000 : 1000 + payload.length] = payload.data
            assert await rig.content(node, 0, len(old)) == old
            assert not receive_nowait(node, 3 * CLUSTER, payload)  # it goes beyond what is there
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            hold = driver.ranges.claim_nowait(0, CLUSTER, True)
            assert hold is not None
            assert not receive_nowait(node, CLUSTER, payload)
            driver.ranges.release(hold)
            assert receive_nowait(node, CLUSTER, payload)

    async def shared() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.add(driver="qcow2", node_name="q", file=file)
            await rig.content(node, 0, CLUSTER)  # the table is in memory
            assert not receive_nowait(node, 0, payload)

    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(MIB)], check=True)
    run(main())
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "s", image], check=True)
    run(shared())


def test_nobody_writes_what_is_to_be_encrypted(tmp_path: Path) -> None:
    file = {"driver": "file", "filename": str(tmp_path / "q")}
    (tmp_path / "q").touch()

    async def main() -> None:
        async with SecretRig() as rig:
            encrypt = {"format": "luks", "key-secret": "s", "iter-time": 0}
            await rig.create("qcow2", file=file, size=MIB, encrypt=encrypt)
            opening = {"format": "luks", "key-secret": "s"}
            node = await rig.add(driver="qcow2", node_name="q", encrypt=opening, file=file)
            await node.write(0, memoryview(bytes(2 * CLUSTER)))
            assert not receive_nowait(node, 0, Bytes(CLUSTER))

    run(main())
