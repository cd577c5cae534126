# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The images that workloads run on; made once per run by qemu-img and qemu-io."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

SIZE = "1G"


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def create(folder: Path, name: str, *options: str, size: str = SIZE) -> Path:
    """Make an empty qcow2 image."""
    _run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *options, name, size)
    return folder / name


def use_memory() -> None:
    """Let the machine have used as much memory as a new image takes.

    The first use of a page of a virtual machine costs a page fault of the host, and whoever is
    measured first would pay for it.
    """
    with mmap.mmap(-1, 1 << 30) as memory:
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1


def ensure(folder: Path, name: str) -> Path:
    """Make one of the named images unless it exists."""
    path = folder / name
    if path.exists():
        return path
    if name == "full.raw":
        _run(folder, "qemu-img", "create", "-q", "-f", "raw", name, SIZE)
        _run(folder, "qemu-io", "-f", "raw", "-c", f"write -P 7 0 {SIZE}", name)
    elif name == "full.qcow2":
        create(folder, name)
        _run(folder, "qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {SIZE}", name)
    elif name == "sparse.raw":
        _run(folder, "qemu-img", "create", "-q", "-f", "raw", name, "4G")
        _make_holes(path)
    elif name == "fragmented.qcow2":
        create(folder, name, size="10G")
        _fragment(folder, name)
    else:
        raise ValueError(name)
    return path


def _make_holes(path: Path) -> None:
    """Write every other 64 KiB of the first 1 GiB."""
    with path.open("r+b") as file:
        for offset in range(0, 1 << 30, 128 << 10):
            os.pwrite(file.fileno(), b"x" * (64 << 10), offset)


def _fragment(folder: Path, name: str) -> None:
    """Write every other cluster of the first 2 GiB and a few beyond."""
    commands = [f"write -P 1 {index * 128}k 64k" for index in range(16384)]
    commands += [f"write -P 1 {2 + index * 1}G 64k" for index in range(1, 8)]
    text = "\n".join(commands)
    subprocess.run(
        ["qemu-io", "-t", "writeback", "-f", "qcow2", name],
        cwd=folder,
        check=True,
        input=text,
        text=True,
        stdout=subprocess.DEVNULL,
    )
