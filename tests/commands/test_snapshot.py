# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for snapshots inside images and for backing files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from tests.commands.images import ImageDaemon


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tell(story: Callable[[ImageDaemon], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ImageDaemon(Path.cwd()) as daemon:
            await story(daemon)

    run(main())


def test_snapshots_come_and_go() -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.image("a")
        await daemon.qmp("blockdev-snapshot-internal-sync", device="a", name="s0")
        await daemon.qmp("blockdev-snapshot-internal-sync", device="a", name="s1")
        error = await daemon.error("blockdev-snapshot-internal-sync", device="a", name="s1")
        assert error == "Snapshot with name 's1' already exists on device 'a'"
        delete = "blockdev-snapshot-delete-internal-sync"
        assert await daemon.error(delete, device="a") == "Name or id must be provided"
        assert await daemon.error(delete, device="a", id="1", name="s1") == (
            "Snapshot with id '1' and name 's1' does not exist on device 'a'"
        )
        assert await daemon.error(delete, device="a", name="nope") == (
            "Snapshot with id 'null' and name 'nope' does not exist on device 'a'"
        )
        gone = await daemon.qmp(delete, device="a", id="1")
        assert (gone["id"], gone["name"], gone["vm-state-size"]) == ("1", "s0", 0)
        left = daemon.rig.graph.nodes["a"].driver.snapshots()
        assert [snapshot["name"] for snapshot in left or []] == ["s1"]

    tell(story)


def test_nodes_without_snapshots() -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.rig.memory("n")
        take, delete = "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"
        assert await daemon.error(take, device="n", name="x") == (
            "Block format 'null-co' used by device 'n' does not support internal snapshots"
        )
        assert await daemon.error(delete, device="n", name="x") == (
            "Failed to get a snapshot list: Operation not supported"
        )
        await daemon.make("a")
        await daemon.add("a", read_only=True)
        assert await daemon.error(take, device="a", name="") == "Device 'a' is read only"
        await daemon.image("b")
        assert await daemon.error(take, device="b", name="") == "Name is empty"
        await daemon.qmp("blockdev-add", driver="raw", node_name="top", file="b")
        assert await daemon.error(take, device="b", name="x") == "Need a root block node"
        await daemon.qmp(take, device="top", name="x")  # raw passes it on
        assert len(daemon.rig.graph.nodes["b"].driver.snapshots() or []) == 1
        await daemon.qmp("blockdev-del", node_name="top")

    tell(story)


def test_a_guest_goes_on_meanwhile() -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.image("a")
        guest = Backend(daemon.rig.graph, "g", "guest")
        guest.attach(daemon.rig.graph.nodes["a"], perms.WRITE | perms.CONSISTENT_READ, perms.ALL)
        for number in range(5):
            await guest.write(number * 4096, memoryview(bytes([number + 1]) * 8192))
            await daemon.qmp("blockdev-snapshot-internal-sync", device="a", name=f"s{number}")
        view = memoryview(bytearray(6 * 4096))
        await guest.read(0, view)
        assert [view[start] for start in range(0, 6 * 4096, 4096)] == [1, 2, 3, 4, 5, 5]
        await guest.detach()

    tell(story)


def test_snapshots_of_parts_are_refused() -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.image("a")
        await daemon.rig.memory("n", 1 << 20)
        take = "blockdev-snapshot-internal-sync"
        log: dict[str, Any] = {"driver": "blklogwrites", "file": "a", "log": "n"}
        window: dict[str, Any] = {"driver": "raw", "file": "a", "offset": 512}
        await daemon.qmp("blockdev-add", node_name="top", **log)
        assert await daemon.error(take, device="top", name="x") == (
            "Block format 'blklogwrites' used by device 'top' does not support internal snapshots"
        )
        await daemon.qmp("blockdev-del", node_name="top")
        await daemon.qmp("blockdev-add", node_name="top", **window)
        await daemon.qmp(take, device="top", name="x")
        await daemon.qmp("blockdev-del", node_name="top")

    tell(story)


def test_another_backing_file() -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.image("b")
        await daemon.image("a", backing="b")
        command = "change-backing-file"
        await daemon.qmp(command, device="a", image_node_name="a", backing_file="new.qcow2")
        assert daemon.rig.graph.nodes["a"].driver.backing_file() == ("new.qcow2", "qcow2")
        assert (
            await daemon.error(command, device="a", image_node_name="b", backing_file="x")
            == "not allowing backing file change on an image without a backing file"
        )
        await daemon.image("c", backing="a")
        assert (
            await daemon.error(command, device="b", image_node_name="c", backing_file="x")
            == "Need a root block node"
        )
        await daemon.image("d")
        assert (
            await daemon.error(command, device="d", image_node_name="c", backing_file="x")
            == "'d' and image file are not in the same chain"
        )
        # A filter has a place in the chain, but nothing to be changed.
        await daemon.qmp("blockdev-add", driver="copy-on-read", node_name="f", file="d")
        assert (
            await daemon.error(command, device="f", image_node_name="f", backing_file="x")
            == "Could not change backing file to 'x': Operation not supported"
        )
        await daemon.qmp("blockdev-del", node_name="f")
        # A read-only image in the middle of a chain is made writable for that.
        await daemon.qmp("blockdev-del", node_name="c")
        await daemon.qmp("blockdev-del", node_name="a")
        await daemon.add("a", read_only=True, backing="b")
        await daemon.add("c", backing="a")
        await daemon.qmp(command, device="c", image_node_name="a", backing_file="other")
        node = daemon.rig.graph.nodes["a"]
        assert (node.driver.backing_file(), node.read_only) == (("other", "qcow2"), True)
        await daemon.qmp("blockdev-del", node_name="c")
        await daemon.qmp("blockdev-del", node_name="a")

    tell(story)
