# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Overlays put over nodes, alone and in transactions that may fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from tests.commands.images import ImageDaemon

ABORT = {"type": "abort", "data": {}}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tell(story: Callable[[ImageDaemon, Backend], Awaitable[None]]) -> None:
    """Tell a story with an image "a" and a guest that uses it."""

    async def main() -> None:
        async with ImageDaemon(Path.cwd()) as daemon:
            await daemon.image("a")
            guest = Backend(daemon.rig.graph, "g", "guest")
            guest.attach(
                daemon.rig.graph.nodes["a"], perms.WRITE | perms.CONSISTENT_READ, perms.ALL
            )
            await guest.write(0, memoryview(b"\1" * 4096))
            await story(daemon, guest)
            await guest.detach()

    run(main())


def action(kind: str, /, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {key.replace("_", "-"): value for key, value in data.items()}}


def sync(node: str, name: str, file: str | None = None) -> dict[str, Any]:
    return action(
        "blockdev-snapshot-sync",
        node_name=node,
        snapshot_file=file or f"{name}.qcow2",
        snapshot_node_name=name,
    )


def test_a_new_image_takes_the_place() -> None:
    async def story(daemon: ImageDaemon, guest: Backend) -> None:
        arguments = sync("a", "s")["data"]
        await daemon.qmp("blockdev-snapshot-sync", **arguments)
        old, new = (daemon.rig.graph.nodes[name] for name in "as")
        assert guest.node is new
        assert (old.read_only, new.read_only) == (True, False)
        assert new.driver.backing_file() == ("a.qcow2", "qcow2")
        await guest.write(4096, memoryview(b"\2" * 4096))
        view = memoryview(bytearray(8192))
        await guest.read(0, view)
        assert view == b"\1" * 4096 + b"\2" * 4096
        await old.read(0, view)
        assert view == b"\1" * 4096 + bytes(4096)
        assert await daemon.error("blockdev-snapshot-sync", **sync("a", "t")["data"]) == (
            "Node 'a' is busy: node is used as backing hd of 's'"
        )

    tell(story)


def test_without_users_the_overlay_does_not_stay() -> None:
    async def story(daemon: ImageDaemon, guest: Backend) -> None:
        await daemon.image("b")
        await daemon.qmp("blockdev-snapshot-sync", **sync("b", "s")["data"])
        assert daemon.names() == ["a", "b"]
        assert daemon.rig.graph.nodes["b"].read_only
        assert Path("s.qcow2").exists()

    tell(story)


def test_an_existing_node_takes_the_place() -> None:
    async def story(daemon: ImageDaemon, guest: Backend) -> None:
        await daemon.image("o")
        await daemon.image("p")
        await daemon.rig.memory("n")
        snapshot = "blockdev-snapshot"
        for node, overlay, text in (
            ("a", "nope", "Cannot find device='nope' nor node-name='nope'"),
            ("a", "a", "The overlay is already in use"),
            ("a", "n", "The overlay does not support backing images"),
            ("o", "a", "The overlay is already in use"),
        ):
            assert await daemon.error(snapshot, node=node, overlay=overlay) == text
        await daemon.qmp("blockdev-add", driver="copy-on-read", node_name="f", file="p")
        assert await daemon.error(snapshot, node="a", overlay="f") == (
            "Filters cannot be used as overlays"
        )
        await daemon.qmp("blockdev-del", node_name="f")
        await daemon.qmp(snapshot, node="a", overlay="o")
        assert guest.node.name == "o"
        assert await daemon.error(snapshot, node="p", overlay="o") == (
            "The overlay is already in use"
        )
        await daemon.qmp(snapshot, node="o", overlay="p")
        view = memoryview(bytearray(4096))
        await guest.read(0, view)
        assert (guest.node.name, bytes(view)) == ("p", b"\1" * 4096)
        await guest.detach()
        for name in "poa":
            await daemon.qmp("blockdev-del", node_name=name)
        guest.attach((await daemon.rig.memory("m")).node, 0, perms.ALL)

    tell(story)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"node_name": "nope"}, "Cannot find device='' nor node-name='nope'"),
        ({"snapshot_node_name": None}, "New overlay node-name missing"),
        ({"snapshot_node_name": "a"}, "New overlay node-name already in use"),
        ({"snapshot_node_name": "b/d"}, "Invalid node-name: 'b/d'"),
        ({"format": "bogus"}, "Unknown file format 'bogus'"),
        ({"format": ""}, "Unknown file format ''"),
        ({"format": "bogus", "mode": "existing"}, "Unknown driver 'bogus'"),
        ({"mode": "existing"}, "Could not open 's.qcow2': No such file or directory"),
        ({"snapshot_file": "n/s"}, "Could not create 'n/s': No such file or directory"),
    ],
)
def test_refusals(change: dict[str, Any], text: str) -> None:
    async def story(daemon: ImageDaemon, guest: Backend) -> None:
        arguments: dict[str, Any] = {
            "node_name": "a",
            "snapshot_file": "s.qcow2",
            "snapshot_node_name": "s",
            **change,
        }
        arguments = {key: value for key, value in arguments.items() if value is not None}
        assert await daemon.error("blockdev-snapshot-sync", **arguments) == text
        assert daemon.names() == ["a"]
        assert not guest.quiesced
        await guest.write(0, memoryview(b"\3" * 512))

    tell(story)


def test_a_transaction_that_fails_undoes_everything() -> None:
    async def story(daemon: ImageDaemon, guest: Backend) -> None:
        await daemon.image("o")
        for last in (ABORT, sync("nope", "x"), action("blockdev-snapshot", node="a", overlay="o")):
            actions = [
                action("blockdev-snapshot-internal-sync", device="a", name="i"),
                sync("a", "s"),
                action("blockdev-snapshot", node="s", overlay="o"),
                last,
            ]
            assert await daemon.error("transaction", actions=actions) != "no error"
            assert daemon.names() == ["a", "o"]
            assert guest.node.name == "a"
            assert not guest.quiesced
            assert not guest.node.read_only
            assert guest.node.driver.snapshots() == []
            assert not daemon.rig.graph.nodes["o"].children.get("backing")
            await guest.write(0, memoryview(b"\4" * 512))

    tell(story)


def test_a_transaction_snapshots_all_nodes_at_one_moment() -> None:
    async def story(daemon: ImageDaemon, guest: Backend) -> None:
        await daemon.image("b")
        other = Backend(daemon.rig.graph, "h", "other guest")
        other.attach(daemon.rig.graph.nodes["b"], perms.WRITE, perms.ALL)
        await daemon.qmp("transaction", actions=[sync("a", "s"), sync("b", "t"), sync("t", "u")])
        assert (guest.node.name, other.node.name) == ("s", "u")
        assert [name for name, node in daemon.rig.graph.nodes.items()
                if node.read_only and not name.startswith("#")] == ["a", "b", "t"]  # fmt: skip
        await other.detach()

    tell(story)
