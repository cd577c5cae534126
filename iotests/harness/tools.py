# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The real tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

#: Where programs are looked for; tools for file systems are not on everybody's path.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def need(*tools: str) -> None:
    """Skip the running test unless all of these programs are installed."""
    for tool in tools:
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool} is not installed (scripts/test installs it where it may)")


def run(folder: Path, *command: str, check: bool = True) -> str:
    """Run a command in `folder`; return its standard output and error together."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def check_image(folder: Path, name: str, *, leaks: bool = False) -> None:
    """Let qemu-img check a qcow2 image; leaked clusters pass only where they are allowed.

    Exit codes of qemu-img(1), "check": 0 clean, 3 leaks but no corruption.
    """
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    allowed = (0, 3) if leaks else (0,)
    if done.returncode not in allowed:
        raise AssertionError(f"qemu-img check: {done.returncode}\n{done.stdout}{done.stderr}")


def unmount_below(folder: Path) -> None:
    """Unmount what a failed test left, so that its folder can be removed."""
    for line in Path("/proc/mounts").read_text().splitlines():
        point = line.split()[1]
        if point.startswith(str(folder)):
            subprocess.run(["umount", "-l", point], check=False)
