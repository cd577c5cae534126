# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The clients that put load on a daemon: fio, nbdcopy, nbdinfo, qemu-img, and plain QMP."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path


def fio(folder: Path, uri: str, pattern: str, block: str, depth: int, **more: object) -> float:
    """Run fio's nbd engine and return operations per second of all its jobs together.

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
        command += ["--time_based", f"--runtime={seconds}", "--ramp_time=0.3"]
    command += [f"--{key}={value}" for key, value in more.items()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(result["read"]["iops"] + result["write"]["iops"])


def timed(folder: Path, *command: str) -> float:
    """Run a command and return how often it could run per second."""
    before = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return 1 / (time.perf_counter() - before)


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
