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
            assert node.receive_nowait(5000, payload)
            assert await rig.content(node, 5000, 100_000) == payload.data
            assert rig.path.read_bytes()[start + 5000 :][:100_000] == payload.data
            assert node.wr_highest_offset == 105_000
            assert file.wr_highest_offset == start + 105_000
            assert node.receive_nowait(length - 100_000, payload)
            assert not node.receive_nowait(length - 99_999, payload)
            with pytest.raises(OSError, match="full"):
                node.receive_nowait(0, Full(20))
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
            assert node.receive_nowait(0, Bytes(100))
            await node.flush()
            assert len(synced) == before + 1

    run(main())


def set_threshold(node: Node) -> None:
    node.write_threshold = MIB


def detect_zeroes(node: Node) -> None:
    node.detect_zeroes = "on"


def forbid(node: Node) -> None:
    node.read_only = True


@pytest.mark.parametrize("change", [set_threshold, detect_zeroes, forbid])
@pytest.mark.parametrize("below", [False, True])
def test_who_wants_to_see_each_write_does(change: Any, below: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            file = await rig.file()
            node = await rig.add(driver="raw", node_name="n", file="f")
            assert node.length() == MIB
            assert node.receive_nowait(0, Bytes(100))
            change(file if below else node)
            (file if below else node).refresh_fast_paths()
            assert not node.receive_nowait(0, Bytes(100, 2))
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
            assert not node.receive_nowait(0, Bytes(100))
            driver.io.watch._paused_until = 0.0
            assert node.receive_nowait(0, Bytes(100))

    run(main())


def test_a_file_grows(tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.file()
            assert node.receive_nowait(MIB - 100, Bytes(612))
            assert node.length() == MIB + 512
            assert rig.path.read_bytes()[MIB - 100 :] == Bytes(612).data
            with pytest.raises(OSError, match="full"):
                node.receive_nowait(2 * MIB, Full(20))
            assert node.length() == MIB + 512

    run(main())


@pytest.mark.parametrize("below", [False, True])
def test_bitmaps_record_what_nobody_sees(below: bool, tmp_path: Path) -> None:
    """Once for all of it; also if only a part of it is written, but not if it is refused."""

    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            file = await rig.file()
            node = await rig.add(driver="raw", node_name="n", file="f")
            watched = file if below else node
            bitmaps = [DirtyBitmap(watched, name, 4096) for name in ("a", "b", "c")]
            for bitmap in bitmaps:
                bitmap.attach()
            bitmaps[2].enabled = False
            assert node.length() == MIB
            assert node.receive_nowait(10_000, Bytes(100_000))
            assert rig.path.read_bytes()[10_000:110_000] == Bytes(100_000).data
            with pytest.raises(OSError, match="full"):
                node.receive_nowait(200_000, Full(20_000))
            assert not node.receive_nowait(MIB - 10, Bytes(100))
            for bitmap in bitmaps[:2]:
                assert list(bitmap.bits.areas()) == [(8192, 102_400), (196_608, 24_576)]
            assert not bitmaps[2].bits.count()
            node.detect_zeroes = "on"
            node.refresh_fast_paths()
            assert not node.receive_nowait(500_000, Bytes(100))
            for bitmap in bitmaps:
                bitmap.detach()
            node.detect_zeroes = "off"
            node.refresh_fast_paths()
            assert node.receive_nowait(600_000, Bytes(100))
            assert len(list(bitmaps[0].bits.areas())) == 2

    run(main())


def test_drivers_that_do_not_know_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            await rig.memory("m")
            node = await rig.add(driver="copy-on-read", node_name="c", file="m")
            assert not rig.graph.nodes["m"].receive_nowait(0, Bytes(100))
            assert not node.receive_nowait(0, Bytes(100))

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
    """What is in place is overwritten, new clusters are filled; the rest is for the plain way."""
    need("qemu-img")
    image = str(tmp_path / "q")

    file = {"driver": "file", "filename": image}
    payload = Bytes(3 * CLUSTER)

    async def main() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.add(driver="qcow2", node_name="q", file=file)
            assert not node.receive_nowait(CLUSTER, payload)  # there is no table yet
            old = memoryview(bytearray(b"o" * 5 * CLUSTER))
            await node.write(0, old)
            assert node.receive_nowait(7 * CLUSTER + 500, payload)
            around = await rig.content(node, 7 * CLUSTER, 4 * CLUSTER)
            assert around == bytes(500) + payload.data + bytes(CLUSTER - 500)
            assert node.wr_highest_offset == 10 * CLUSTER + 500
            node.wr_highest_offset = 0
            assert node.receive_nowait(1000, payload)
            assert node.wr_highest_offset == 1000 + payload.length
            old[1000 : 1000 + payload.length] = payload.data
            assert await rig.content(node, 0, len(old)) == old
            assert not node.receive_nowait(3 * CLUSTER, payload)  # not all of it is there
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            hold = driver.ranges.claim_nowait(0, CLUSTER, True)
            assert hold is not None
            assert not node.receive_nowait(CLUSTER, payload)
            driver.ranges.release(hold)
            assert node.receive_nowait(CLUSTER, payload)

    async def shared() -> None:
        async with PipedRig(tmp_path) as rig:
            node = await rig.add(driver="qcow2", node_name="q", file=file)
            await rig.content(node, 0, CLUSTER)  # the table is in memory
            assert not node.receive_nowait(0, payload)

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
            assert not node.receive_nowait(0, Bytes(CLUSTER))

    run(main())
