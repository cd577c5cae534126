# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A VDUSE device before a fake kernel: status, memory, queues, and what comes after a crash."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from qsd.aio import loop
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.exports.vduse_device import VduseDevice, log_size
from qsd.exports.virtio_blk import VirtioBlk
from tests.support.memory import MemoryDriver, Rig
from tests.support.vduse import BASE, FakeDevice
from tests.support.vhost_frontend import FLUSH, GET_ID, IN, OUT

#: Where a log says that the chain at descriptor 0 is in flight.
_FIRST_MARK = 16
WRITE = perms.CONSISTENT_READ | perms.WRITE


def serve(
    use: Callable[[FakeDevice, VduseDevice], Any],
    *,
    device: FakeDevice | None = None,
    log: bytearray | None = None,
    prepare: Callable[[MemoryDriver], None] = lambda driver: None,
    num_queues: int = 1,
) -> list[str]:
    """Run `use` as the kernel and the driver; return what was reported."""
    reports: list[str] = []

    async def main() -> None:
        async with Rig() as rig:
            prepare(await rig.memory("m"))
            backend = Backend(rig.graph, "b", "block device 'b'")
            backend.attach(rig.graph.lookup(None, "m"), WRITE, perms.ALL)
            disk = VirtioBlk(
                backend,
                rig.tasks,
                writable=True,
                block_size=512,
                num_queues=num_queues,
                serial=b"serial",
            )
            file = device or FakeDevice()
            served = VduseDevice(
                disk, file, memoryview(log) if log is not None else None, reports.append
            )
            task = rig.tasks.spawn(served.run(), "vduse")
            try:
                await asyncio.to_thread(use, file, served)
            finally:
                served.stop()
                await asyncio.wait([task])
                await backend.detach()
                if device is None:
                    file.finish()

    loop.run(main())
    return reports


def slow(driver: MemoryDriver) -> None:
    driver.fast = False


@pytest.mark.parametrize("prepare", [lambda driver: None, slow], ids=["fast", "slow"])
def test_a_driver_comes_and_goes(prepare: Callable[[MemoryDriver], None]) -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        device.add_queue()
        for turn in range(3):
            assert device.set_status(3) == 0  # acknowledged, driver: nothing runs yet
            assert not device.kicks
            assert device.start() == 0
            for sector in range(10):
                data = bytes([turn, sector]) * 256
                assert device.request(OUT, sector, data) == (0, b"")
                assert device.request(IN, sector, read=512) == (0, data)
            assert device.request(FLUSH)[0] == 0
            assert device.request(GET_ID, read=20) == (0, b"serial".ljust(20, b"\0"))
            assert device.state(0) == (0, 22)
            assert device.interrupts[0] >= 22
            assert device.reset() == 0
            assert not device.kicks
            assert device.state(0) == (0, 22)
            device.interrupts.clear()
            device.queues.pop().close()
            device.mem[:8192] = bytes(8192)
            device.add_queue()

    assert not serve(use, prepare=prepare)


def test_several_queues() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        for _ in range(2):  # the third of the device is not used by this driver
            device.add_queue(32)
        assert device.start() == 0
        assert device.request(OUT, 3, b"x" * 512, queue=0)[0] == 0
        assert device.request(IN, 3, read=512, queue=1) == (0, b"x" * 512)
        assert set(device.kicks) == {0, 1}

    assert not serve(use, num_queues=3)


def test_memory_is_looked_up_once_and_again_when_it_changed() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        device.add_queue()
        assert device.start() == 0
        for sector in range(5):
            assert device.request(OUT, sector, b"y" * 512)[0] == 0
        assert device.lookups == 1
        assert device.update(BASE, BASE + device.size - 1) == 0
        assert device.request(IN, 0, read=512) == (0, b"y" * 512)
        assert device.lookups == 2
        assert device.update(0, BASE - 1) == 0  # somewhere else
        assert device.request(IN, 0, read=512) == (0, b"y" * 512)
        assert device.lookups == 2

    assert not serve(use)


def test_what_the_driver_does_wrong_ends_its_queue_only() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        queue = device.add_queue()
        assert device.start() == 0
        queue.put_desc(0, 0x1234, 16)
        queue.offer(0, kick=False)
        os.eventfd_write(device.kicks[0], 1)
        assert device.reset() == 0
        queue.close()
        device.queues.clear()
        device.mem[:8192] = bytes(8192)
        device.add_queue()
        assert device.start() == 0
        assert device.request(IN, 0, read=512)[0] == 0

    (report,) = serve(use)
    assert "no guest memory" in report


def test_memory_that_is_only_to_be_read() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        device.access = 1
        device.add_queue()
        assert device.start() == 1

    assert set(serve(use)) == {"a used ring in memory that is only to be read"}


def test_requests_that_make_no_sense() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        assert device.ask(99)[0] == 1
        assert device.state(7)[0] == 1
        assert device.state(0) == (0, 0)
        assert device.start() == 0

    assert serve(use) == ["unknown request 99", "there is no queue 7"]


def test_rings_outside_of_memory() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        queue = device.add_queue()
        queue.desc = 1 << 40
        assert device.start() == 1

    # Twice, if the driver was there before the daemon was.
    assert set(serve(use)) == {"address 0x10000100000 of a ring is no memory"}


def test_a_request_that_is_cut_off() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        device.sock.send(b"short")

    serve(use)


def test_a_new_length() -> None:
    def use(device: FakeDevice, served: VduseDevice) -> None:
        device.add_queue()
        device.start()
        served.resized()
        assert device.configs == [(0, (2048).to_bytes(8, "little"))]

    assert not serve(use)


def test_a_new_daemon_goes_on_with_what_was_in_flight() -> None:
    """The first one died between taking a write and serving it."""
    device = FakeDevice()
    log = bytearray(log_size(1, 64))

    def first(device: FakeDevice, served: VduseDevice) -> None:
        queue = device.add_queue()
        device.start()
        for _ in range(3):
            assert device.request(IN, 0, read=512)[0] == 0
        before = bytes(log)
        assert device.request(OUT, 7, b"z" * 512)[0] == 0
        log[:] = before
        log[_FIRST_MARK] = 1
        device.mem[queue.used + 2] = queue.used_idx = 3

    def second(device: FakeDevice, served: VduseDevice) -> None:
        (queue,) = device.queues
        assert queue.wait_used() == [(0, 1)]
        assert device.request(IN, 7, read=512) == (0, b"z" * 512)
        assert device.state(0) == (0, 5)

    try:
        assert not serve(first, device=device, log=log)
        assert not serve(second, device=device, log=log)
    finally:
        device.finish()
