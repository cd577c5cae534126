# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of fio on a mounted node.

Direct requests reach the daemon one by one and as large as they are.  Requests through the page
cache reach it as the kernel cuts them: readahead asks for 128 KiB at a time, and a write comes
when the program makes it.  The mount is made anew for every run, so that its pages are not cached,
while those of the image are.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered


def _mount(side: list[str], folder: Path, image: str) -> tuple[Daemon, Path]:
    """Start a daemon that shows an image as a file, and return both."""
    point = folder / f"mounted.{image}"
    # A run that was killed leaves its mount behind.
    subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
    point.touch()
    fmt = "raw" if image.endswith(".raw") else "qcow2"
    daemon = Daemon(
        side,
        folder,
        *("--blockdev", f"file,node-name=file,filename={image}"),
        *("--blockdev", f"{fmt},node-name=top,file=file"),
        *("--export", f"fuse,id=e,node-name=top,mountpoint={point},writable=on"),
    )
    return daemon, point


def fio_on(image: str, pattern: str, block: str, depth: int = 1, *, direct: bool = True) -> Run:
    """Make a workload of fio on a mounted image that is in the page cache.

    Args:
        image: Name of the image.
        pattern: fio's `rw`.
        block: fio's `bs`.
        depth: Requests in flight: 1 is one thread that waits for each, more go through io_uring.
        direct: Whether the mounted file's own page cache is left out.  With it the file is gone
            through once, since the second time the daemon would not be asked.
    """

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, image))
        daemon, point = _mount(side, folder, image)
        command = [
            *("fio", "--name=bench", f"--filename={point}", f"--rw={pattern}", f"--bs={block}"),
            *(["--ioengine=psync"] if depth == 1 else ["--ioengine=io_uring"]),
            *(f"--iodepth={depth}", f"--direct={int(direct)}", "--size=1G"),
            *("--allow_file_create=0", "--output-format=json"),
        ]
        if direct:
            command += ["--time_based", f"--runtime={seconds}"]
        with daemon:
            return metered(daemon, lambda: clients.finish_fio(clients.spawn(folder, command)))

    return run


def rows() -> list[tuple[str, Run, float]]:
    """Return name, measurement and wanted ratio of all workloads."""
    return [
        row
        for kind in ("raw", "qcow2")
        for row in (
            (f"FUSE {kind} 4k random read one thread", _4k(kind, "randread", 1), 1.5),
            (f"FUSE {kind} 4k random read QD32", _4k(kind, "randread", 32), 1.5),
            (f"FUSE {kind} 4k random write QD32", _4k(kind, "randwrite", 32), 1.5),
            (f"FUSE {kind} 1M sequential read", _1m(kind, "read", direct=False), 2),
            (f"FUSE {kind} 1M sequential write", _1m(kind, "write", direct=False), 2),
            (f"FUSE {kind} 1M sequential read direct", _1m(kind, "read", direct=True), 2),
            (f"FUSE {kind} 1M sequential write direct", _1m(kind, "write", direct=True), 2),
        )
    ]


def _4k(kind: str, pattern: str, depth: int) -> Run:
    return fio_on(f"full.{kind}", pattern, "4k", depth)


def _1m(kind: str, pattern: str, *, direct: bool) -> Run:
    return fio_on(f"full.{kind}", pattern, "1M", direct=direct)
