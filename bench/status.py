# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of block status: maps of chains, of what is allocated where, and of bitmaps."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered

_URI = "nbd+unix:///x?socket=nbd.sock"


def _overlay(folder: Path) -> Path:
    """Make an empty image over a fragmented one."""
    base = images.ensure(folder, "fragmented.qcow2")
    clients.warm(base)
    path = folder / "over.qcow2"
    if not path.exists():
        images.create(folder, path.name, "-b", base.name, "-F", "qcow2", size="10G")
    return path


def _fragmented(folder: Path) -> Path:
    path = images.ensure(folder, "fragmented.qcow2")
    clients.warm(path)
    return path


def _with_bitmap(folder: Path) -> Path:
    """Make an image whose bitmap has every other granule of the first 2 GiB set."""
    path = folder / "bitmap.qcow2"
    if not path.exists():
        images.create(folder, path.name, size="10G")
        bitmap = ["qemu-img", "bitmap", "-g", "64k"]
        subprocess.run([*bitmap, "--add", path, "b"], check=True)
        subprocess.run(
            ["qemu-io", "-t", "writeback", "-f", "qcow2", path],
            check=True,
            input="\n".join(f"write -z {index * 128}k 64k" for index in range(16384)),
            text=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run(["qemu-img", "bitmap", "--disable", path, "b"], check=True)
    return path


def _serve(side: list[str], folder: Path, path: Path, more: str) -> Daemon:
    """Export an image with its depths."""
    (folder / "nbd.sock").unlink(missing_ok=True)
    return Daemon(
        side,
        folder,
        "--blockdev",
        f"qcow2,node-name=top,file.driver=file,file.filename={path.name}",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        f"nbd,id=e,node-name=top,name=x,allocation-depth=on{more}",
    )


def _map(kind: str, context: str) -> Run:
    """Make a workload of one map of a metadata context."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        path = {"over": _overlay, "plain": _fragmented, "bitmap": _with_bitmap}[kind](folder)
        with _serve(side, folder, path, ",bitmaps.0=b" if kind == "bitmap" else "") as daemon:
            words = ("nbdinfo", f"--map={context}", _URI)
            return metered(daemon, lambda: clients.timed(folder, *words))

    return run


#: Asks for all contexts with one connection, and for as many extents as it gets.
_ASK_FOR_ALL = """
import sys
import nbd

client = nbd.NBD()
for context in sys.argv[2:]:
    client.add_meta_context(context)
client.connect_uri(sys.argv[1])
assert all(map(client.can_meta_context, sys.argv[2:]))
size, told = client.get_size(), {}

def note(context, offset, extents, error):
    told[context] = offset + sum(extents[::2])

position = 0
while position < size:
    told.clear()
    client.block_status(min(size - position, 0xFFFF0000), position, note)
    position = min(told.values())
"""


def _map_all(side: list[str], folder: Path, seconds: float) -> Figure:
    """Map three contexts at once: content, allocation depth, and a bitmap."""
    path = _with_bitmap(folder)
    contexts = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b")
    with _serve(side, folder, path, ",bitmaps.0=b") as daemon:
        words = ("/usr/bin/python3", "-c", _ASK_FOR_ALL, _URI, *contexts)
        return metered(daemon, lambda: clients.timed(folder, *words))


def rows() -> list[tuple[str, Run]]:
    """Return names and workloads."""
    return [
        ("block status over a backing file", _map("over", "base:allocation")),
        ("allocation depth of a fragmented image", _map("plain", "qemu:allocation-depth")),
        ("allocation depth over a backing file", _map("over", "qemu:allocation-depth")),
        ("dirty bitmap of 16384 areas", _map("bitmap", "qemu:dirty-bitmap:b")),
        ("three contexts at once", _map_all),
    ]
