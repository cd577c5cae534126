# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Random commands, with clients at work: every one is answered, and nothing breaks.

A failure names the seed; ``QSD_SEEDS=1000-1100`` plays others than usual.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.random_commands import Author
from iotests.harness.tools import check_image, need, run, unmount_below

pytestmark = [pytest.mark.slow, pytest.mark.interop]

COMMANDS = 500
FILES = ("a.raw", "b.qcow2", "c.qcow2", "d.qcow2", "new.qcow2", "new.raw")
#: What clients do to an export; it may be gone, or somebody else's.
WORK = ("read 0 64k", "write 0 64k", "write -z 0 1M", "discard 0 1M", "flush")


def seeds() -> range:
    first, _, last = os.environ.get("QSD_SEEDS", "0-2").partition("-")
    return range(int(first), int(last or first) + 1)


def images(folder: Path) -> None:
    """Make what commands may open, and "kept.qcow2", which only a node of that name shows."""
    run(folder, "qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M")
    for name, size in (("b", "1M"), ("d", "2M"), ("kept", "4M")):
        run(folder, "qemu-img", "create", "-q", "-f", "qcow2", f"{name}.qcow2", size)
    run(
        folder,
        *("qemu-img", "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2"),
        *("-o", "cluster_size=4k", "c.qcow2"),
    )
    (folder / "mount").touch()


def client(source: random.Random, folder: Path) -> subprocess.Popen[bytes]:
    """Start a client of some export."""
    export = source.choice(("kept", "n0", "n1", "n2", "bm0", "x"))
    work = source.choice(WORK)
    return subprocess.Popen(
        ["qemu-io", "-f", "raw", "-c", work, f"nbd+unix:///{export}?socket=nbd.sock"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def begin(daemon: Daemon) -> None:
    """Give commands something to begin with."""
    for name, driver, filename in (
        ("n0", "raw", "a.raw"),
        ("n1", "qcow2", "c.qcow2"),
        ("n2", "qcow2", "d.qcow2"),
        ("kept", "qcow2", "kept.qcow2"),
    ):
        file = {"driver": "file", "filename": filename}
        daemon.ok("blockdev-add", driver=driver, node_name=name, file=file)
        daemon.ok("block-export-add", id=name, type="nbd", node_name=name, writable=True)
    daemon.ok("block-dirty-bitmap-add", node="kept", name="bm0", persistent=True)


@pytest.mark.parametrize("seed", seeds())
def test_random_commands(seed: int, tmp_path: Path, daemon_kind: str) -> None:
    if daemon_kind == "real":
        pytest.skip("the C daemon looks after itself")
    need("qemu-img", "qemu-io")
    images(tmp_path)
    source = random.Random(seed)
    clients: list[subprocess.Popen[bytes]] = []
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--object", "secret,id=secret0,data=open"),
        *("--object", "throttle-group,id=group0,x-iops-total=100000"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
    ) as daemon:
        try:
            begin(daemon)
            author = Author(daemon.ok("query-qmp-schema"), FILES, seed)
            for _ in range(COMMANDS):
                name, arguments = author.command()
                reply = daemon.qmp(name, **arguments)
                assert "return" in reply or reply["error"]["class"]
                if source.random() < 0.03:
                    clients.append(client(source, tmp_path))
            assert daemon.quit() == 0
            log = daemon.log_text()
            assert "nternal error" not in log
            assert "Traceback" not in log
        finally:
            for process in clients:
                process.kill()
                process.wait()
            unmount_below(tmp_path)
    check_image(tmp_path, "kept.qcow2")
