# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The clients that put load on a daemon: fio, nbdcopy, nbdinfo, qemu-img, and plain QMP."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import NamedTuple


class Load(NamedTuple):
    """What a client did.

    Attributes:
        rate: Operations per second.
        operations: How many there were in all.
        p99_us: 99 of 100 operations took at most so many microseconds; 0 if nobody looked.
    """

    rate: float
    operations: int
    p99_us: float = 0.0


def start_fio(
    folder: Path, uri: str, pattern: str, block: str, depth: int, **more: object
) -> subprocess.Popen[str]:
    """Start fio's nbd engine.

    Args:
        folder: Where to run.
        uri: NBD URI.
        pattern: fio's `rw`.
        block: fio's `bs`.
        depth: Requests in flight per job.
        more: Further fio options; `seconds` makes the run time based.
    """
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={pattern}",
        f"--bs={block}",
        f"--iodepth={depth}",
        "--group_reporting",
        "--output-format=json",
        "--randrepeat=1",
        "--refill_buffers=0",
    ]
    seconds = more.pop("seconds", None)
    if seconds is not None:
        command += ["--time_based", f"--runtime={seconds}"]
    command += [f"--{key}={value}" for key, value in more.items()]
    return spawn(folder, command)


def spawn(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """Start a command whose output is wanted."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_fio(process: subprocess.Popen[str]) -> Load:
    """Wait for fio and return what all its jobs did together.

    Raises:
        RuntimeError: It failed.
    """
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors or output)
    result = json.loads(output[output.index("{") :])["jobs"][0]
    sides = [result[side] for side in ("read", "write") if result[side]["total_ios"]]
    return Load(
        sum(side["iops"] for side in sides),
        sum(side["total_ios"] for side in sides),
        max(side["clat_ns"]["percentile"]["99.000000"] for side in sides) / 1000,
    )


def fio(folder: Path, uri: str, pattern: str, block: str, depth: int, **more: object) -> Load:
    """Run fio's nbd engine from start to end; see :func:`start_fio`."""
    return finish_fio(start_fio(folder, uri, pattern, block, depth, **more))


def timed(folder: Path, *command: str) -> Load:
    """Run a command once."""
    before = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return Load(1 / (time.perf_counter() - before), 1)


def warm(*files: Path) -> None:
    """Read files into the page cache."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(8 << 20):
                pass


def cool(*files: Path) -> None:
    """Drop files from the page cache."""
    import os

    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
