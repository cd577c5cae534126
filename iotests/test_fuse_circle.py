# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Images in files that the same daemon shows by FUSE exports.

Every system call on such a file is a request to the daemon that makes it.  The C daemon hangs when
it opens one, so that none of this can be compared with it.
"""

from __future__ import annotations

import fcntl
import os
import random
import shlex
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.tools import check_image, need, run, unmount_below

MIB = 1 << 20
SIZE = 16 * MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop,
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and FUSE"
    ),
]


@pytest.fixture(autouse=True)
def _ours_only(daemon_kind: str) -> None:
    if daemon_kind == "real":
        pytest.skip("the C daemon hangs")


@pytest.fixture(autouse=True)
def _no_mount_left(tmp_path: Path) -> Iterator[None]:
    yield
    unmount_below(tmp_path)


def serve(kind: str, folder: Path, size: int = 0, *more: str) -> Daemon:
    """Start a daemon that shows a new raw image, which grows, as the file "shown"."""
    with (folder / "image").open("wb") as image:
        image.truncate(size)
    (folder / "shown").touch()
    return Daemon(
        kind,
        folder,
        *("--blockdev", "file,node-name=low,filename=image,discard=unmap"),
        *export("low", folder / "shown"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *more,
    )


def export(node: str, mountpoint: Path) -> tuple[str, str]:
    how = "writable=on,growable=on"
    return "--export", f"fuse,id=fuse-{node},node-name={node},mountpoint={mountpoint},{how}"


def show(daemon: Daemon, node: str, mountpoint: Path) -> None:
    mountpoint.touch()
    daemon.ok(
        "block-export-add",
        **{"type": "fuse", "id": f"fuse-{node}", "node-name": node, "mountpoint": str(mountpoint)},
        writable=True,
        growable=True,
    )


def make(daemon: Daemon, path: Path, size: int = SIZE) -> None:
    """Make a qcow2 image in a file, by jobs of the daemon."""
    file = {"driver": "file", "node-name": "new", "filename": str(path)}
    daemon.ok("blockdev-add", **file)
    daemon.ok(
        "blockdev-create",
        **{"job-id": "make", "options": {"driver": "qcow2", "file": "new", "size": size}},
    )
    daemon.job("make")
    daemon.ok("blockdev-del", **{"node-name": "new"})


def add(daemon: Daemon, name: str, path: Path, **options: Any) -> None:
    """Open a qcow2 image."""
    options.update({"driver": "qcow2", "node-name": name, "discard": "unmap"})
    options["file"] = {"driver": "file", "filename": str(path), "node-name": f"{name}-file"}
    options["file"]["discard"] = "unmap"
    daemon.ok("blockdev-add", **options)


def offer(daemon: Daemon, node: str) -> str:
    """Export a node by NBD; return where."""
    daemon.ok(
        "block-export-add",
        **{"type": "nbd", "id": f"nbd-{node}", "node-name": node, "writable": True},
    )
    return f"nbd+unix:///{node}?socket=nbd.sock"


def io(folder: Path, where: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    out = run(folder, "qemu-io", "-f", "raw", *words, where)
    assert "failed" not in out, out
    return out


@pytest.mark.parametrize("direct", [False, True])
def test_an_image_in_our_own_file(tmp_path: Path, daemon_kind: str, direct: bool) -> None:
    need("qemu-io", "qemu-img")
    with serve(daemon_kind, tmp_path) as daemon:
        make(daemon, tmp_path / "shown")
        add(daemon, "top", tmp_path / "shown", cache={"direct": direct})
        daemon.ok("block_resize", **{"node-name": "top", "size": 2 * SIZE})
        where = offer(daemon, "top")
        io(tmp_path, where, "write -P 1 0 8M", "write -P 2 9M 64k", "discard 1M 1M", "flush")
        io(
            tmp_path,
            where,
            "read -P 1 0 1M",
            "read -P 0 1M 1M",
            "read -P 2 9M 64k",
            "write -z 0 4k",
        )
        mapped = run(tmp_path, "qemu-img", "map", "-f", "raw", "--output=json", where)
        assert '"start": 9437184, "length": 65536' in mapped
        daemon.ok("block-dirty-bitmap-add", node="top", name="kept", persistent=True)
        daemon.ok("query-named-block-nodes")
        # Not flushed by its writer, and the bitmap is only stored when the image is closed.
        io(tmp_path, where, "write -P 3 20M 64k")
        assert daemon.quit() == 0
    check_image(tmp_path, "image")
    assert "name: kept" in run(tmp_path, "qemu-img", "info", "image")
    out = run(tmp_path, "qemu-io", "-c", "read -P 3 20M 64k", "-c", "read -P 2 9M 64k", "image")
    assert "failed" not in out


def test_files_in_files_in_files(tmp_path: Path, daemon_kind: str) -> None:
    """More requests at once than there are threads, through three exports, and one at the end."""
    need("qemu-io", "qemu-img", "fio")
    folder = tmp_path
    with serve(daemon_kind, folder) as daemon:
        path = folder / "shown"
        for name in ("one", "two", "three"):
            make(daemon, path)
            add(daemon, name, path)
            path = folder / name
            if name != "three":
                show(daemon, name, path)
        where = offer(daemon, "three")
        run(
            folder,
            *("fio", "--name=x", "--ioengine=nbd", f"--uri={where}", "--rw=randwrite"),
            *("--bs=16k", "--iodepth=100", "--size=8m", "--verify=crc32c", "--verify_fatal=1"),
            *("--do_verify=1", "--fsync=16"),
        )
        io(folder, where, "write -P 9 12M 64k")
        assert daemon.quit() == 0
    for _ in ("one", "two"):
        check_image(folder, "image")
        run(folder, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "inner")
        (folder / "inner").rename(folder / "image")
    assert "failed" not in run(folder, "qemu-io", "-c", "read -P 9 12M 64k", "image")


def test_a_node_that_turns_writable(tmp_path: Path, daemon_kind: str) -> None:
    """The file is opened anew in the middle of a change of permissions, and by reopening."""
    need("qemu-io")
    path = str(tmp_path / "shown")
    with serve(daemon_kind, tmp_path, SIZE) as daemon:
        file = {"driver": "file", "node-name": "top", "filename": path}
        daemon.ok("blockdev-add", **file, **{"read-only": True, "auto-read-only": True})
        for _ in range(3):
            daemon.ok("blockdev-reopen", options=[{**file, "auto-read-only": True}])
            where = offer(daemon, "top")
            io(tmp_path, where, "write -P 4 4k 4k", "flush", "read -P 4 4k 4k")
            daemon.ok("block-export-del", id="nbd-top")
            daemon.event("BLOCK_EXPORT_DELETED", id="nbd-top")
            daemon.ok("blockdev-reopen", options=[{**file, "cache": {"direct": True}}])
            where = offer(daemon, "top")
            io(tmp_path, where, "write -P 5 8k 4k", "read -P 5 8k 4k")
            daemon.ok("block-export-del", id="nbd-top")
            daemon.event("BLOCK_EXPORT_DELETED", id="nbd-top")
            daemon.ok("blockdev-reopen", options=[{**file, "read-only": True}])
            fds = os.listdir(f"/proc/{daemon.process.pid}/fd")
            opened = [
                fd for fd in fds if os.path.realpath(f"/proc/{daemon.process.pid}/fd/{fd}") == path
            ]
            assert len(opened) <= 3
        # Who writes there is told that it is in use, by the locks of the present descriptor only.
        reply = daemon.qmp("blockdev-add", **{**file, "node-name": "second"})
        assert "return" in reply
        daemon.ok("blockdev-del", **{"node-name": "second"})
        daemon.ok("blockdev-del", **{"node-name": "top"})
        assert daemon.quit() == 0


def test_locks_of_the_mode_in_force(tmp_path: Path, daemon_kind: str) -> None:
    """Descriptors that are kept for later hold no locks."""
    need("qemu-io")
    with serve(daemon_kind, tmp_path, SIZE) as daemon:
        file = {"driver": "file", "node-name": "top", "filename": str(tmp_path / "shown")}
        daemon.ok("blockdev-add", **file, **{"read-only": False, "auto-read-only": True})
        where = offer(daemon, "top")
        io(tmp_path, where, "write -P 4 4k 4k")
        assert _is_write_locked(tmp_path / "shown")
        daemon.ok("block-export-del", id="nbd-top")
        daemon.event("BLOCK_EXPORT_DELETED", id="nbd-top")
        assert not _is_write_locked(tmp_path / "shown")
        assert daemon.quit() == 0


def _is_write_locked(path: Path) -> bool:
    """Tell whether somebody shows that he writes there, by a lock on byte 101."""
    flock = struct.Struct("hhqqi4x")
    with path.open("rb") as file:
        wanted = flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 101, 1, 0)
        kind: int = flock.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, wanted))[0]
    return kind != fcntl.F_UNLCK


def test_drained_sections_under_load(tmp_path: Path, daemon_kind: str) -> None:
    """What is drained together goes from the outside in: transactions look at all nodes."""
    need("fio")
    with serve(daemon_kind, tmp_path) as daemon:
        make(daemon, tmp_path / "shown")
        add(daemon, "top", tmp_path / "shown")
        where = offer(daemon, "top")
        load = subprocess.Popen(
            [
                *("fio", "--name=x", "--ioengine=nbd", f"--uri={where}", "--rw=randrw"),
                *("--bs=4k", "--iodepth=32", "--size=8m", "--time_based", "--runtime=4"),
            ],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
        try:
            rounds = 0
            while load.poll() is None:
                rounds += 1
                bitmap = {"node": "top", "name": f"b{rounds}"}
                action = {"type": "block-dirty-bitmap-add", "data": bitmap}
                snapshot = {
                    "type": "blockdev-snapshot-internal-sync",
                    "data": {"device": "top", "name": f"s{rounds}"},
                }
                daemon.ok("transaction", actions=[action, snapshot])
                daemon.ok("block-dirty-bitmap-remove", node="top", name=f"b{rounds}")
                time.sleep(0.1)
            assert load.returncode == 0
            assert rounds > 2
        finally:
            load.kill()
            load.wait()
        assert daemon.quit() == 0
    check_image(tmp_path, "image")


def test_jobs_and_names(tmp_path: Path, daemon_kind: str) -> None:
    """The file as target of jobs and as backing file that an image names."""
    need("qemu-img", "qemu-io")
    data = random.Random(5).randbytes(2 * MIB)
    (tmp_path / "source").write_bytes(data + bytes(SIZE - len(data)))
    with serve(daemon_kind, tmp_path) as daemon:
        shown = tmp_path / "shown"
        source = {"driver": "file", "node-name": "source", "filename": str(tmp_path / "source")}
        daemon.ok("blockdev-add", **source)
        make(daemon, shown)
        add(daemon, "top", shown)
        daemon.ok(
            "blockdev-backup",
            **{"job-id": "j", "device": "source", "target": "top", "sync": "full"},
            **{"auto-dismiss": False},
        )
        daemon.job("j")
        where = offer(daemon, "top")
        daemon.ok(
            "blockdev-snapshot-sync",
            **{"node-name": "top", "snapshot-file": str(tmp_path / "overlay")},
            **{"snapshot-node-name": "over"},
        )
        io(tmp_path, where, "write -P 8 15M 64k")
        daemon.ok("block-commit", **{"job-id": "c", "device": "over", "auto-dismiss": False})
        daemon.event("BLOCK_JOB_READY", device="c")
        daemon.ok("block-job-complete", device="c")
        daemon.job("c")
        daemon.ok("block-export-del", id="nbd-top", mode="hard")
        daemon.event("BLOCK_EXPORT_DELETED", id="nbd-top")
        daemon.ok("blockdev-del", **{"node-name": "top"})
        # Now by the name that the overlay records, format and all.
        run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", str(shown), *_LATER)
        add(daemon, "again", tmp_path / "later")
        out = io(tmp_path, offer(daemon, "again"), "read -P 8 15M 64k")
        assert "read 65536/65536" in out
        assert daemon.quit() == 0
    check_image(tmp_path, "image")
    run(tmp_path, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "raw")
    assert (tmp_path / "raw").read_bytes()[: len(data)] == data


_LATER = ("-F", "qcow2", "later", str(SIZE))


def test_a_daemon_that_is_killed_while_it_waits_for_itself(
    tmp_path: Path, daemon_kind: str
) -> None:
    """A thread whose request was taken can only be let go by whoever took it."""
    need("qemu-io")
    (tmp_path / "slow").touch()
    slowly = ("--object", "throttle-group,id=slow,limits.iops-total=1")
    below = ("--blockdev", "throttle,node-name=slow,throttle-group=slow,file=low")
    with serve(
        daemon_kind, tmp_path, SIZE, *slowly, *below, *export("slow", tmp_path / "slow")
    ) as daemon:
        file = {"driver": "file", "node-name": "top", "filename": str(tmp_path / "slow")}
        daemon.ok("blockdev-add", **file)
        where = offer(daemon, "top")
        writes = ["qemu-io", "-f", "raw", "-c", "aio_write 0 4k", "-c", "aio_write 1M 4k"]
        writes += ["-c", "aio_write 2M 4k", "-c", "aio_flush"]
        with subprocess.Popen([*writes, where], cwd=tmp_path, stdout=subprocess.DEVNULL) as load:
            status = Path(f"/proc/{daemon.process.pid}/task")
            while not any("request_wait_answer" in _place(task) for task in status.iterdir()):
                assert load.poll() is None
                time.sleep(0.01)
            daemon.process.kill()
            assert daemon.process.wait(20) == -signal.SIGKILL
            load.kill()


def _place(task: Path) -> str:
    """Return where in the kernel a thread waits."""
    try:
        return (task / "wchan").read_text()
    except OSError:
        return ""  # it has just ended


@pytest.mark.parametrize("how", ["export", "umount", "kill"])
def test_the_export_goes_first(tmp_path: Path, daemon_kind: str, how: str) -> None:
    """The image is lost then, but nobody waits for ever."""
    need("qemu-io")
    with serve(daemon_kind, tmp_path) as daemon:
        make(daemon, tmp_path / "shown")
        add(daemon, "top", tmp_path / "shown")
        where = offer(daemon, "top")
        io(tmp_path, where, "write -P 4 0 64k", "flush")
        if how == "export":
            daemon.ok("block-export-del", id="fuse-low")
            daemon.event("BLOCK_EXPORT_DELETED", id="fuse-low")
            writing = ("qemu-io", "-f", "raw", "-c", "write -P 5 1M 64k", "-c", "flush", where)
            assert "failed" in run(tmp_path, *writing, check=False)
        elif how == "umount":
            run(tmp_path, "umount", "-l", "shown")
            io(tmp_path, where, "write -P 5 1M 64k", "flush", "read -P 5 1M 64k")
        daemon.ok("query-named-block-nodes")
        if how == "kill":
            load = shlex.split(f"qemu-io -f raw -c 'aio_write -P 5 1M 8M' {where}")
            with subprocess.Popen(load, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
                daemon.kill()
                process.kill()
        else:
            assert daemon.quit() == 0
    check_image(tmp_path, "image", leaks=True)
