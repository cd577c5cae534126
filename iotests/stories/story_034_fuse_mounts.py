# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The life of FUSE exports: what they can be mounted on, and all the ways in which they end."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iotests.harness.story import Story


def mounts(h: Story) -> None:
    h.say("mounts", Path("/proc/mounts").read_text().count(str(h.folder)))


def content(h: Story, name: str) -> None:
    h.say(name, "has", (h.folder / name).read_bytes()[:5], (h.folder / name).stat().st_size)


def add(h: Story, name: str, mountpoint: str, **more: object) -> None:
    export = {"type": "fuse", "id": name, "node-name": "n", "mountpoint": mountpoint, **more}
    h.qmp("block-export-add", export)


def delete(h: Story, name: str, **more: object) -> None:
    h.qmp("block-export-del", id=name, **more)
    h.event("BLOCK_EXPORT_DELETED", id=name)


def use(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def story(h: Story) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and FUSE")
    try:
        tell(h)
    finally:
        for name in ("first", "second", "image"):  # in case that it ended too soon
            subprocess.run(["umount", "-q", "-l", h.folder / name], check=False)


def tell(h: Story) -> None:
    (h.folder / "image").write_bytes(b"image".ljust(1 << 20, b"\0"))
    for name in ("first", "second"):
        (h.folder / name).write_bytes(b"below")
    (h.folder / "link").symlink_to("second")
    h.start("--blockdev", "file,node-name=n,filename=image")

    h.heading("places that are refused")
    for place in ("", "missing", ".", "first/x", "/dev/null"):
        add(h, "e", place)
    h.heading("several at once, one through a link, one over the image itself")
    add(h, "a", "first", writable=True)
    add(h, "a", "second")
    add(h, "b", "first")
    add(h, "b", str(h.folder / "link"))
    add(h, "c", "image")
    for name in ("first", "second", "image"):
        content(h, name)
    mounts(h)
    h.qmp("query-block-exports", show="id,type,node-name,shutting-down")
    h.heading("what one writes the others read")
    with (h.folder / "first").open("r+b") as file:
        file.write(b"fresh")
    for name in ("second", "image"):
        content(h, name)
    h.heading("an open file keeps nothing alive, whether the end is soft or hard")
    h.qmp("blockdev-del", node_name="n")
    for name, place, mode in (("a", "first", "safe"), ("b", "second", "hard")):
        fd = os.open(h.folder / place, os.O_RDONLY)
        delete(h, name, mode=mode)
        content(h, place)
        h.say("read", use(os.pread, fd, 1, 0))
        h.say("close", use(os.close, fd))
    delete(h, "c")
    mounts(h)
    h.heading("unmounted by somebody else, the export stays")
    add(h, "a", "first")
    subprocess.run(["umount", h.folder / "first"], check=True)
    content(h, "first")
    h.qmp("query-block-exports", show="id,shutting-down")
    add(h, "b", "first")
    delete(h, "a")
    add(h, "b", "first")
    h.heading("unmounted lazily, an open file is served on")
    fd = os.open(h.folder / "first", os.O_RDONLY)
    subprocess.run(["umount", "-l", h.folder / "first"], check=True)
    h.say(os.pread(fd, 5, 0))
    os.close(fd)
    delete(h, "b")
    h.heading("nodes that keep their length")
    h.qmp("blockdev-add", driver="raw", node_name="window", file="n", size=4096)
    h.qmp("blockdev-add", driver="null-co", node_name="null", size=8192)
    for node in ("window", "null"):
        add(h, "a", "first", writable=True, growable=True, **{"node-name": node})
        path = h.folder / "first"
        h.say("blocks", path.stat().st_blocks, path.stat().st_blksize)
        for length in (10000, 16384, 512, 100, 0):
            h.say("truncate", length, use(os.truncate, path, length), path.stat().st_size)
        fd = os.open(path, os.O_RDWR)
        for offset in (0, 4000, 4096, 10000, 16384):
            h.say("write", offset, use(os.pwrite, fd, b"x" * 512, offset))
        os.close(fd)
        delete(h, "a")
    h.heading("the end of the daemon")
    add(h, "a", "first")
    add(h, "b", str(h.folder / "second"))
    h.quit()
    mounts(h)
    content(h, "first")
