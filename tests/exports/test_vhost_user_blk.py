# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vhost-user-blk export: options, and front ends that come and go."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports.base import Export
from tests.exports.export_rig import ExportRig
from tests.support.vhost_frontend import IN, OUT, Frontend, Gone


class VhostRig(ExportRig):
    async def serve(self, node: str = "m", **more: Any) -> Export:
        address = {"type": "unix", "path": self.path("s")}
        return await self.export("vhost-user-blk", node, **{"addr": address, **more})

    def connect(self) -> Frontend:
        return Frontend(self.path("s"))


REFUSED = [
    ({"num_queues": 0}, "num-queues must be greater than 0"),
    (
        {"logical_block_size": 256},
        "Property e.logical-block-size doesn't take value 256 (minimum: 512, maximum: 2097152)",
    ),
    (
        {"logical_block_size": 4 << 20},
        "Property e.logical-block-size doesn't take value 4194304 (minimum: 512, maximum: 2097152)",
    ),
    (
        {"logical_block_size": (1 << 64) - 1},
        "Property e.logical-block-size doesn't take value -1 (minimum: 512, maximum: 2097152)",
    ),
    (
        {"logical_block_size": 3000},
        "Property e.logical-block-size doesn't take value '3000', it's not a power of 2",
    ),
    (
        {"addr": {"type": "inet", "host": "::1", "port": "1"}},
        "Only socket address types 'unix' and 'fd' are supported",
    ),
    (
        {"addr": {"type": "unix", "path": "/nonexistent/s"}},
        "Failed to bind socket to /nonexistent/s: No such file or directory",
    ),
    (
        {"addr": {"type": "fd", "str": "77"}, "by_monitor": True},
        "only QEMU supports file descriptor passing",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_options_that_are_refused(options: dict[str, Any], text: str) -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError) as caught:
                await rig.serve(**options)
            assert caught.value.desc == text
            assert not len(rig.registry)

    loop.run(main())


def test_options_that_mean_nothing() -> None:
    """A block size of 0 is the default, an empty name no iothread."""

    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            await rig.serve(logical_block_size=0, iothread="")

            def block_size() -> bytes:
                with rig.connect() as frontend:
                    return frontend.set_up().config(20, 4)

            assert await asyncio.to_thread(block_size) == (512).to_bytes(4, "little")

    loop.run(main())


def test_front_ends_follow_each_other() -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            driver = await rig.memory("m")
            await rig.serve(writable=True)

            def first() -> None:
                with rig.connect() as frontend:
                    assert frontend.set_up().request(OUT, 8, b"x" * 512) == (0, b"")

            def second() -> bytes:
                with rig.connect() as frontend:
                    return frontend.set_up().request(IN, 8, read=512)[1]

            await asyncio.to_thread(first)
            assert driver.data[4096:4608] == b"x" * 512
            assert await asyncio.to_thread(second) == b"x" * 512
        assert not rig.reports

    loop.run(main())


def test_a_second_front_end_waits_for_the_first() -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            await rig.serve()

            def both() -> None:
                with rig.connect() as second, rig.connect() as third:
                    second.set_up()
                    assert second.request(IN, 0, read=512)[0] == 0
                    third.sock.settimeout(0.05)
                    with pytest.raises(TimeoutError):
                        third.negotiate()
                    third.sock.settimeout(10)
                    second.sock.shutdown(socket.SHUT_RDWR)
                    assert third.receive()[0] == 1

            await asyncio.to_thread(both)

    loop.run(main())


def test_deleting_disconnects_even_without_force() -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            await rig.serve()
            frontend = rig.connect()
            try:
                await asyncio.to_thread(frontend.set_up)
                await rig.registry.delete("e", None)
                assert not len(rig.registry)
                assert [event.id for event in rig.events.events] == ["e"]
                with pytest.raises(Gone):
                    await asyncio.to_thread(frontend.receive)
                assert not os.path.exists(rig.path("s"))
            finally:
                frontend.close()

    loop.run(main())


def test_deleting_waits_for_requests() -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            driver = await rig.memory("m")
            await rig.serve()
            driver.gate = asyncio.Event()
            frontend = rig.connect()
            try:
                await asyncio.to_thread(frontend.set_up)
                queue = frontend.queues[0]
                base = 0x4000_0000 + frontend.data
                struct.pack_into("<IIQ", frontend.mem, frontend.data, IN, 0, 0)
                frontend.chain(queue, [(base, 16, 0), (base + 512, 512, 2), (base + 64, 1, 2)])
                while not driver.log:
                    await asyncio.sleep(0.001)
                await rig.registry.delete("e", "hard")
                assert [info.shutting_down for info in rig.registry.query()] == [True]
                driver.gate.set()
                await rig.registry.close_type("vhost-user-blk")
                assert queue.take_used() == [(0, 513)]
            finally:
                frontend.close()

    loop.run(main())


def test_a_new_length_is_announced() -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            export = await rig.serve(writable=True)
            frontend = rig.connect()
            try:
                await asyncio.to_thread(frontend.set_up)
                await asyncio.to_thread(frontend.open_backend_channel)
                assert (await asyncio.to_thread(frontend.config))[:8] == struct.pack("<Q", 2048)
                await export.backend.node.truncate(2 << 20, exact=True)
                channel = frontend.backend_req
                assert channel is not None
                assert await asyncio.to_thread(channel.recv, 100) == struct.pack("<III", 2, 1, 0)
                assert (await asyncio.to_thread(frontend.config))[:8] == struct.pack("<Q", 4096)
            finally:
                frontend.close()

    loop.run(main())


def test_several_exports_at_once() -> None:
    """Two nodes, and one of them a second time, to be read only; all with a front end."""

    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            await rig.memory("n")
            for name, node, writable in (("a", "m", True), ("b", "n", True), ("c", "m", False)):
                address = {"type": "unix", "path": rig.path(name)}
                await rig.export(
                    "vhost-user-blk", node, id=name, addr=address, writable=writable, num_queues=2
                )

            def use() -> None:
                with (
                    Frontend(rig.path("a")) as first,
                    Frontend(rig.path("b")) as second,
                    Frontend(rig.path("c")) as third,
                ):
                    for frontend in (first, second, third):
                        frontend.set_up(2)
                    for index in range(20):
                        at = index % 2
                        data = bytes([index]) * 512
                        assert first.request(OUT, index, data, queue=at) == (0, b"")
                        assert second.request(OUT, index, b"n" * 512, queue=1 - at) == (0, b"")
                        assert third.request(IN, index, read=512, queue=at) == (0, data)
                        assert third.request(OUT, index, data, queue=at)[0] == 1
                    assert second.request(IN, 5, read=512) == (0, b"n" * 512)

            await asyncio.to_thread(use)
            assert not rig.reports

    loop.run(main())


def test_listening_on_a_given_descriptor() -> None:
    async def main() -> None:
        async with VhostRig() as rig:
            await rig.memory("m")
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(rig.path("s"))
            address = {"type": "fd", "str": str(sock.detach())}
            await rig.serve(addr=address)

            def use() -> int:
                with rig.connect() as frontend:
                    return frontend.set_up().request(IN, 0, read=512)[0]

            assert await asyncio.to_thread(use) == 0

    loop.run(main())
