# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.naming import filename
from qsd.block.node import Node
from qsd.commands.block_jobs import default_granularity, find_in_chain, on_or_off
from qsd.commands.new_image import Backing, make_image
from qsd.errors import DEVICE_NOT_FOUND, QmpError, describe
from qsd.jobs.block_job import BlockJob, get_block_job
from tests.commands.images import ImageDaemon
from tests.jobs.chains import World, tell

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("blockdev-mirror", {"device": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
    ("blockdev-mirror", {"target": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
    ("blockdev-mirror", {"device": "mid"}, "Need a root block node"),
    ("blockdev-mirror", {"target": "top"}, "Can't mirror node into itself"),
    ("blockdev-mirror", {"target": "mid"}, "busy: node is used as backing hd of 'top'"),
    ("blockdev-mirror", {"sync": "bitmap"}, "Sync mode 'bitmap' not supported"),
    ("blockdev-mirror", {"granularity": 256}, r"a value in range \[512B, 64MB\]"),
    ("blockdev-mirror", {"granularity": 1000}, "expects a power of 2"),
    ("blockdev-mirror", {"buf_size": -1}, "Invalid parameter 'buf-size'"),
    ("blockdev-mirror", {"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ("blockdev-mirror", {"job_id": "1j"}, "Invalid job ID '1j'"),
    ("blockdev-mirror", {"filter_node_name": "mid"}, "Duplicate nodes with node-name='mid'"),
    ("blockdev-mirror", {"replaces": "nope"}, "Failed to find node with node-name='nope'"),
    ("blockdev-mirror", {"replaces": "t"}, "Cannot replace 't' by a node mirrored from 'top'"),
    ("blockdev-mirror", {"replaces": "base"}, "'base' is busy: node is used as backing hd"),
    ("drive-mirror", {"format": "nope"}, "Unknown file format 'nope'"),
    ("drive-mirror", {"replaces": "mid"}, "a node-name must be provided when replacing"),
    ("drive-mirror", {"device": "mid"}, "Need a root block node"),
]


@pytest.mark.parametrize(("command", "arguments", "text"), REFUSED)
def test_what_a_mirror_refuses(command: str, arguments: dict[str, Any], text: str) -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.image("t")
        before = world.edges(), list(world.rig.graph.nodes)
        given = {"job_id": "j", "device": "top", "target": "t", "sync": "full", **arguments}
        with pytest.raises(QmpError, match=text):
            await world.qmp(command, **given)
        assert (world.edges(), list(world.rig.graph.nodes)) == before
        assert not list(world.context.jobs)

    tell(story)


def test_the_target_of_a_mirror_is_no_root() -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.image("t")
        await world.qmp("blockdev-mirror", job_id="j", device="top", target="t", sync="full")
        with pytest.raises(QmpError, match="Need a root block node"):
            await world.qmp("blockdev-snapshot-internal-sync", device="t", name="s")

    tell(story)


def test_an_unknown_device_of_a_commit_has_its_own_class() -> None:
    async def story(world: World) -> None:
        with pytest.raises(QmpError, match="Device 'nope' not found") as caught:
            await world.qmp("block-commit", job_id="j", device="nope")
        assert caught.value.error_class == DEVICE_NOT_FOUND

    tell(story)


def test_images_are_found_by_any_path_to_what_the_one_above_records(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "d").mkdir()
        async with ImageDaemon(tmp_path) as daemon:
            for name, below in (("base", None), ("mid", "base"), ("top", "mid")):
                backing = Backing(f"{below}.qcow2", "qcow2") if below else None
                await make_image(daemon.context, f"d/{name}.qcow2", "qcow2", 1 << 20, backing)
            (tmp_path / "d" / "link").symlink_to("mid.qcow2")
            file = {"driver": "file", "filename": "d/top.qcow2"}
            await daemon.qmp("blockdev-add", driver="qcow2", node_name="top", file=file)
            top = daemon.rig.graph.nodes["top"]
            mid = top.children["backing"].node
            base = mid.children["backing"].node
            for name in ("mid.qcow2", "./mid.qcow2", "link", str(tmp_path / "d" / "mid.qcow2")):
                assert await find_in_chain(top, name) is mid
            assert await find_in_chain(top, "base.qcow2") is base
            for name in ("d/mid.qcow2", "nope/../mid.qcow2", "file:mid.qcow2", "top.qcow2"):
                assert await find_in_chain(top, name) is None
            assert await find_in_chain(mid, "mid.qcow2") is None

    run(main())


def test_images_given_to_the_one_above_are_found_by_their_own_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with ImageDaemon(tmp_path) as daemon:
            await daemon.image("base")
            await daemon.image("mid", backing="base")
            await daemon.image("top", backing="mid")
            top, mid, base = (daemon.rig.graph.nodes[name] for name in ("top", "mid", "base"))
            assert await find_in_chain(top, "base.qcow2") is base
            assert await find_in_chain(top, "./base.qcow2") is None
            assert await find_in_chain(top, "mid.qcow2") is None  # it stands for another chain
            assert await find_in_chain(top, filename(mid)) is mid

    run(main())


def test_defaults() -> None:
    async def story(world: World) -> None:
        assert default_granularity((await world.rig.memory("m")).node) == 65536

    tell(story)
    assert on_or_off(None)
    assert on_or_off(True)
    assert not on_or_off(False)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def mirror_into_existing(daemon: ImageDaemon, **base: Any) -> BlockJob:
    """Mirror the top of a chain into an image made before, over the same base; complete that."""
    await daemon.image("base")
    await daemon.rig.graph.nodes["base"].write(0, memoryview(b"b" * 65536))
    await daemon.qmp("blockdev-del", node_name="base")
    below = Backing("base.qcow2", "qcow2")
    for name in ("top", "copy"):
        await make_image(daemon.context, f"{name}.qcow2", "qcow2", 1 << 20, below)
    await daemon.add("base", **base)
    await daemon.add("top", backing="base")
    await daemon.rig.graph.nodes["top"].write(65536, memoryview(b"t" * 65536))
    await daemon.qmp(
        "drive-mirror", job_id="j", device="top", target="copy.qcow2", node_name="copy",
        sync="top", mode="existing", auto_dismiss=False,
    )  # fmt: skip
    assert "backing" not in daemon.rig.graph.nodes["copy"].children
    job = get_block_job(daemon.context.jobs, "j")
    while job.status != "ready":
        await asyncio.sleep(0.001)
    return job


async def mirror_of_zeroes(daemon: ImageDaemon, **more: Any) -> BlockJob:
    """Mirror a file of nothing but a hole into one of data, until they are alike."""
    with open("source", "wb") as file:
        file.truncate(1 << 20)
    Path("copy").write_bytes(b"c" * (1 << 20))
    await daemon.qmp("blockdev-add", driver="file", node_name="source", filename="source")
    await daemon.qmp(
        "drive-mirror", job_id="j", device="source", target="copy", node_name="copy", sync="full",
        mode="existing", auto_dismiss=False, **more,
    )  # fmt: skip
    job = get_block_job(daemon.context.jobs, "j")
    while job.status != "ready":
        await asyncio.sleep(0.001)
    return job


@pytest.mark.parametrize("unmap", [None, True, False])
def test_unmap_is_for_the_job_and_for_the_node_it_leaves(
    unmap: bool | None, tmp_path: Path
) -> None:
    arguments = {} if unmap is None else {"unmap": unmap}

    async def main() -> None:
        async with ImageDaemon(tmp_path) as daemon:
            job = await mirror_of_zeroes(daemon, format="raw", **arguments)
            blocks = os.stat("copy").st_blocks * 512
            assert blocks == (1 << 20 if unmap is False else 0)
            guest = Backend(daemon.rig.graph, "", "a guest")
            guest.attach(job.backends[0].node, perms.CONSISTENT_READ, perms.ALL)
            await daemon.qmp("job-complete", id="j")
            await job.wait_end()
            copy = daemon.rig.graph.nodes["copy"]
            assert guest.node is copy
            assert copy.discard_unmap == (unmap is not False)
            await guest.detach()

    run(main())
    assert Path("copy").read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("fmt", [None, "file", "raw"])
def test_a_copy_of_a_file_is_a_file_if_nobody_says_more(fmt: str | None, tmp_path: Path) -> None:
    arguments = {} if fmt is None else {"format": fmt}

    async def main() -> None:
        async with ImageDaemon(tmp_path) as daemon:
            await mirror_of_zeroes(daemon, **arguments)
            assert daemon.rig.graph.nodes["copy"].driver.name == (fmt or "file")

    run(main())


async def content_of(node: Node) -> bytes:
    view = memoryview(bytearray(3 * 65536))
    await node.read(0, view)
    return bytes(view)


CONTENT = b"b" * 65536 + b"t" * 65536 + bytes(65536)


def test_an_existing_target_gets_the_backing_file_that_it_records(tmp_path: Path) -> None:
    async def main() -> None:
        async with ImageDaemon(tmp_path) as daemon:
            job = await mirror_into_existing(daemon, read_only=True)
            guest = Backend(daemon.rig.graph, "", "a guest")
            guest.attach(job.backends[0].node, perms.CONSISTENT_READ, perms.ALL)
            await daemon.qmp("job-complete", id="j")
            await job.wait_end()
            assert job.error is None
            assert guest.node is daemon.rig.graph.nodes["copy"]
            assert guest.node.children["backing"].node.implicit
            assert await content_of(guest.node) == CONTENT
            await guest.detach()

    run(main())


@pytest.mark.parametrize("sync", ["top", "full"])
def test_only_the_top_layer_is_backed_up_with_sync_top(sync: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with ImageDaemon(tmp_path) as daemon:
            await daemon.image("base")
            await daemon.image("top", backing="base")
            await daemon.image("copy")
            nodes = daemon.rig.graph.nodes
            await nodes["base"].write(0, memoryview(b"b" * 65536))
            await nodes["top"].write(65536, memoryview(b"t" * 65536))
            await daemon.qmp(
                "blockdev-backup", job_id="j", device="top", target="copy", sync=sync,
                auto_dismiss=False,
            )  # fmt: skip
            job = get_block_job(daemon.context.jobs, "j")
            await job.wait_end()
            assert job.error is None
            below = bytes(65536) if sync == "top" else CONTENT[:65536]
            assert await content_of(nodes["copy"]) == below + CONTENT[65536:]

    run(main())


def test_nobody_gets_a_target_whose_backing_file_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with ImageDaemon(tmp_path) as daemon:
            job = await mirror_into_existing(daemon)
            guest = Backend(daemon.rig.graph, "", "a guest")
            guest.attach(job.backends[0].node, perms.CONSISTENT_READ, perms.ALL)
            await daemon.qmp("job-complete", id="j")
            await job.wait_end()
            assert job.error is not None
            assert describe(job.error) == "Invalid argument"
            assert guest.node is daemon.rig.graph.nodes["top"]
            assert await content_of(guest.node) == CONTENT
            await guest.detach()

    run(main())
    assert "Could not open backing file: Failed to get shared" in capsys.readouterr().err
