# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vhost-user-blk export under a random load, killed at random moments.

What was flushed must be there after a kill.  And a guest that reconnects, as QEMU's devices do,
must not notice that its disk's daemon died: all its requests end, none of them with an error.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iotests.harness.crash import Load
from iotests.harness.daemon import Daemon
from iotests.harness.guest import machine
from iotests.harness.qmp import Monitor
from iotests.harness.tools import check_image, need, run
from iotests.harness.vhost import VhostClient

pytestmark = [pytest.mark.slow, pytest.mark.interop]

SIZE = "24M"
FORMATS = {
    "raw": ["raw"],
    "qcow2": ["qcow2"],
    "small-clusters": ["qcow2", "-o", "cluster_size=4k"],
}


def serve(kind: str, folder: Path, fmt: str) -> Daemon:
    """Start a daemon that exports the image."""
    (folder / "vhost.sock").unlink(missing_ok=True)
    return Daemon(
        kind,
        folder,
        *("--blockdev", "file,node-name=file,filename=image,discard=unmap"),
        *("--blockdev", f"{fmt},node-name=top,file=file,discard=unmap"),
        "--export",
        f"vhost-user-blk,id=x,node-name=top,writable=on,num-queues=2,"
        f"addr.type=unix,addr.path={folder}/vhost.sock",
    )


def load_on(folder: Path, seed: int, revive: Callable[[], None] | None = None) -> Load:
    """Return a random load over a front end of ours."""
    path = folder / "vhost.sock"
    return Load(path, "x", seed, client=VhostClient(path, revive))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("variant", FORMATS)
def test_kill(variant: str, tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    need("qemu-img")
    fmt, *options = FORMATS[variant]
    run(tmp_path, "qemu-img", "create", "-q", "-f", fmt, *options, "image", SIZE)
    before: dict[int, bytes] = {}
    source = random.Random(variant)
    for number in range(-(-kill_rounds // len(FORMATS))):
        with serve(daemon_kind, tmp_path, fmt) as daemon:
            load = load_on(tmp_path, source.randrange(1 << 30))
            killer = threading.Timer(source.uniform(0.02, 0.6), daemon.kill)
            killer.start()
            load.run(100000, before)
            killer.join()
            load.client.close()
        before = load.verify(content(tmp_path, fmt))
        assert load.history, f"round {number} did nothing"


def content(folder: Path, fmt: str) -> bytes:
    """Return what the image holds; it must be free of errors but for leaks."""
    if fmt == "raw":
        return (folder / "image").read_bytes()
    check_image(folder, "image", leaks=True)
    run(folder, "qemu-img", "convert", "-f", fmt, "-O", "raw", "image", "after.raw")
    return (folder / "after.raw").read_bytes()


@pytest.mark.timeout(300)
def test_a_guest_outlives_its_daemons(tmp_path: Path, kill_rounds: int) -> None:
    """Writes to a raw file are in the page cache when they end, so not one of them may be lost."""
    run(tmp_path, "qemu-img", "create", "-q", "-f", "raw", "image", SIZE)
    source = random.Random(11)
    daemons = [serve("ours", tmp_path, "raw")]
    killers: list[threading.Timer] = []

    def kill_later() -> None:
        if len(killers) < max(kill_rounds // 3, 5):
            killers.append(threading.Timer(source.uniform(0.05, 0.4), daemons[-1].kill))
            killers[-1].start()

    def revive() -> None:
        killers[-1].join()
        daemons.append(serve("ours", tmp_path, "raw"))
        kill_later()

    load = load_on(tmp_path, 12, revive)
    try:
        kill_later()
        load.run(3000)
        client = load.client
        assert isinstance(client, VhostClient)
        for killer in killers:
            killer.join()
        load.settle()  # the last kill may come only now
        assert client.revivals >= 2
        assert client.revivals == len(daemons) - 1
        load.verify((tmp_path / "image").read_bytes())
    finally:
        load.client.close()
        for daemon in daemons:
            daemon.kill()


@pytest.mark.timeout(180)
def test_a_machine_migrates_away_and_back(tmp_path: Path, daemon_kind: str) -> None:
    """QEMU refuses to migrate without a log of what the disk's daemon writes."""
    need("qemu-system-x86_64", "qemu-img")
    run(tmp_path, "qemu-img", "create", "-q", "-f", "raw", "image", SIZE)
    with serve(daemon_kind, tmp_path, "raw") as daemon:
        with running_machine(tmp_path) as monitor:
            monitor.call("migrate", uri="exec:cat > state")
            migrated(monitor)
        with running_machine(tmp_path, "-incoming", "exec:cat state") as monitor:
            migrated(monitor)
            answer = monitor.call("query-status")
            assert answer["return"]["running"]
            monitor.call("migrate", uri="exec:cat > state")
            migrated(monitor)
        assert daemon.quit() == 0


@contextmanager
def running_machine(folder: Path, *arguments: str) -> Iterator[Monitor]:
    """Run a machine, on our disk, that does nothing but look for something to boot."""
    path = folder / "machine.sock"
    path.unlink(missing_ok=True)
    with machine(
        folder,
        *("-chardev", "socket,id=c,path=vhost.sock"),
        *("-device", "vhost-user-blk-pci,chardev=c,num-queues=2"),
        *("-qmp", "unix:machine.sock,server=on,wait=off"),
        *arguments,
        seconds=120,
    ) as process:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        monitor = Monitor(path)
        try:
            yield monitor
        finally:
            monitor.close()


def migrated(monitor: Monitor) -> None:
    """Wait until a migration, in or out, is over."""
    while True:
        status = monitor.call("query-migrate")["return"].get("status")
        if status == "completed":
            return
        assert status in (None, "setup", "active", "device"), status
        time.sleep(0.05)
