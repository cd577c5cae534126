# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of dirty bitmaps: what recording costs the writes, and how much memory it takes.

Compare "raw 4k random write QD32, bitmap" with "raw 4k random write QD32".
"""

from __future__ import annotations

from pathlib import Path

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered

_URI = "nbd+unix:///x?socket=nbd.sock"
_LARGE = 16 << 40


def _serve(side: list[str], folder: Path, *nodes: str) -> Daemon:
    """Start a daemon that exports the node "top" as "x"."""
    (folder / "nbd.sock").unlink(missing_ok=True)
    blockdevs = [word for node in nodes for word in ("--blockdev", node)]
    return Daemon(
        side, folder, *blockdevs, "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
        "--export", "nbd,id=e,node-name=top,name=x,writable=on",
    )  # fmt: skip


def recording(kind: str, granularity: int) -> Run:
    """Make a workload of random writes to a node with a bitmap."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        path = images.ensure(folder, f"full.{kind}")
        clients.warm(path)
        file = f"file,node-name=file,filename={path.name}"
        try:
            with _serve(side, folder, file, f"{kind},node-name=top,file=file") as daemon:
                daemon.qmp("block-dirty-bitmap-add", node="top", name="b", granularity=granularity)
                return metered(
                    daemon,
                    lambda: clients.fio(folder, _URI, "randwrite", "4k", 32, seconds=seconds),
                )
        finally:
            clients.cool(path)  # as after all writes, see bench.workloads

    return run


def memory(granularity: int) -> Run:
    """Make a workload that tells what scattered dirty granules of 16 TiB take, as 1/MiB."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        with _serve(side, folder, f"null-co,node-name=top,size={_LARGE}") as daemon:
            # What commands and buffers take once is not the bitmap's.
            daemon.qmp("block-dirty-bitmap-add", node="top", name="first")
            daemon.qmp("block-dirty-bitmap-remove", node="top", name="first")
            clients.fio(folder, _URI, "randwrite", "4k", 32, io_size="1m")
            before = daemon.resident()
            daemon.qmp("block-dirty-bitmap-add", node="top", name="b", granularity=granularity)
            # The same number of writes on both sides, whatever their speed.
            clients.fio(folder, _URI, "randwrite", "4k", 32, io_size="256m")
            return Figure(2**20 / max(daemon.resident() - before, 4096))

    return run


def rows() -> list[tuple[str, Run, str, float]]:
    """Return (name, workload, unit, wanted ratio) of all of them."""
    return [
        *(
            (f"{kind} 4k random write QD32, bitmap", recording(kind, 65536), "op/s", 3.0)
            for kind in ("raw", "qcow2")
        ),
        ("raw 4k random write QD32, fine bitmap", recording("raw", 512), "op/s", 3.0),
        *(
            (f"memory of a bitmap of {name} on 16 TiB", memory(granularity), "1/MiB", 1.0)
            for name, granularity in (("512 B", 512), ("64 KiB", 65536), ("64 MiB", 64 << 20))
        ),
    ]
