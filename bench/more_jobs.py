# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of jobs that are not a plain copy of one image: parts of chains, compression, images in
many pieces, guests that write meanwhile, and many jobs at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered

#: Bytes; source of compressed backups.
_TEXT_SIZE = 128 << 20
_DISKS = 300


def _node(name: str, image: str, *, backing: str | None = None) -> list[str]:
    fmt = "raw" if image.endswith(".raw") else "qcow2"
    words = f"{fmt},node-name={name},file.driver=file,file.filename={image}"
    return ["--blockdev", words + (f",backing={backing}" if backing else "")]


def _finish(daemon: Daemon, jobs: int = 1) -> None:
    """Wait until so many jobs are concluded; those that get ready are completed."""
    while jobs:
        event = daemon.event()
        if event["event"] == "BLOCK_JOB_READY":
            daemon.qmp("job-complete", id=event["data"]["device"])
        jobs -= event["data"].get("status") == "concluded"
    if failed := [job for job in daemon.qmp("query-jobs") if "error" in job]:
        raise RuntimeError(failed[0]["error"])


def _job(daemon: Daemon, command: str, **arguments: Any) -> clients.Load:
    before = time.perf_counter()
    daemon.qmp(command, job_id="j", auto_dismiss=False, **arguments)
    _finish(daemon)
    return clients.Load(1 / (time.perf_counter() - before), 1)


def _text(folder: Path) -> Path:
    """Make an image of which half can be saved."""
    path = folder / "text.raw"
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(_TEXT_SIZE >> 20):
                file.write(os.urandom(1 << 19).hex().encode())
    return path


def compressed(kind: str) -> Run:
    """Make a workload of a compressed backup of 128 MiB."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(_text(folder))
        images.create(folder, "job.qcow2", "-o", f"compression_type={kind}", size="128M")
        try:
            nodes = _node("src", "text.raw") + _node("dst", "job.qcow2")
            with Daemon(side, folder, *nodes) as daemon:
                arguments = {"device": "src", "target": "dst", "sync": "full", "compress": True}
                return metered(daemon, lambda: _job(daemon, "blockdev-backup", **arguments))
        finally:
            (folder / "job.qcow2").unlink()

    return run


def in_pieces(command: str, source: str, size: str) -> Run:
    """Make a workload of a copy of an image with many small holes to a new qcow2 image."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, source))
        images.create(folder, "job.qcow2", size=size)
        try:
            nodes = _node("src", source) + _node("dst", "job.qcow2")
            with Daemon(side, folder, *nodes) as daemon:
                arguments = {"device": "src", "target": "dst", "sync": "full"}
                return metered(daemon, lambda: _job(daemon, command, **arguments))
        finally:
            (folder / "job.qcow2").unlink()

    return run


def middle(command: str, *, top: bool = True, **arguments: str) -> Run:
    """Make a workload on a chain whose 1 GiB is in the middle: base <- mid, and <- top."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        names = ["job-base.qcow2", "job-mid.qcow2", "job-top.qcow2", "job.qcow2"]
        base, mid, overlay, target = names
        images.create(folder, base)
        shutil.copyfile(images.ensure(folder, "full.qcow2"), folder / mid)
        rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, mid]
        subprocess.run(rebase, cwd=folder, check=True)
        images.create(folder, overlay, "-b", mid, "-F", "qcow2")
        images.create(folder, target)
        clients.warm(folder / mid)
        try:
            nodes = _node("base", base) + _node("mid", mid, backing="base")
            nodes += _node("dst", target)
            if top:
                nodes += _node("top", overlay, backing="mid")
            with Daemon(side, folder, *nodes) as daemon:
                return metered(daemon, lambda: _job(daemon, command, **arguments))
        finally:
            for name in names:
                (folder / name).unlink()

    return run


def write_through_mirror(side: list[str], folder: Path, seconds: float) -> Figure:
    """Write to a node that is kept equal to a raw image by a mirror, both sides at a time."""
    for name in ("job-src.raw", "job.raw"):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "raw", name, "1G"], cwd=folder, check=True
        )
    (folder / "nbd.sock").unlink(missing_ok=True)
    server = ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"]
    export = ["--export", "nbd,id=e,node-name=src,name=x,writable=on"]
    nodes = _node("src", "job-src.raw") + _node("dst", "job.raw")
    try:
        with Daemon(side, folder, *nodes, *server, *export) as daemon:
            how = {"job_id": "j", "sync": "full", "copy_mode": "write-blocking"}
            daemon.qmp("blockdev-mirror", device="src", target="dst", **how)
            while daemon.event()["event"] != "BLOCK_JOB_READY":
                pass
            uri = "nbd+unix:///x?socket=nbd.sock"
            return metered(
                daemon,
                lambda: clients.fio(folder, uri, "randwrite", "4k", 16, seconds=seconds),
            )
    finally:
        for name in ("job-src.raw", "job.raw"):
            (folder / name).unlink()


def many_backups(side: list[str], folder: Path, seconds: float) -> Figure:
    """Back up 300 disks of 1 MiB at the same time."""
    disks = folder / "disks"
    disks.mkdir(exist_ok=True)
    nodes: list[str] = []
    for number in range(_DISKS):
        (disks / f"{number}.raw").write_bytes(bytes([number % 255 + 1]) * (1 << 20))
        (disks / f"{number}-copy.raw").write_bytes(b"")
        os.truncate(disks / f"{number}-copy.raw", 1 << 20)
        nodes += _node(f"s{number}", f"disks/{number}.raw")
        nodes += _node(f"t{number}", f"disks/{number}-copy.raw")

    def load() -> clients.Load:
        before = time.perf_counter()
        for number in range(_DISKS):
            daemon.qmp(
                "blockdev-backup",
                job_id=f"j{number}",
                device=f"s{number}",
                target=f"t{number}",
                sync="full",
            )
        _finish(daemon, _DISKS)
        return clients.Load(1 / (time.perf_counter() - before), 1)

    try:
        with Daemon(side, folder, *nodes) as daemon:
            return metered(daemon, load)
    finally:
        shutil.rmtree(disks)


def rows() -> list[tuple[str, Run, str]]:
    """Return the names, the workloads and their units."""
    below = {"base_node": "base"}
    return [
        *((f"compressed backup {kind}", compressed(kind), "run/s") for kind in ("zlib", "zstd")),
        *(
            (f"{name} of {what}", in_pieces(command, source, size), "run/s")
            for name, command in (("backup", "blockdev-backup"), ("mirror", "blockdev-mirror"))
            for what, source, size in (
                ("a fragmented image", "fragmented.qcow2", "10G"),
                ("a file with many holes", "sparse.raw", "4G"),
            )
        ),
        (
            "commit of the middle",
            middle("block-commit", device="top", top_node="mid", **below),
            "run/s",
        ),
        ("stream with a base", middle("block-stream", device="top", **below), "run/s"),
        (
            "mirror of the top layer",
            middle("blockdev-mirror", device="mid", target="dst", sync="top", top=False),
            "run/s",
        ),
        ("4k random write QD16 through a mirror", write_through_mirror, "op/s"),
        ("300 backups of 1 MiB", many_backups, "run/s"),
    ]
