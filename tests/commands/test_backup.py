# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for backups, to images that are there and images that are made for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from tests.commands.images import ImageDaemon
from tests.support.tools import need


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tell(story: Callable[[ImageDaemon], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ImageDaemon(Path.cwd()) as daemon:
            await daemon.image("a")
            node = daemon.rig.graph.nodes["a"]
            await node.write(65536, memoryview(b"\1" * 65536))
            await story(daemon)

    run(main())


async def finish(daemon: ImageDaemon) -> None:
    job = daemon.context.jobs.get("j")
    await job.wait_end()
    assert job.error is None


async def content(daemon: ImageDaemon, name: str) -> bytes:
    """Return what is in an image that nobody has open."""
    file = {"driver": "file", "filename": name}
    await daemon.qmp("blockdev-add", driver="qcow2", node_name="look", file=file, read_only=True)
    view = memoryview(bytearray(1 << 20))
    await daemon.rig.graph.nodes["look"].read(0, view)
    await daemon.qmp("blockdev-del", node_name="look")
    return bytes(view)


DATA = bytes(65536) + b"\1" * 65536 + bytes(14 * 65536)


@pytest.mark.parametrize("more", [{}, {"compress": True}, {"sync": "top"}])
def test_to_a_node(more: dict[str, Any]) -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.image("t")
        arguments = {"sync": "full", **more}
        await daemon.qmp("blockdev-backup", job_id="j", device="a", target="t", **arguments)
        await finish(daemon)
        await daemon.qmp("blockdev-del", node_name="t")
        assert await content(daemon, "t.qcow2") == DATA

    tell(story)


@pytest.mark.parametrize("mode", ["absolute-paths", "existing"])
@pytest.mark.parametrize("fmt", ["qcow2", "raw", None])
def test_to_an_image(mode: str, fmt: str | None) -> None:
    async def story(daemon: ImageDaemon) -> None:
        more = {"format": fmt} if fmt else {}
        if mode == "existing":
            if fmt == "raw":
                Path("t.qcow2").write_bytes(bytes(1 << 20))
            else:
                await daemon.make("t")
        await daemon.qmp(
            "drive-backup", job_id="j", device="a", target="t.qcow2", sync="full", mode=mode, **more
        )
        await finish(daemon)
        assert daemon.names() == ["a"]
        assert len(daemon.rig.graph.nodes) == 2
        if fmt == "raw":
            assert Path("t.qcow2").read_bytes() == DATA
        else:
            assert await content(daemon, "t.qcow2") == DATA

    tell(story)


def test_an_image_over_the_source() -> None:
    async def story(daemon: ImageDaemon) -> None:
        await daemon.qmp("drive-backup", job_id="j", device="a", target="t.qcow2", sync="none")
        (target,) = (
            edge.node
            for node in daemon.rig.graph.nodes.values()
            for name, edge in node.children.items()
            if name == "target"
        )
        assert target.children["backing"].node.name == "a"
        assert target.driver.backing_file() == ("a.qcow2", "qcow2")
        # Whoever looks at the target sees the old content, although nothing was copied yet.
        view = memoryview(bytearray(1 << 20))
        await target.read(0, view)
        assert view == DATA
        await daemon.qmp("block-job-cancel", device="j")
        await daemon.context.jobs.get("j").wait_end()
        assert daemon.names() == ["a"]

    tell(story)


def test_compressed_for_the_real_tools() -> None:
    need("qemu-img")
    import subprocess

    async def story(daemon: ImageDaemon) -> None:
        await daemon.qmp(
            "drive-backup", job_id="j", device="a", target="t.qcow2", sync="full", compress=True
        )
        await finish(daemon)

    tell(story)
    subprocess.run(["qemu-img", "check", "-q", "t.qcow2"], check=True)
    assert Path("t.qcow2").stat().st_size < 6 * 65536
