# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""vduse-blk: options are checked first, the kernel is asked late."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports import vduse_blk
from qsd.exports.vduse_device import log_size
from qsd.exports.vduse_kernel import VduseControl
from tests.exports.export_rig import ExportRig
from tests.support.vduse import FEATURES, FakeDevice
from tests.support.vhost_frontend import GET_ID, IN, OUT

NO_DEVICE = "failed to create vduse device"
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, NO_DEVICE),
    ({"queue_size": 4}, NO_DEVICE),
    ({"queue_size": 1024, "num_queues": 16, "serial": "x" * 40}, NO_DEVICE),
    ({"num_queues": 0, "queue_size": 0}, "num-queues must be greater than 0"),
    *[({"queue_size": size}, "queue-size is invalid") for size in (0, 2, 3, 2048)],
    (
        {"logical_block_size": 100},
        "Property e.logical-block-size doesn't take value 100 (minimum: 512, maximum: 2097152)",
    ),
]


@pytest.mark.parametrize(("options", "text"), CASES)
def test_refusals(
    options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vduse_blk, "VduseControl", lambda: VduseControl(str(tmp_path)))

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError) as caught:
                await rig.export("vduse-blk", "m", name="x", **options)
            assert caught.value.desc == text
            assert bool(rig.reports) == (text == NO_DEVICE)

    loop.run(main())


class FakeControl:
    """A kernel with VDUSE that has one device.

    Attributes:
        device: The device, whether it was made already or not.
        made: What it was made with.
        refuse: The kernel's answer to the making, 0 if it makes it.
        is_used: Whether the host uses the device, so that it cannot be destroyed.
    """

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.made = b""
        self.refuse = 0
        self.is_used = False
        self.destroyed: list[bytes] = []
        self.closed = 0

    def set_version(self) -> None:
        pass

    def create(self, description: bytes) -> None:
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        self.made = description

    def destroy(self, name: bytes) -> None:
        assert self.device.fd < 0
        if self.is_used:
            raise OSError(errno.EBUSY, "busy")
        self.destroyed.append(name.rstrip(b"\0"))

    def open(self, name: str) -> FakeDevice:
        return self.device

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeControl]:
    fake = FakeControl()
    monkeypatch.setattr(vduse_blk, "VduseControl", lambda: fake)
    monkeypatch.setattr(vduse_blk, "_LOG_FOLDER", str(tmp_path))
    yield fake
    fake.device.finish()


def test_a_disk_of_the_host(control: FakeControl, tmp_path: Path) -> None:
    def driver() -> None:
        device = control.device
        device.add_queue()
        assert device.start() == 0
        assert device.request(OUT, 5, b"h" * 512)[0] == 0
        assert device.request(IN, 5, read=512) == (0, b"h" * 512)
        assert device.request(GET_ID, read=20)[1] == b"abc".ljust(20, b"\0")

    async def main() -> None:
        async with ExportRig() as rig:
            memory = await rig.memory("m")
            more: dict[str, Any] = {
                "num_queues": 2,
                "queue_size": 128,
                "serial": "abc",
                "writable": True,
            }
            export = await rig.export("vduse-blk", "m", name="disk", **more)
            await asyncio.to_thread(driver)
            export.resized()
            assert (tmp_path / "vduse-blk-disk").exists()
            await rig.registry.delete("e", None)
            assert not len(rig.registry)
            assert memory.data[2560:3072] == b"h" * 512
            assert not rig.reports

    loop.run(main())
    features, queues = struct.unpack_from("=QI", control.made, 264)
    assert (control.made[:5], queues) == (b"disk\0", 2)
    # The C daemon's features for a vhost-user disk, without CONFIG_WCE, with ACCESS_PLATFORM.
    assert features == 0x1_3100_7646 | 1 << 33
    assert control.device.max_sizes == {0: 128, 1: 128}
    assert control.device.configs == [(0, (2048).to_bytes(8, "little"))]
    assert control.destroyed == [b"disk"]
    assert control.closed == 1
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_there_is_taken_over(control: FakeControl, tmp_path: Path) -> None:
    """An earlier daemon's log stays, the queues are not set up anew."""
    log = tmp_path / "vduse-blk-disk"
    control.refuse = errno.EEXIST
    control.is_used = True
    device = control.device
    device.negotiated = FEATURES

    def driver() -> None:
        while not device.kicks:
            device.state(0)
        assert device.request(IN, 5, read=512)[0] == 0

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            device.add_queue()
            await rig.export("vduse-blk", "m", name="disk")
            await asyncio.to_thread(driver)

    loop.run(main())
    assert not device.max_sizes
    assert control.destroyed == []
    assert log.stat().st_size == log_size(1, 256)


@pytest.mark.parametrize("why", ["refused", "name", "log"])
def test_failures_leave_nothing(control: FakeControl, tmp_path: Path, why: str) -> None:
    control.refuse = errno.EINVAL if why == "refused" else errno.EEXIST if why == "log" else 0
    if why == "log":
        (tmp_path / "vduse-blk-x").symlink_to(tmp_path / "elsewhere")

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError) as caught:
                await rig.export("vduse-blk", "m", name="a/b" if why == "name" else "x")
            assert caught.value.desc == NO_DEVICE
            assert len(rig.reports) == 1

    loop.run(main())
    assert control.closed == 1
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["a..b", "n" * 256])
def test_names_that_are_not_even_tried(control: FakeControl, name: str) -> None:
    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError) as caught:
                await rig.export("vduse-blk", "m", name=name)
            assert caught.value.desc == NO_DEVICE
            assert rig.reports == ["Invalid parameter for vduse"]

    loop.run(main())
    assert not control.closed


def test_a_block_size_of_nothing_is_the_default(control: FakeControl) -> None:
    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            await rig.export("vduse-blk", "m", name="x", logical_block_size=0)

    loop.run(main())
    assert struct.unpack_from("=I", control.made, 336 + 20) == (512,)
