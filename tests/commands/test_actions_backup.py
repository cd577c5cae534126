# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is refused when a backup is started, and backups that belong together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.dirty import DirtyBitmap
from qsd.errors import QmpError
from qsd.filters.copy_before_write import CopyBeforeWriteDriver
from tests.commands.support import Daemon
from tests.support.memory import MemoryDriver, Rig

ABORT = {"type": "abort", "data": {}}


class Disk(MemoryDriver):
    """Memory that says it has no clusters, so that nobody has to be warned."""

    def image_info(self) -> dict[str, Any]:
        return {"dirty-flag": False}


def tell(story: Callable[[Daemon], Awaitable[None]]) -> None:
    """Tell a story with nodes a, b, t, u of one size, a smaller one, and a bitmap of "a"."""

    async def main() -> None:
        async with Daemon(Rig(null_co=Disk, copy_before_write=CopyBeforeWriteDriver)) as daemon:
            for name in "abtu":
                (await daemon.rig.memory(name, 1 << 20)).fast = False
            await daemon.rig.memory("small", 1 << 16)
            bitmap = DirtyBitmap(daemon.rig.graph.nodes["a"], "bm", 65536)
            bitmap.attach()
            await story(daemon)
            bitmap.detach()

    run(main())


async def error(daemon: Daemon, command: str, /, **arguments: Any) -> str:
    try:
        await daemon.qmp(command, **arguments)
    except QmpError as exc:
        return exc.desc
    return "no error"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"device": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
        ({"target": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
        ({"target": "a"}, "Source and target cannot be the same"),
        ({"target": "small"}, "Source and target image have different sizes"),
        ({"compress": True}, "Compression is not supported for this drive "),
        ({"sync": "bitmap"}, "must provide a valid bitmap name for 'bitmap' sync mode"),
        ({"sync": "incremental"}, "must provide a valid bitmap name for 'incremental' sync mode"),
        ({"bitmap": "nope"}, "Bitmap 'nope' could not be found"),
        ({"bitmap": "bm"}, "Bitmap sync mode must be given when providing a bitmap"),
        ({"bitmap_mode": "always"}, "Cannot specify bitmap sync mode without a bitmap"),
        (
            {"sync": "incremental", "bitmap": "bm", "bitmap_mode": "never"},
            "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
        ),
        (
            {"bitmap": "bm", "bitmap_mode": "never"},
            "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
        ),
        (
            {"sync": "none", "bitmap": "bm", "bitmap_mode": "always"},
            "sync mode 'none' does not produce meaningful bitmap outputs",
        ),
        ({"x_perf": {"max-workers": 0}}, "max-workers must be between 1 and 2147483647"),
        (
            {"x_perf": {"max-chunk": -1}},
            "max-chunk must be zero (which means no limit) or positive",
        ),
        (
            {"x_perf": {"max-chunk": 100}},
            "Required max-chunk (100) is less than backup cluster size (65536)",
        ),
        ({"filter_node_name": "b"}, "Could not create node: Duplicate nodes with node-name='b'"),
        ({"filter_node_name": "a/b"}, "Could not create node: Invalid node-name: 'a/b'"),
        ({"job_id": "a/b"}, "Invalid job ID 'a/b'"),
        ({"job_id": None}, "Invalid job ID ''"),
        ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ],
)
def test_refusals(change: dict[str, Any], text: str) -> None:
    async def story(daemon: Daemon) -> None:
        arguments = {"job_id": "j", "device": "a", "target": "t", "sync": "full", **change}
        arguments = {key: value for key, value in arguments.items() if value is not None}
        assert await error(daemon, "blockdev-backup", **arguments) == text
        assert list(daemon.rig.graph.nodes) == ["a", "b", "t", "u", "small"]
        assert not list(daemon.context.jobs)
        assert not any(node.quiesced for node in daemon.rig.graph.nodes.values())

    tell(story)


def test_nodes_in_use() -> None:
    async def story(daemon: Daemon) -> None:
        backup = "blockdev-backup"
        await daemon.qmp(backup, job_id="j", device="a", target="t", sync="none")
        assert await error(daemon, backup, job_id="k", device="b", target="t", sync="full") == (
            "Node 't' is busy: block device is in use by block job: backup"
        )
        assert await error(daemon, backup, job_id="k", device="t", target="b", sync="full") == (
            "Node 't' is busy: block device is in use by block job: backup"
        )
        guest = Backend(daemon.rig.graph, "g", "guest")
        with pytest.raises(QmpError, match="unshared by node '#block"):
            guest.attach(daemon.rig.graph.nodes["a"], perms.WRITE, perms.ALL)

    tell(story)


def backup(job_id: str, device: str, target: str, sync: str = "full", **more: Any) -> Any:
    data = {"job-id": job_id, "device": device, "target": target, "sync": sync, **more}
    return {"type": "blockdev-backup", "data": data}


def states(daemon: Daemon, job_id: str) -> list[str]:
    return [
        event.status
        for event in daemon.rig.events.events
        if getattr(event, "id", None) == job_id and hasattr(event, "status")
    ]


def test_a_node_in_use_is_found_before_the_target_is_looked_for() -> None:
    async def story(daemon: Daemon) -> None:
        await daemon.qmp("blockdev-backup", job_id="j", device="a", target="t", sync="none")
        common = {"job_id": "k", "sync": "full", "mode": "existing"}
        text = "Node 't' is busy: block device is in use by block job: backup"
        assert await error(daemon, "drive-backup", **common, device="t", target="/nope") == text
        await daemon.qmp("job-cancel", id="j")

    tell(story)


def test_a_transaction_that_fails_cancels_jobs_that_never_ran() -> None:
    async def story(daemon: Daemon) -> None:
        actions = [backup("j", "a", "t", bitmap="bm", **{"bitmap-mode": "on-success"})]
        for last in (ABORT, backup("j", "b", "u"), backup("k", "b", "small")):
            daemon.rig.events.events.clear()
            assert await error(daemon, "transaction", actions=[*actions, last]) != "no error"
            assert states(daemon, "j") == ["created", "aborting", "concluded", "null"]
            assert list(daemon.rig.graph.nodes) == ["a", "b", "t", "u", "small"]
        daemon.rig.events.events.clear()
        await daemon.qmp("transaction", actions=actions)  # the bitmap is free again
        await daemon.context.jobs.get("j").wait_end()

    tell(story)


@pytest.mark.parametrize("mode", ["individual", "grouped"])
def test_one_of_two_jobs_fails(mode: str) -> None:
    async def story(daemon: Daemon) -> None:
        driver = daemon.rig.graph.nodes["u"].driver
        assert isinstance(driver, Disk)
        driver.fail = lambda what, offset: 5 if what in ("write", "zero") else 0
        await daemon.qmp(
            "transaction",
            actions=[backup("j", "a", "t"), backup("k", "b", "u")],
            properties={"completion-mode": mode},
        )
        jobs = [daemon.context.jobs.get(name) for name in "jk"]
        for job in jobs:
            await job.wait_end()
        assert jobs[1].error is not None
        assert (jobs[0].error is not None) is (mode == "grouped")

    tell(story)
