# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.errors import QmpError
from qsd.jobs.block_job import BlockJob
from qsd.qapi.convert import to_json
from qsd.qapi.schema.job import JobStatusChange
from tests.commands.support import Daemon
from tests.support.named import disk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.qapi.schema.job import JobType

UNNAMED = "an unnamed block device"


def with_daemon(story: Callable[[Daemon], Awaitable[None]]) -> None:
    """Tell a story of a daemon."""

    async def main() -> None:
        async with Daemon() as daemon:
            await story(daemon)

    run(main())


async def refused(daemon: Daemon, command: str, /, **arguments: Any) -> str:
    """Run a command that must fail; return the text of its error."""
    with pytest.raises(QmpError) as caught:
        await daemon.qmp(command, **arguments)
    assert caught.value.error_class == "GenericError"
    return caught.value.desc


async def add(daemon: Daemon, name: str, /, **tree: Any) -> None:
    """Do a blockdev-add, of a file of that name unless told otherwise."""
    await daemon.qmp("blockdev-add", node_name=name, **(tree or disk(name)))


class Commit(BlockJob):
    """A block job that only waits."""

    TYPE: ClassVar[JobType] = "commit"

    async def run(self) -> None:
        await self.sleep()


# blockdev-add, blockdev-del, blockdev-reopen


def test_root_nodes_need_a_name() -> None:
    async def story(daemon: Daemon) -> None:
        message = await refused(daemon, "blockdev-add", driver="null-co")
        assert message == "'node-name' must be specified for the root node"

    with_daemon(story)


def test_add_and_delete() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await add(daemon, "r", driver="raw", file="f")
        assert await refused(daemon, "blockdev-del", node_name="x") == (
            "Failed to find node with node-name='x'"
        )
        assert await refused(daemon, "blockdev-del", node_name="f") == "Block device f is in use"
        await daemon.qmp("blockdev-del", node_name="r")
        await daemon.qmp("blockdev-del", node_name="f")
        assert not daemon.rig.graph.nodes

    with_daemon(story)


def test_only_own_nodes_can_be_deleted() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "r", driver="raw", file={**disk("f"), "node-name": "f"})
        assert await refused(daemon, "blockdev-del", node_name="f") == (
            "Node f is not owned by the monitor"
        )

    with_daemon(story)


def test_why_a_node_cannot_be_deleted_in_order() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "b")
        await add(daemon, "q", driver="qcow2", file=disk("q"), backing="b")
        busy = "Node 'b' is busy: node is used as backing hd of 'q'"
        assert await refused(daemon, "blockdev-del", node_name="b") == busy
        backend = Backend(daemon.rig.graph, "", UNNAMED)
        backend.attach(daemon.rig.graph.nodes["b"], 0, perms.ALL)
        assert await refused(daemon, "blockdev-del", node_name="b") == "Node b is in use"
        await backend.detach()

    with_daemon(story)


def test_nodes_of_block_jobs_are_busy() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        job = Commit(daemon.context.jobs, daemon.rig.graph, "j")
        job.use_node(daemon.rig.graph.nodes["f"], "base", 0, perms.ALL)
        job.start()
        assert await refused(daemon, "blockdev-del", node_name="f") == (
            "Node 'f' is busy: block device is in use by block job: commit"
        )
        assert await refused(daemon, "block_resize", node_name="f", size=512) == (
            "Device '(null)' is in use"
        )

    with_daemon(story)


def test_reopen() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "n", driver="null-co")
        options = {"driver": "null-co", "node-name": "n", "read-only": True}
        await daemon.qmp("blockdev-reopen", options=[options])
        assert daemon.rig.graph.nodes["n"].read_only

    with_daemon(story)


# block_resize


def test_resize() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await daemon.qmp("block_resize", node_name="f", size=4096)
        assert daemon.rig.graph.nodes["f"].length() == 4096
        await daemon.qmp("block_resize", device="whatever", node_name="f", size=0)
        assert daemon.rig.graph.nodes["f"].length() == 0
        assert not daemon.rig.graph.backends

    with_daemon(story)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": -1}, "Cannot find device='' nor node-name=''"),
        ({"device": "f", "size": 1}, "Cannot find device='f' nor node-name=''"),
        ({"node-name": "x", "size": 1}, "Cannot find device='' nor node-name='x'"),
        ({"node-name": "f", "size": -1}, "Parameter 'size' expects a >0 size"),
        (
            {"node-name": "f", "size": 9223372036854775807},
            "offset(9223372036854775807) exceeds maximum(9223372035781033984)",
        ),
        (
            {"node-name": "c", "size": 1},
            "Permission conflict on node 'c': permissions 'resize' are both required by an "
            "unnamed block device (uses node 'c' as 'root' child) and unshared by node 'q' "
            "(uses node 'c' as 'file' child).",
        ),
        ({"node-name": "ro", "size": 1}, "Image is read-only"),
    ],
)
def test_resize_refused(arguments: dict[str, Any], message: str) -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await add(daemon, "ro", driver="null-co", **{"read-only": True})
        await add(daemon, "q", driver="qcow2", file={**disk("c"), "node-name": "c"})
        assert await refused(daemon, "block_resize", **arguments) == message
        assert not daemon.rig.graph.backends

    with_daemon(story)


# block-set-write-threshold


def test_write_threshold() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        node = daemon.rig.graph.nodes["f"]
        await daemon.qmp("block-set-write-threshold", node_name="f", write_threshold=1000)
        [info] = await daemon.qmp("query-named-block-nodes")
        assert info["write_threshold"] == 1000
        await node.write(0, memoryview(bytes(1000)))
        assert not daemon.rig.events.events
        await node.write(512, memoryview(bytes(1024)))
        [event] = daemon.rig.events.events
        assert to_json(event) == {
            "node-name": "f", "amount-exceeded": 536, "write-threshold": 1000,
        }  # fmt: skip
        await node.write(2048, memoryview(bytes(1024)))
        assert len(daemon.rig.events.events) == 1
        await daemon.qmp("block-set-write-threshold", node_name="f", write_threshold=1)
        await daemon.qmp("block-set-write-threshold", node_name="f", write_threshold=0)
        await node.write(2048, memoryview(bytes(1024)))
        assert len(daemon.rig.events.events) == 1
        assert (
            await refused(daemon, "block-set-write-threshold", node_name="x", write_threshold=1)
            == "Device 'x' not found"
        )

    with_daemon(story)


# x-blockdev-set-iothread, x-blockdev-change


def test_iothread() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await daemon.qmp("object-add", qom_type="iothread", id="io")
        await daemon.qmp("object-add", qom_type="secret", id="s", data="x")
        command = "x-blockdev-set-iothread"
        await daemon.qmp(command, node_name="f", iothread="io")
        await daemon.qmp(command, node_name="f", iothread=None)
        assert await refused(daemon, command, node_name="x", iothread="io") == (
            "Failed to find node with node-name='x'"
        )
        for path in ("", "io/", "/objects/io", "objects/io"):
            await daemon.qmp(command, node_name="f", iothread=path)
        await daemon.qmp("object-add", qom_type="iothread", id="io2")
        for name in ("nope", "s", "", "./io"):
            assert await refused(daemon, command, node_name="f", iothread=name) == (
                f"Cannot find iothread {name}"
            )
        backend = Backend(daemon.rig.graph, "", UNNAMED)
        backend.attach(daemon.rig.graph.nodes["f"], 0, perms.ALL)
        assert await refused(daemon, command, node_name="f", iothread="io") == (
            "Node f is associated with a BlockBackend and could be in use (use force=true to "
            "override this check)"
        )
        await daemon.qmp(command, node_name="f", iothread="io", force=True)
        await backend.detach()

    with_daemon(story)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parent": "x"}, "Cannot find device='x' nor node-name='x'"),
        ({"parent": "q"}, "Either child or node must be specified"),
        (
            {"parent": "q", "child": "c", "node": "d"},
            "The parameters child and node are in conflict",
        ),
        ({"parent": "q", "child": "nope"}, "Node 'q' does not have child 'nope'"),
        ({"parent": "q", "child": "file"}, "The node q does not support removing a child"),
        ({"parent": "q", "node": "nope"}, "Node 'nope' not found"),
        ({"parent": "q", "node": "f"}, "The node q does not support adding a child"),
    ],
)
def test_change(arguments: dict[str, Any], message: str) -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await add(daemon, "q", driver="qcow2", file=disk("q"))
        assert await refused(daemon, "x-blockdev-change", **arguments) == message

    with_daemon(story)


# blockdev-create, x-blockdev-amend


def test_create() -> None:
    async def story(daemon: Daemon) -> None:
        sizes: list[int] = []

        async def creator(graph: Any, options: Any) -> None:
            sizes.append(options.size)

        daemon.creators["file"] = creator
        options = {"driver": "file", "filename": "f", "size": 42}
        await daemon.qmp("blockdev-create", job_id="j", options=options)
        await daemon.context.jobs.get("j").wait_end()
        assert sizes == [42]
        assert await daemon.qmp("query-jobs") == [
            {"id": "j", "type": "create", "status": "concluded",
             "current-progress": 1, "total-progress": 1}
        ]  # fmt: skip
        assert await daemon.qmp("query-block-jobs") == []
        changes = daemon.rig.events.events
        assert all(isinstance(event, JobStatusChange) for event in changes)
        assert [event.status for event in changes] == [
            "created", "running", "waiting", "pending", "concluded",
        ]  # fmt: skip
        assert await refused(daemon, "blockdev-create", job_id="j", options=options) == (
            "Job ID 'j' already in use"
        )
        assert await refused(daemon, "blockdev-create", job_id="1j", options=options) == (
            "Invalid job ID '1j'"
        )

    with_daemon(story)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        ("raw", "Driver does not support blockdev-create"),
        ("http", "Block driver 'http' not found or not supported"),
    ],
)
def test_create_unsupported(driver: str, message: str) -> None:
    async def story(daemon: Daemon) -> None:
        # The driver is looked at before the identifier.
        assert message == await refused(
            daemon, "blockdev-create", job_id="1j", options={"driver": driver}
        )

    with_daemon(story)


@pytest.mark.parametrize(
    ("job", "node", "driver", "message"),
    [
        ("1j", "x", "raw", "Cannot find device='' nor node-name='x'"),
        ("1j", "q", "http", "Block driver 'http' not found or not supported"),
        ("1j", "q", "raw", "x-blockdev-amend doesn't support changing the block driver"),
        ("1j", "f", "file", "Driver does not support x-blockdev-amend"),
        ("1j", "q", "qcow2", "Invalid job ID '1j'"),
    ],
)
def test_amend_refused(job: str, node: str, driver: str, message: str) -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await add(daemon, "q", driver="qcow2", file=disk("q"))
        assert message == await refused(
            daemon, "x-blockdev-amend", job_id=job, node_name=node, options={"driver": driver}
        )

    with_daemon(story)


def test_an_amendment_refused_by_the_driver_leaves_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from qsd.block.driver import Driver

    def refuse(self: Driver) -> None:
        raise QmpError("Not this one")

    monkeypatch.setattr(Driver, "begin_amend", refuse)

    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await add(daemon, "q", driver="qcow2", file=disk("q"))
        for job, message in (("1j", "Invalid job ID '1j'"), ("j", "Not this one")):
            assert message == await refused(
                daemon, "x-blockdev-amend", job_id=job, node_name="q", options={"driver": "qcow2"}
            )
        assert not list(daemon.context.jobs)

    with_daemon(story)


# Queries


def test_queries_without_nodes() -> None:
    async def story(daemon: Daemon) -> None:
        assert await daemon.qmp("query-block") == []
        assert await daemon.qmp("query-blockstats") == []
        assert await daemon.qmp("query-blockstats", query_nodes=True) == []
        assert await daemon.qmp("query-named-block-nodes") == []
        assert await daemon.qmp("x-debug-query-block-graph") == {"nodes": [], "edges": []}

    with_daemon(story)


def test_devices_and_nodes_are_not_the_same() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        assert await daemon.qmp("query-block") == []
        assert await daemon.qmp("query-blockstats") == []
        [stats] = await daemon.qmp("query-blockstats", query_nodes=True)
        assert stats["node-name"] == "f"
        [info] = await daemon.qmp("query-named-block-nodes", flat=True)
        assert info["node-name"] == "f"

    with_daemon(story)


def test_graph() -> None:
    async def story(daemon: Daemon) -> None:
        await add(daemon, "f")
        await add(daemon, "q", driver="qcow2", file="f")
        node = daemon.rig.graph.nodes["q"]
        backend = Backend(daemon.rig.graph, "exp", UNNAMED)
        backend.attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL & ~perms.RESIZE)
        job = Commit(daemon.context.jobs, daemon.rig.graph, "j")
        job.use_node(node, "main node", 0, perms.ALL)
        job.use_node(node, "target", 0, perms.ALL)
        job.start()
        found = await daemon.qmp("x-debug-query-block-graph")
        names = {item["id"]: f"{item['type']} {item['name']}" for item in found["nodes"]}
        assert sorted(names.values()) == [
            "block-backend ", "block-driver f", "block-driver q", "block-job j",
        ]  # fmt: skip
        edges = {
            (names[edge["parent"]], edge["name"], names[edge["child"]]): edge
            for edge in found["edges"]
        }
        assert set(edges) == {
            ("block-backend ", "root", "block-driver q"),
            ("block-job j", "main node", "block-driver q"),
            ("block-job j", "target", "block-driver q"),
            ("block-driver q", "file", "block-driver f"),
        }
        root = edges["block-backend ", "root", "block-driver q"]
        assert set(root["perm"]) == {"consistent-read", "write"}
        assert set(root["shared-perm"]) == {"consistent-read", "write", "write-unchanged"}
        await backend.detach()

    with_daemon(story)
