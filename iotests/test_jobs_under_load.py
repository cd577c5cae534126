# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Jobs run, pause and complete below an export through which a guest writes all the time.

Afterwards every sector must hold what was written to it last, in the image that took over.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iotests.harness.chains import (
    add_chain,
    add_image,
    content_of,
    export,
    make_chain,
    make_image,
)
from iotests.harness.crash import Load, Writer
from iotests.harness.daemon import PATIENCE, Daemon
from iotests.harness.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(300)]

#: Bytes per second; slow enough for the guest to meet the job at work, also on a machine that is
#: busy with others: everybody lifts the limit afterwards.
SLOW = 1 << 18


@contextlib.contextmanager
def target_server(kind: str, daemon_kind: str, folder: Path) -> Iterator[None]:
    """Serve the image "target" at folder/target.sock as "target"."""
    folder.mkdir(exist_ok=True)
    make_image(folder, "target")
    path = folder / "target.sock"
    if kind == "daemon":
        with Daemon(daemon_kind, folder) as server:
            add_image(server, "target")
            address = {"type": "unix", "data": {"path": "target.sock"}}
            server.ok("nbd-server-start", addr=address)
            server.ok("block-export-add", type="nbd", id="t", node_name="target", writable=True)
            yield
            assert server.quit() == 0
        return
    command = ["qemu-nbd", "-t", "-f", "qcow2", "--discard=unmap", "-x", "target", "-k", str(path)]
    with subprocess.Popen([*command, "target"], cwd=folder) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def guest(folder: Path, before: dict[int, bytes]) -> Iterator[Writer]:
    """Write through the export "x" until the context ends."""
    load = Load(folder / "nbd.sock", "x", 42, depth=4)
    load.pace = 0.004  # a job that works in the background must be able to catch up
    with Writer(load, before) as writer:
        load.wait_for(50)
        yield writer


def ready(daemon: Daemon, writer: Writer, job_id: str) -> None:
    """Let a mirror job work for a while, pause, resume and become ready, under the load."""
    writer.load.wait_for(50)
    daemon.ok("job-pause", id=job_id)
    daemon.event("JOB_STATUS_CHANGE", id=job_id, status="paused")
    writer.load.wait_for(50)
    daemon.ok("job-resume", id=job_id)
    hurry(daemon, job_id)
    daemon.event("BLOCK_JOB_READY", device=job_id)
    writer.load.wait_for(50)


def hurry(daemon: Daemon, job_id: str) -> None:
    """Lift the limit of a job's speed, unless it has done all its work by itself."""
    reply = daemon.qmp("block-job-set-speed", device=job_id, speed=0)
    assert "return" in reply or "cannot accept command verb" in reply["error"]["desc"], reply


def done(daemon: Daemon, job_id: str) -> None:
    event = daemon.event("BLOCK_JOB_COMPLETED", device=job_id)
    assert "error" not in event["data"], event
    daemon.event("JOB_STATUS_CHANGE", id=job_id, status="null")


def backings(daemon: Daemon) -> dict[str, str | None]:
    """Return the backing file of each named node."""
    nodes: list[dict[str, Any]] = daemon.ok("query-named-block-nodes", flat=True)
    return {node["node-name"]: node.get("backing_file") for node in nodes}


@pytest.mark.parametrize("copy_mode", ["background", "write-blocking"])
@pytest.mark.parametrize("server", ["daemon", "qemu-nbd"])
def test_live_migration(server: str, copy_mode: str, tmp_path: Path, daemon_kind: str) -> None:
    """The guest's disk moves to another server and is written there from then on."""
    need("qemu-img", "qemu-io", "qemu-nbd")
    before = make_chain(tmp_path)
    there = tmp_path / "there"
    with target_server(server, daemon_kind, there):
        with Daemon(daemon_kind, tmp_path) as daemon:
            add_chain(daemon)
            export(daemon, "top")
            daemon.ok(
                "blockdev-add",
                driver="nbd",
                node_name="target",
                server={"type": "unix", "path": str(there / "target.sock")},
                export="target",
                discard="unmap",
            )
            with guest(tmp_path, before) as writer:
                daemon.ok(
                    "blockdev-mirror",
                    job_id="move",
                    device="top",
                    target="target",
                    sync="full",
                    copy_mode=copy_mode,
                    speed=SLOW,
                )
                ready(daemon, writer, "move")
                daemon.ok("job-complete", id="move")
                done(daemon, "move")
                (served,) = daemon.ok("query-block-exports")
                assert served["node-name"] == "target"
                daemon.ok("blockdev-del", node_name="top")
                writer.load.wait_for(200)
                writer.finish()
            assert daemon.quit() == 0
        load = writer.load
    load.verify(content_of(there, "target"))


@pytest.mark.parametrize("copy_mode", ["background", "write-blocking"])
def test_copy_at_a_moment(copy_mode: str, tmp_path: Path, daemon_kind: str) -> None:
    """A mirror job that is cancelled when ready leaves a copy; the guest stays where it is."""
    need("qemu-img", "qemu-io")
    before = make_chain(tmp_path)
    there = tmp_path / "there"
    with (
        target_server("daemon", daemon_kind, there),
        Daemon(daemon_kind, tmp_path) as daemon,
    ):
        add_chain(daemon)
        export(daemon, "top")
        daemon.ok(
            "blockdev-add",
            driver="nbd",
            node_name="target",
            server={"type": "unix", "path": str(there / "target.sock")},
            export="target",
        )
        with guest(tmp_path, before) as writer:
            daemon.ok(
                "blockdev-mirror",
                job_id="copy",
                device="top",
                target="target",
                sync="full",
                copy_mode=copy_mode,
                speed=SLOW,
            )
            ready(daemon, writer, "copy")
            writer.finish()
        daemon.ok("block-job-cancel", device="copy")
        done(daemon, "copy")
        (served,) = daemon.ok("query-block-exports")
        assert served["node-name"] == "top"
        assert daemon.quit() == 0
    for folder, name in ((tmp_path, "top"), (there, "target")):
        writer.load.verify(content_of(folder, name))


def test_merge_by_commit(tmp_path: Path, daemon_kind: str) -> None:
    """Three levels become one: the middle goes into the base, then the top does."""
    need("qemu-img", "qemu-io")
    before = make_chain(tmp_path)
    with Daemon(daemon_kind, tmp_path) as daemon:
        add_chain(daemon)
        export(daemon, "top")
        with guest(tmp_path, before) as writer:
            names = {"top_node": "mid", "base_node": "base"}
            daemon.ok("block-commit", job_id="one", device="top", speed=SLOW, **names)
            writer.load.wait_for(50)
            hurry(daemon, "one")
            done(daemon, "one")
            assert backings(daemon)["top"] == "base"
            daemon.ok("blockdev-del", node_name="mid")
            daemon.ok("block-commit", job_id="two", device="top", speed=SLOW)
            ready(daemon, writer, "two")
            daemon.ok("job-complete", id="two")
            done(daemon, "two")
            (served,) = daemon.ok("query-block-exports")
            assert served["node-name"] == "base"
            daemon.ok("blockdev-del", node_name="top")
            writer.load.wait_for(50)
            writer.finish()
        assert daemon.quit() == 0
    for name in ("mid", "top"):
        (tmp_path / name).unlink()
    writer.load.verify(content_of(tmp_path, "base"))


@pytest.mark.parametrize("first", ["top", "mid"])
def test_merge_by_stream(first: str, tmp_path: Path, daemon_kind: str) -> None:
    """Three levels become one: an image takes over what is below it, then the top does."""
    need("qemu-img", "qemu-io")
    before = make_chain(tmp_path)
    with Daemon(daemon_kind, tmp_path) as daemon:
        add_chain(daemon)
        export(daemon, "top")
        with guest(tmp_path, before) as writer:
            bound = {"base_node": "base"} if first == "top" else {}
            daemon.ok("block-stream", job_id="one", device=first, speed=SLOW, **bound)
            writer.load.wait_for(50)
            daemon.ok("job-pause", id="one")
            daemon.event("JOB_STATUS_CHANGE", id="one", status="paused")
            writer.load.wait_for(50)
            daemon.ok("job-resume", id="one")
            hurry(daemon, "one")
            done(daemon, "one")
            left = {"top": "base"} if first == "top" else {"top": "mid", "mid": None}
            assert left.items() <= backings(daemon).items()
            daemon.ok("blockdev-del", node_name="mid" if first == "top" else "base")
            daemon.ok("block-stream", job_id="two", device="top", speed=SLOW)
            writer.load.wait_for(50)
            hurry(daemon, "two")
            done(daemon, "two")
            assert backings(daemon)["top"] is None
            writer.load.wait_for(50)
            writer.finish()
        assert daemon.quit() == 0
    for name in ("mid", "base"):
        (tmp_path / name).unlink()
    writer.load.verify(content_of(tmp_path, "top"))


@pytest.mark.parametrize("sync", ["full", "top"])
def test_backup_of_a_moment(sync: str, tmp_path: Path, daemon_kind: str) -> None:
    """A backup shows the disk as it was at its start, however much is written meanwhile."""
    need("qemu-img", "qemu-io")
    before = make_chain(tmp_path)
    there = ("-b", "mid", "-F", "qcow2") if sync == "top" else ()
    make_image(tmp_path, "target", *there)
    with Daemon(daemon_kind, tmp_path) as daemon:
        add_chain(daemon)
        export(daemon, "top")
        add_image(daemon, "target", backing=None)
        load = Load(tmp_path / "nbd.sock", "x", 7, depth=4)
        daemon.ok(
            "blockdev-backup",
            job_id="save",
            device="top",
            target="target",
            sync=sync,
            speed=SLOW >> 2,  # the top layer alone is short
        )
        with Writer(load, before) as writer:
            load.wait_for(100)
            daemon.ok("job-pause", id="save")
            load.wait_for(100)
            daemon.ok("job-resume", id="save")
            hurry(daemon, "save")
            done(daemon, "save")
            writer.finish()
        assert daemon.quit() == 0
    load.verify(content_of(tmp_path, "top"))
    then = b"".join(before[sector] for sector in sorted(before))
    assert content_of(tmp_path, "target") == then


def test_failure_leaves_the_disk_as_it_is(tmp_path: Path, daemon_kind: str) -> None:
    """The server of the copy dies: the job fails, the guest does not notice."""
    need("qemu-img", "qemu-io")
    before = make_chain(tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    make_image(there, "target")
    with Daemon(daemon_kind, there) as server, Daemon(daemon_kind, tmp_path) as daemon:
        add_image(server, "target")
        address = {"type": "unix", "data": {"path": "target.sock"}}
        server.ok("nbd-server-start", addr=address)
        server.ok("block-export-add", type="nbd", id="t", node_name="target", writable=True)
        add_chain(daemon)
        export(daemon, "top")
        daemon.ok(
            "blockdev-add",
            driver="nbd",
            node_name="target",
            server={"type": "unix", "path": str(there / "target.sock")},
            export="target",
        )
        with guest(tmp_path, before) as writer:
            daemon.ok(
                "blockdev-mirror",
                job_id="copy",
                device="top",
                target="target",
                sync="full",
                speed=SLOW,
            )
            writer.load.wait_for(50)
            server.kill()
            event = daemon.event("BLOCK_JOB_COMPLETED", device="copy")
            assert event["data"]["error"] == "Input/output error"
            daemon.event("JOB_STATUS_CHANGE", id="copy", status="null")
            writer.load.wait_for(50)
            writer.finish()
        (served,) = daemon.ok("query-block-exports")
        assert served["node-name"] == "top"
        assert daemon.quit() == 0
    writer.load.verify(content_of(tmp_path, "top"))
