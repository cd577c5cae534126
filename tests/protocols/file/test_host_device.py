# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from qsd.aio.loop import run
from qsd.block.mapping import MAY_UNMAP, NO_FALLBACK, ST_ALLOCATED, ST_DATA, ST_OFFSET
from qsd.block.node import Node
from qsd.catalog import find_driver
from qsd.errors import QmpError
from tests.support import conformance
from tests.support.memory import Rig

LENGTH = 1 << 20


def with_node(
    body: Callable[[Rig, Node], Coroutine[Any, Any, None]], filename: str, **more: Any
) -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.graph.find_driver = find_driver
            options = {"driver": "host_device", **more}
            await body(rig, await rig.add(node_name="h", filename=filename, **options))

    before = set(os.listdir("/proc/self/fd"))
    try:
        run(main())
    finally:
        assert set(os.listdir("/proc/self/fd")) == before


async def nothing(rig: Rig, node: Node) -> None:
    pass


def refusal(filename: str, **more: Any) -> str:
    with pytest.raises(QmpError) as info:
        with_node(nothing, filename, **more)
    return info.value.desc


@pytest.mark.parametrize("driver", ["host_device", "host_cdrom"])
def test_wrong_files(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").touch()
    os.mkfifo("fifo")
    for name in ("f", "fifo"):
        text = f"'{driver}' driver requires '{name}' to be either a character or block device"
        assert refusal(name, driver=driver) == text
        assert refusal(name, driver=driver, read_only=True) == text
    assert refusal(".", driver=driver) == "Could not open '.': Is a directory"
    assert refusal("no", driver=driver) == "Could not open 'no': No such file or directory"
    assert refusal("", driver=driver) == f"The '{driver}' block driver requires a file name"
    text = "aio=native was specified, but it requires cache.direct=on, which was not specified."
    assert refusal("/dev/null", driver=driver, aio="native") == text


def test_character_device() -> None:
    async def body(rig: Rig, node: Node) -> None:
        assert node.length() == 0
        assert node.driver.filename() == "/dev/null"
        assert node.driver.image_info() == {"actual-size": 0, "dirty-flag": False}
        stats = node.driver.driver_stats()
        assert stats is not None
        assert stats["driver"] == "host_device"
        await node.truncate(0)
        with pytest.raises(QmpError, match=r"^Cannot grow device files$"):
            await node.truncate(512)
        text = r"^Preallocation mode 'full' unsupported for this non-regular file$"
        with pytest.raises(QmpError, match=text):
            await node.truncate(512, prealloc="full")

    with_node(body, "/dev/null")


def test_cdrom_tells_less() -> None:
    async def body(rig: Rig, node: Node) -> None:
        assert node.driver.image_info() == {"actual-size": 0}
        assert node.driver.driver_stats() is None
        with pytest.raises(OSError) as info:
            await node.driver.read(0, memoryview(bytearray(512)))
        assert info.value.errno == errno.ENOMEDIUM
        assert node.driver.locate_nowait(0, 0) is None
        assert not node.read_nowait(0, memoryview(bytearray(0)))
        with pytest.raises(QmpError, match=r"^No medium inserted$"):
            await node.truncate(0)

    with_node(body, "/dev/null", driver="host_cdrom")


# Block devices


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Callable[..., str]]:
    made: list[str] = []
    path = tmp_path / "loop.img"
    path.write_bytes(os.urandom(4096) + b"x" * (LENGTH - 4096))

    def make(*options: str) -> str:
        try:
            done = subprocess.run(
                ["losetup", "-f", "--show", *options, str(path)], capture_output=True, text=True
            )
        except OSError:
            pytest.skip("losetup is not there")
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield make
    for device in made:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.root
@pytest.mark.parametrize("direct", [False, True])
def test_block_device_like_a_bytearray(direct: bool, loop_device: Callable[..., str]) -> None:
    device = loop_device()

    @settings(
        max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(program=conformance.programs(LENGTH))
    def check(program: list[conformance.Step]) -> None:
        async def body(rig: Rig, node: Node) -> None:
            await conformance.check_program(rig, node, program)

        with_node(body, device, cache={"direct": direct}, discard="unmap")

    check()


@pytest.mark.root
def test_block_device(loop_device: Callable[..., str]) -> None:
    device = loop_device()

    async def body(rig: Rig, node: Node) -> None:
        await conformance.check_contract(rig, node)
        assert node.length() == LENGTH
        status = await node.block_status(0, LENGTH)
        assert status[:3] == (LENGTH, ST_DATA | ST_OFFSET | ST_ALLOCATED, 0)
        backend = conformance.attach(rig, node)
        with pytest.raises(OSError) as info:
            await backend.zero(0, 4096, NO_FALLBACK)
        assert info.value.errno == errno.ENOTSUP
        await backend.zero(0, 4096, NO_FALLBACK | MAY_UNMAP)
        assert await conformance.read(backend, 0, 4096) == bytes(4096)
        await backend.discard(0, 65536)
        stats = node.driver.driver_stats()
        assert stats is not None
        assert stats["discard-bytes-ok"] == 65536
        await backend.detach()
        await node.truncate(512)  # accepted, but a device stays as large as it is
        assert node.length() == LENGTH
        with pytest.raises(QmpError, match=r"^Cannot resize device files$"):
            await node.truncate(512, exact=True)

    with_node(body, device, discard="unmap")


@pytest.mark.root
def test_block_device_direct(loop_device: Callable[..., str]) -> None:
    async def body(rig: Rig, node: Node) -> None:
        assert node.driver.limits.request_alignment == 512
        backend = conformance.attach(rig, node)
        await backend.zero(0, 4096, NO_FALLBACK)
        assert await conformance.read(backend, 0, 5000) == bytes(4096) + b"x" * 904
        await backend.detach()

    with_node(body, loop_device(), cache={"direct": True})


@pytest.mark.root
def test_write_protected_block_device(loop_device: Callable[..., str]) -> None:
    device = loop_device("-r")
    assert refusal(device) == "The device is not writable: Permission denied"
    with_node(nothing, device, read_only=True)
    with_node(nothing, device, auto_read_only=True)
