# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend, BackendListener
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_OFFSET, ST_ZERO
from qsd.block.node import Node
from qsd.block.reopen import reopen
from qsd.catalog import find_driver
from qsd.errors import PermissionConflict, QmpError
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_options import BlockdevOptions
from tests.support import conformance
from tests.support.memory import MemoryDriver, Rig

LENGTH = 1 << 20


def on_memory(
    body: Callable[[Rig, MemoryDriver, Node], Coroutine[Any, Any, None]], **more: Any
) -> None:
    """Run `body` with a raw node over a memory node."""

    async def main() -> None:
        async with _memory_rig() as rig:
            memory = await rig.memory("m", LENGTH)
            memory.data[:] = os.urandom(LENGTH)
            await body(rig, memory, await rig.add(driver="raw", node_name="r", file="m", **more))

    run(main())


def _memory_rig() -> Rig:
    rig = Rig()
    find_memory = rig.graph.find_driver
    rig.graph.find_driver = lambda name: find_memory(name) or find_driver(name)
    return rig


def modify(rig: Rig, **tree: Any) -> Coroutine[Any, Any, None]:
    options: BlockdevOptions = from_json(
        BlockdevOptions, {"driver": "raw", "node-name": "r", "file": "m", **tree}
    )
    return reopen(rig.graph, [options])


# Conformance

WINDOWS: list[dict[str, Any]] = [
    {},
    {"offset": 4096},
    {"size": 300 * 1024},
    {"offset": 1537, "size": 300 * 1024},
    {"offset": LENGTH - 512, "size": 512},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=conformance.programs(512 * 600))
def test_like_a_bytearray(
    window: dict[str, Any], program: list[conformance.Step], tmp_path: Path
) -> None:
    path = tmp_path / "f"
    old = os.urandom(4096) * (LENGTH // 4096)
    path.write_bytes(old)

    async def main() -> None:
        async with Rig() as rig:
            rig.graph.find_driver = find_driver
            node = await rig.add(
                driver="raw",
                node_name="r",
                discard="unmap",
                file={"driver": "file", "filename": str(path)},
                **window,
            )
            length = node.length()
            inside = [
                step._replace(length=min(step.length, length - step.offset))
                for step in program
                if step.offset < length
            ]
            content = await conformance.check_program(rig, node, inside)
            start = window.get("offset", 0)
            found = path.read_bytes()
            assert found[start : start + length] == content
            # Nothing outside of the window was touched.
            assert found[:start] == old[:start]
            assert found[start + length :] == old[start + length :]

    run(main())


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("read_only", [False, True])
def test_contract(window: dict[str, Any], read_only: bool) -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        await conformance.check_contract(rig, node)

    on_memory(body, **window, **{"read-only": read_only})


def test_window_cannot_be_left() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        view = memoryview(bytearray(512))
        for offset in (-512, -1, 3585, 4096):
            assert not node.read_nowait(offset, view)
            assert not node.write_nowait(offset, view)
            with pytest.raises(OSError) as info:
                await node.read(offset, view)
            assert info.value.errno == errno.EIO
            assert node.driver.locate_nowait(offset, 512) is None
        assert node.read_nowait(3584, view)
        assert bytes(view) == memory.data[4096 + 3584 : 8192]
        assert node.write_nowait(3584, memoryview(b"x" * 512))
        assert node.wr_highest_offset == 4096
        assert memory.data[4096 + 3584 : 8192] == b"x" * 512

    on_memory(body, offset=4096, size=4096)


# The checks of the window


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (
            {"offset": 2097152},
            "Offset (2097152) cannot be greater than size of the containing file (1048576)",
        ),
        (
            {"offset": 524288, "size": 1048576},
            "The sum of offset (524288) and size (1048576) has to be smaller or equal to the  "
            "actual size of the containing file (1048576)",
        ),
        ({"offset": -512}, "Parameter 'offset' expects a non-negative number below 2^64"),
        ({"size": -1}, "Parameter 'size' expects a non-negative number below 2^64"),
        ({"size": 100}, "Specified size is not multiple of 512"),
        (
            {"offset": (1 << 63) - 1, "size": 512},
            "Offset (9223372036854775807) cannot be greater than size of the containing file "
            "(1048576)",
        ),
    ],
)
def test_impossible_windows(window: dict[str, Any], text: str) -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        with pytest.raises(QmpError) as info:
            await rig.add(driver="raw", node_name="s", file="m", **window)
        assert info.value.desc == text
        assert "s" not in rig.graph.nodes
        with pytest.raises(QmpError) as info:
            await modify(rig, **window)
        assert info.value.desc == text
        assert node.length() == LENGTH

    on_memory(body)


@pytest.mark.parametrize(
    ("window", "length"),
    [
        ({}, LENGTH),
        ({"offset": LENGTH}, 0),
        ({"offset": LENGTH, "size": 0}, 0),
        ({"offset": 100}, LENGTH),
        ({"offset": 1, "size": 512}, 512),
        ({"offset": LENGTH - 100}, 512),
    ],
)
def test_lengths(window: dict[str, Any], length: int) -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        assert node.length() == length

    on_memory(body, **window)


def test_incomplete_last_sector_reads_as_zeroes() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        view = memoryview(bytearray(b"\xa5" * 512))
        await node.read(0, view)
        assert bytes(view) == bytes(memory.data[-100:]) + bytes(412)

    on_memory(body, offset=LENGTH - 100)


# Size


class Listener(BackendListener):
    def __init__(self) -> None:
        self.resizes = 0

    def resized(self) -> None:
        self.resizes += 1


def test_length_follows_the_child() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        listener = Listener()
        backend = Backend(rig.graph, "user", "a user", listener)
        backend.attach(node, perms.CONSISTENT_READ, perms.ALL)
        assert backend.length() == LENGTH
        await memory.node.truncate(2 * LENGTH)
        assert backend.length() == 2 * LENGTH
        assert listener.resizes == 1
        await backend.detach()

    on_memory(body)


def test_resize() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        await node.truncate(8192)
        assert len(memory.data) == 4096 + 8192
        assert node.length() == 8192
        with pytest.raises(QmpError, match=r"^Disk size too large for the chosen offset$"):
            await node.driver.truncate((1 << 63) - 512, False, "off", 0)

    on_memory(body, offset=4096)


def test_fixed_size() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        for size in (512, 1024, 2048):
            with pytest.raises(QmpError, match=r"^Cannot resize fixed-size raw disks$"):
                await node.truncate(size)

    on_memory(body, size=1024)


def test_window_does_not_share_resizing() -> None:
    def refuses(node: Node) -> bool:
        backend = Backend(node.graph, "user", "a user")
        try:
            backend.attach(node, perms.RESIZE, perms.ALL)
        except PermissionConflict:
            return True
        run_later.append(backend)
        return False

    run_later: list[Backend] = []

    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        windowed = node.length() != LENGTH
        user = Backend(rig.graph, "user", "a user")
        user.attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
        edge = node.children["file"]
        assert edge.perm == perms.CONSISTENT_READ | perms.WRITE
        assert refuses(memory.node) == windowed
        for backend in (*run_later, user):
            await backend.detach()
        run_later.clear()

    on_memory(body)
    on_memory(body, offset=512)
    on_memory(body, size=512)


# Reopening


def test_reopen_moves_the_window() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        backend = conformance.attach(rig, node)
        assert backend.length() == LENGTH - 512
        await modify(rig, offset=1024, size=4096)
        assert backend.length() == 4096
        assert await conformance.read(backend, 0, 512) == memory.data[1024:1536]
        await modify(rig)
        assert backend.length() == LENGTH
        assert await conformance.read(backend, 0, 512) == memory.data[:512]
        await backend.detach()

    on_memory(body, offset=512)


def test_reopen_with_another_child() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        other = await rig.memory("m2", 8192)
        backend = conformance.attach(rig, node)
        await modify(rig, file="m2", offset=4096)
        assert backend.length() == 4096
        await backend.write(0, memoryview(b"x" * 512))
        assert other.data[4096:4608] == b"x" * 512
        with pytest.raises(QmpError):
            await modify(rig, file="m2", offset=9000)
        assert await conformance.read(backend, 0, 512) == b"x" * 512
        await backend.detach()

    on_memory(body)


# Status and fast paths


def test_status_is_the_child_s() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        memory.data[8192:12288] = bytes(4096)
        everything = ST_OFFSET | ST_ALLOCATED
        status = await node.block_status(0, 20000)
        assert status[:3] == (4096 - 512, everything | ST_DATA, 4096 + 512)
        status = await node.block_status(4096 - 512, 20000)
        assert status[:3] == (4096, everything | ST_ZERO, 8192)
        assert status.edge is node.children["file"]

    on_memory(body, offset=4096 + 512)


def test_location_of_data(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * LENGTH)

    async def main() -> None:
        async with Rig() as rig:
            rig.graph.find_driver = find_driver
            file = await rig.add(driver="file", node_name="f", filename=str(path))
            node = await rig.add(driver="raw", node_name="r", file="f", offset=512)
            assert node.length() == LENGTH - 512
            found = node.driver.locate_nowait(100, 1000)
            assert found is not None
            assert os.pread(found[0], 1, found[1]) == b"x"
            assert found == (file.driver.locate_nowait(612, 1000) or ())
            assert node.driver.locate_nowait(LENGTH - 512, 1) is None

    run(main())


def test_reads_go_straight_to_the_driver_that_has_the_data() -> None:
    async def body(rig: Rig, memory: MemoryDriver, node: Node) -> None:
        memory.fast = True
        user = Backend(rig.graph, "u", "user")
        user.attach(node, perms.CONSISTENT_READ, perms.ALL)
        assert user.read_nowait == memory.read_nowait
        memory.limits.request_alignment = 512
        memory.node.refresh_fast_paths()
        assert not user.read_nowait(0, memoryview(bytearray(512)))
        memory.limits.request_alignment = 1
        memory.node.refresh_fast_paths()
        assert user.read_nowait(0, memoryview(bytearray(512)))
        await modify(rig, offset=4096)
        view = memoryview(bytearray(512))
        assert user.read_nowait != memory.read_nowait
        assert user.read_nowait(0, view)
        assert view == memory.data[4096:4608]
        assert not user.read_nowait(LENGTH - 4096, view)
        await user.detach()

    on_memory(body)
