# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import NO_FALLBACK, ST_DATA, ST_ZERO
from qsd.block.node import Node
from qsd.block.reopen import reopen
from qsd.catalog import find_driver
from qsd.errors import QmpError
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_options import BlockdevOptions
from tests.support import conformance
from tests.support.memory import Rig


def new_rig() -> Rig:
    rig = Rig()
    rig.graph.find_driver = find_driver
    return rig


def node_of(rig: Rig, **more: Any) -> Any:
    return rig.add(**{"driver": "null-co", "node_name": "n", **more})


@pytest.mark.parametrize("driver", ["null-co", "null-aio"])
@pytest.mark.parametrize("more", [{}, {"latency-ns": 1000}, {"read-zeroes": True}], ids=str)
def test_contract(driver: str, more: dict[str, Any]) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            node: Node = await node_of(rig, driver=driver, size=1 << 20, **more)
            await conformance.check_contract(rig, node, conformance.Traits(keeps=False))

    run(main())


def test_sizes_and_names() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            node: Node = await node_of(rig)
            assert node.length() == 1 << 30
            assert node.driver.filename() == "null-co://"
            assert node.driver.image_info() == {"actual-size": 0}
            for name, size, length in (("a", 0, 0), ("b", 1, 512), ("c", 1 << 62, 1 << 62)):
                other: Node = await node_of(rig, driver="null-aio", node_name=name, size=size)
                assert other.length() == length
                assert other.driver.filename() == "null-aio://"

    run(main())


def test_refusals() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            for options, text in (
                ({"latency-ns": -1}, "latency-ns is invalid"),
                ({"latency-ns": 1 << 63}, "latency-ns is invalid"),
                (
                    {"size": (1 << 63) - 1},
                    "Could not refresh total sector count: File too large",
                ),
                (
                    {"size": -1},
                    "Parameter 'size' expects a non-negative number below 2^64",
                ),
            ):
                with pytest.raises(QmpError) as info:
                    await node_of(rig, **options)
                assert info.value.desc == text

    run(main())


def test_reads_never_show_old_memory() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            node: Node = await node_of(rig, size=4096)
            backend = conformance.attach(rig, node)
            assert await conformance.read(backend, 0, 4096) == bytes(4096)
            await backend.detach()

    run(main())


def test_status() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            node: Node = await node_of(rig, size=4096)
            zeroes: Node = await node_of(rig, node_name="z", size=4096, read_zeroes=True)
            assert not (await node.block_status(0, 4096)).flags & (ST_DATA | ST_ZERO)
            assert (await zeroes.block_status(0, 4096)).flags & ST_ZERO

    run(main())


def test_latency() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            node: Node = await node_of(rig, size=4096, latency_ns=10_000_000)
            backend = conformance.attach(rig, node)
            assert not node.read_nowait(0, memoryview(bytearray(1)))
            assert not node.write_nowait(0, memoryview(bytearray(1)))
            requests: list[Callable[[], Coroutine[Any, Any, None]]] = [
                lambda: backend.read(0, memoryview(bytearray(1))),
                lambda: backend.write(0, memoryview(bytearray(1))),
                backend.flush,
                lambda: backend.zero(0, 4096),
                backend.flush,
            ]
            for request in requests:
                before = monotonic()
                await request()
                assert monotonic() - before > 0.009
            await backend.detach()

    run(main())


def test_closing_does_not_wait() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            await node_of(rig, latency_ns=(1 << 63) - 1)

    run(main())


def test_zeroing_is_never_fast() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            backend = conformance.attach(rig, await node_of(rig, read_zeroes=True))
            await backend.zero(0, 1 << 30)
            with pytest.raises(OSError) as info:
                await backend.zero(0, 512, NO_FALLBACK)
            assert info.value.errno == errno.ENOTSUP
            await backend.detach()

    run(main())


def test_reopen() -> None:
    async def main() -> None:
        async with new_rig() as rig:
            node: Node = await node_of(rig, size=4096)

            async def modify(**tree: Any) -> None:
                options: BlockdevOptions = from_json(
                    BlockdevOptions, {"driver": "null-co", "node-name": "n", **tree}
                )
                await reopen(rig.graph, [options])

            await modify(size=4096, **{"read-only": True})
            assert node.read_only
            with pytest.raises(QmpError, match=r"^Cannot change the option 'size'$"):
                await modify(size=8192)
            text = r"^Option 'size' cannot be reset to its default value$"
            with pytest.raises(QmpError, match=text):
                await modify()

    run(main())
