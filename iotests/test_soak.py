# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What comes and goes a thousand times leaves nothing behind: memory, descriptors, threads.

Each test warms up with a part of its rounds, so that what is made once is there, and looks at the
daemon from outside before and after the rest.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from iotests.harness.daemon import PATIENCE, Daemon
from iotests.harness.nbd import READ, WRITE, Client
from iotests.harness.tools import need, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 1 << 20
#: Bytes of resident memory that may come and go with the allocator's mood.
SLACK = 2 * MIB


class Usage(NamedTuple):
    """What a process has."""

    memory: int
    descriptors: list[str]
    threads: int


def usage(daemon: Daemon) -> Usage:
    """Return what the daemon has now."""
    process = Path(f"/proc/{daemon.process.pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    kinds = []
    for link in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            kinds.append(str(link.readlink()).partition("[")[0])
    return Usage(int(status["VmRSS"].split()[0]) << 10, sorted(kinds), int(status["Threads"]))


def settled(daemon: Daemon, sockets: int) -> Usage:
    """Return what the daemon has once it has no more sockets than that: clients' ends are noticed.

    Where they never are, the caller finds out by the descriptors.
    """
    deadline = time.monotonic() + PATIENCE
    found = usage(daemon)
    while found.descriptors.count("socket:") > sockets and time.monotonic() < deadline:
        time.sleep(0.01)
        found = usage(daemon)
    return found


def soak(daemon: Daemon, once: Callable[[int], None], rounds: int) -> None:
    """Do something many times and compare what the daemon has after a fifth and at the end."""
    sockets = usage(daemon).descriptors.count("socket:")
    for number in range(rounds // 5):
        once(number)
    before = settled(daemon, sockets)
    for number in range(rounds // 5, rounds):
        once(number)
    after = settled(daemon, sockets)
    assert after.descriptors == before.descriptors
    assert after.descriptors.count("socket:") == sockets
    assert after.threads <= before.threads + 4  # pools breathe
    assert after.memory < before.memory + SLACK


@contextmanager
def serving(which: str, folder: Path, *arguments: str) -> Iterator[Daemon]:
    """Run a daemon with an NBD server and an image; it must end in order."""
    need("qemu-img")
    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", "image", "16M")
    server = ("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    with Daemon(which, folder, *server, *arguments) as daemon:
        yield daemon
        assert daemon.quit() == 0


IMAGE = (
    *("--blockdev", "file,node-name=file,filename=image"),
    *("--blockdev", "qcow2,node-name=node,file=file"),
)
EXPORT = ("--export", "nbd,id=x,node-name=node,name=x,writable=on")


def test_nodes_and_exports(tmp_path: Path, daemon_kind: str, soak_rounds: int) -> None:
    with serving(daemon_kind, tmp_path) as daemon:

        def once(number: int) -> None:
            daemon.ok(
                "blockdev-add",
                **{"driver": "qcow2", "node-name": "node"},
                file={"driver": "file", "filename": "image"},
            )
            daemon.ok("block-export-add", type="nbd", id="x", **{"node-name": "node"})
            daemon.ok("query-named-block-nodes")
            daemon.ok("block-export-del", id="x")
            daemon.event("BLOCK_EXPORT_DELETED", id="x")
            daemon.ok("blockdev-del", **{"node-name": "node"})

        soak(daemon, once, soak_rounds)


def test_refused_commands(tmp_path: Path, daemon_kind: str, soak_rounds: int) -> None:
    """Half-done work is undone: files that do not exist, names that are taken, wrong options."""
    with serving(daemon_kind, tmp_path, *IMAGE, *EXPORT) as daemon:
        refused = [
            ("blockdev-add", {"driver": "file", "node-name": "n", "filename": "missing"}),
            ("blockdev-add", {"driver": "qcow2", "node-name": "node", "file": "file"}),
            ("blockdev-add", {"driver": "luks", "node-name": "n", "file": "node"}),
            (
                "blockdev-add",
                {"driver": "raw", "node-name": "n", "file": "node", "offset": 1 << 40},
            ),
            ("block-export-add", {"type": "nbd", "id": "x", "node-name": "node"}),
            ("blockdev-del", {"node-name": "node"}),
            ("blockdev-mirror", {"job-id": "j", "device": "node", "target": "?", "sync": "full"}),
            ("object-add", {"qom-type": "secret", "id": "s", "file": "missing"}),
        ]

        def once(number: int) -> None:
            name, arguments = refused[number % len(refused)]
            assert "error" in daemon.qmp(name, **arguments), (name, arguments)

        soak(daemon, once, soak_rounds)


def test_clients(tmp_path: Path, daemon_kind: str, soak_rounds: int) -> None:
    """Clients come, write, read, and leave in order or in the middle of something."""
    path = tmp_path / "nbd.sock"
    with serving(daemon_kind, tmp_path, *IMAGE, *EXPORT) as daemon:

        def once(number: int) -> None:
            if number % 5 == 4:
                with socket.socket(socket.AF_UNIX) as other:
                    other.connect(str(path))
                    other.recv(18 if number % 2 else 4)
                return
            client = Client(path, "x")
            client.call(WRITE, number % 256 * 65536, data=b"w" * 4096)
            client.send(READ, 1, 0, MIB if number % 8 == 0 else 4096)
            if number % 2:
                client.receive()
            client.close()

        soak(daemon, once, soak_rounds)


@pytest.mark.parametrize("kind", ["mirror", "backup", "stream", "commit"])
def test_jobs(tmp_path: Path, daemon_kind: str, kind: str, soak_rounds: int) -> None:
    """Jobs end by themselves, or are cancelled."""
    with serving(daemon_kind, tmp_path, *IMAGE) as daemon:
        run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "over", "16M")
        daemon.ok(
            "blockdev-add",
            **{"driver": "qcow2", "node-name": "top", "backing": "node"},
            file={"driver": "file", "filename": "over"},
        )
        daemon.ok("blockdev-add", driver="null-co", **{"node-name": "target", "size": 16 * MIB})
        options = {
            "mirror": {"device": "top", "target": "target", "sync": "full"},
            "backup": {"device": "top", "target": "target", "sync": "full"},
            "stream": {"device": "top"},
            "commit": {"device": "top", "top-node": "top", "base-node": "node"},
        }[kind]
        name = {"stream": "block-stream", "commit": "block-commit"}.get(kind, f"blockdev-{kind}")

        def once(number: int) -> None:
            daemon.ok(
                name,
                **{"job-id": "j", "auto-dismiss": False, "speed": number % 2 * 65536},
                **options,
            )
            daemon.qmp("job-cancel", id="j")  # it may have come to its end by itself
            daemon.event("JOB_STATUS_CHANGE", id="j", status="concluded")
            daemon.ok("job-dismiss", id="j")

        soak(daemon, once, soak_rounds)
