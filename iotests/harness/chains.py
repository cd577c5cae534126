# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A chain of three images with known content, for tests of jobs that run under a guest's load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iotests.harness.crash import SECTOR
from iotests.harness.daemon import Daemon
from iotests.harness.tools import check_image, run

SIZE = 24 << 20
_LAYERS = {
    "base": (("write -P 1 0 12M",), {0: (1, 12 << 20)}),
    "mid": (("write -P 2 4M 4M", "write -z 1M 1M"), {4 << 20: (2, 4 << 20), 1 << 20: (0, 1 << 20)}),
    "top": (("write -P 3 7M 2M",), {7 << 20: (3, 2 << 20)}),
}


def make_image(folder: Path, name: str, *options: str) -> None:
    """Create a qcow2 image."""
    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *options, name, str(SIZE))


def make_chain(folder: Path) -> dict[int, bytes]:
    """Create base <- mid <- top; return what the sectors of the chain hold."""
    content: dict[int, bytes] = dict.fromkeys(range(SIZE // SECTOR), bytes(SECTOR))
    below = ""
    for name, (commands, changes) in _LAYERS.items():
        options = ("-b", below, "-F", "qcow2") if below else ()
        make_image(folder, name, *options)
        words = [word for command in commands for word in ("-c", command)]
        run(folder, "qemu-io", "-f", "qcow2", *words, name)
        for offset, (value, length) in changes.items():
            for sector in range(offset // SECTOR, (offset + length) // SECTOR):
                content[sector] = bytes([value]) * SECTOR
        below = name
    return content


def add_image(daemon: Daemon, name: str, **more: Any) -> None:
    """Open a qcow2 image in the daemon, under its file's name."""
    daemon.ok(
        "blockdev-add",
        driver="qcow2",
        node_name=name,
        discard="unmap",
        file={"driver": "file", "filename": name, "discard": "unmap"},
        **more,
    )


def add_chain(daemon: Daemon, name: str = "top") -> None:
    """Open a chain, every image under its file's name."""
    below: str | None = None
    for layer in _LAYERS:
        add_image(daemon, layer, backing=below)
        below = layer
        if layer == name:
            return


def export(daemon: Daemon, node: str) -> None:
    """Serve a node as "x" at nbd.sock."""
    daemon.ok("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd.sock"}})
    daemon.ok("block-export-add", type="nbd", id="x", name="x", node_name=node, writable=True)


def content_of(folder: Path, name: str, *, leaks: bool = False) -> bytes:
    """Check an image and return what it shows with its backing files."""
    check_image(folder, name, leaks=leaks)
    run(folder, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "content.raw")
    return (folder / "content.raw").read_bytes()
