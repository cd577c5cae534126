# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of the NBD client: a server, the daemon as its client and as a server again, fio.

The server is the same for both daemons, and serves data from the page cache.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered

#: Command lines by kind; they serve {image} on {socket}, which a URI or a daemon connects to.
SERVERS = {
    "qemu-nbd": "qemu-nbd -t -e 8 -f {format} -k {folder}/{socket} {image}",
    "nbdkit": "nbdkit -f -U {folder}/{socket} file {image}",
    "qsd": sys.executable + " -m qsd --blockdev file,node-name=f,filename={image}"
    " --blockdev {format},node-name=top,file=f"
    " --nbd-server addr.type=unix,addr.path={socket},max-connections=0"
    " --export nbd,id=e,node-name=top,name=,writable=on",
}


@contextlib.contextmanager
def serving(folder: Path, kind: str, image: str) -> Iterator[str]:
    """Run a server of an image; yields the name of its socket in `folder`."""
    name = "server.sock"
    (folder / name).unlink(missing_ok=True)
    command = SERVERS[kind].format(
        folder=folder, socket=name, image=image, format=image.rpartition(".")[2]
    )
    process = subprocess.Popen(
        command.split(), cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not (folder / name).exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{kind} does not start")
            time.sleep(0.01)
        yield name
    finally:
        process.kill()
        process.wait()


def _daemon(side: list[str], folder: Path, server: str, top: str) -> Daemon:
    """Start a daemon that exports the server's export once more."""
    (folder / "again.sock").unlink(missing_ok=True)
    nodes = ["--blockdev", f"nbd,node-name=n,server.type=unix,server.path={server}"]
    if top != "n":
        nodes += ["--blockdev", f"raw,node-name={top},file=n"]
    return Daemon(
        side,
        folder,
        *nodes,
        *("--nbd-server", "addr.type=unix,addr.path=again.sock"),
        *("--export", f"nbd,id=e,node-name={top},name=x,writable=on"),
    )


def through(pattern: str, block: str, depth: int, *, kind: str = "qsd", top: str = "n") -> Run:
    """Make a workload of fio through the client; `top` is "n", or "r" for raw above it.

    The server is ours by default: it costs the least, so that the client shows.
    """

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, "full.raw"))
        with (
            serving(folder, kind, "full.raw") as server,
            _daemon(side, folder, server, top) as daemon,
        ):
            uri = "nbd+unix:///x?socket=again.sock"
            return metered(
                daemon, lambda: clients.fio(folder, uri, pattern, block, depth, seconds=seconds)
            )

    return run


def status_through(side: list[str], folder: Path, seconds: float) -> Figure:
    """Ask for all extents of an image in many pieces through the client."""
    clients.warm(images.ensure(folder, "fragmented.qcow2"))
    with (
        serving(folder, "qemu-nbd", "fragmented.qcow2") as server,
        _daemon(side, folder, server, "n") as daemon,
    ):
        return metered(
            daemon,
            lambda: clients.timed(folder, "nbdinfo", "--map", "nbd+unix:///x?socket=again.sock"),
        )


def rows() -> list[tuple[str, Run, float]]:
    """Return (name, workload, wanted ratio) of all of them."""
    return [
        ("nbd client 4k random read QD1", through("randread", "4k", 1), 1),
        ("nbd client 4k random read QD32", through("randread", "4k", 32), 2),
        ("nbd client 4k random write QD32", through("randwrite", "4k", 32), 2),
        ("nbd client 4k random read QD32 raw", through("randread", "4k", 32, top="r"), 2),
        ("nbd client 4k random write QD32 raw", through("randwrite", "4k", 32, top="r"), 2),
        ("nbd client 64k random read QD16", through("randread", "64k", 16), 1),
        ("nbd client 64k random write QD16", through("randwrite", "64k", 16), 1),
        ("nbd client 1M sequential read QD8", through("read", "1M", 8), 1),
        ("nbd client 1M sequential write QD8", through("write", "1M", 8), 1),
        ("nbd client block status", status_through, 1),
    ]
