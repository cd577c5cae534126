# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Persistent bitmaps: through a restart, and through a crash."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
URI = "nbd+unix:///disk?socket=nbd.sock"
SERVER = ("--nbd-server", "addr.type=unix,addr.path=nbd.sock")


def file(name: str) -> dict[str, str]:
    return {"driver": "file", "filename": name}


def open_disk(h: Story, *, read_only: bool = False) -> None:
    """Open the disk, and serve it to be written."""
    h.qmp(
        "blockdev-add",
        driver="qcow2",
        node_name="disk",
        read_only=read_only,
        file=file("disk.qcow2"),
    )
    if not read_only:
        h.qmp("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)


def bitmaps(h: Story) -> None:
    """Write down the disk's bitmaps, in the order of their names."""
    (node,) = (n for n in h.daemon.ok("query-named-block-nodes") if n["node-name"] == "disk")
    for bitmap in sorted(node.get("dirty-bitmaps", []), key=lambda bitmap: str(bitmap["name"])):
        h.show(bitmap)


def sum_of(h: Story, name: str) -> None:
    h.qmp("x-debug-block-dirty-bitmap-sha256", node="disk", name=name)


def stored(h: Story) -> None:
    """Write down what the image itself says."""
    h.run("qemu-img", "info", "-U", "disk.qcow2", only=r"bitmaps|flags|\[|name:|granularity")


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "8M")
    h.start(*SERVER)
    open_disk(h)
    add = "block-dirty-bitmap-add"
    h.qmp(add, node="disk", name="kept", persistent=True)
    h.qmp(add, node="disk", name="fine", persistent=True, granularity=4096)
    h.qmp(add, node="disk", name="still", persistent=True)
    h.qmp(add, node="disk", name="lost")
    h.io(URI, "write -P 1 0 100k", "write -P 2 3M 1000")
    h.qmp("block-dirty-bitmap-disable", node="disk", name="still")
    h.io(URI, "write -P 3 5M 64k")
    bitmaps(h)
    for name in ("kept", "fine", "still"):
        sum_of(h, name)
    h.restart(*SERVER)

    h.heading("After an orderly end all is as it was; what is disabled stays so")
    stored(h)
    open_disk(h)
    bitmaps(h)
    for name in ("kept", "fine", "still"):
        sum_of(h, name)
    stored(h)
    h.io(URI, "write -P 4 1M 64k")
    h.qmp("block-dirty-bitmap-remove", node="disk", name="fine")
    h.qmp("block-dirty-bitmap-clear", node="disk", name="still")
    bitmaps(h)
    h.restart(*SERVER)

    h.heading("Opened for reading they can be looked at, not changed")
    open_disk(h, read_only=True)
    bitmaps(h)
    h.qmp("block-dirty-bitmap-clear", node="disk", name="kept")
    h.qmp("block-dirty-bitmap-remove", node="disk", name="kept")
    h.qmp("block-dirty-bitmap-merge", node="disk", target="kept", bitmaps=["still"])
    h.qmp("block-dirty-bitmap-add", node="disk", name="more", persistent=True)
    h.qmp("block-export-add", type="nbd", id="look", node_name="disk", bitmaps=["kept"])
    h.run("qemu-img", "map", "--output=json", "--image-opts",
          "driver=nbd,server.type=unix,server.path=nbd.sock,export=disk,"
          "x-dirty-bitmap=qemu:dirty-bitmap:kept")  # fmt: skip
    h.restart(*SERVER)

    h.heading("After a crash they are not to be trusted")
    open_disk(h)
    h.io(URI, "write -P 5 2M 64k", "flush")
    h.crash(*SERVER)
    stored(h)
    open_disk(h)
    bitmaps(h)
    where = {"node": "disk", "name": "kept"}
    for verb in ("enable", "disable", "clear"):
        h.qmp(f"block-dirty-bitmap-{verb}", where)
    sum_of(h, "kept")
    h.qmp("block-dirty-bitmap-merge", node="disk", target="kept", bitmaps=["still"])
    h.qmp("block-dirty-bitmap-add", node="disk", name="new", persistent=True)
    h.qmp("block-dirty-bitmap-merge", node="disk", target="new", bitmaps=["kept"])
    h.qmp("block-dirty-bitmap-add", node="disk", name="kept", persistent=True)
    h.qmp("block-export-add", type="nbd", id="b", name="b", node_name="disk", bitmaps=["kept"])
    h.qmp(
        "blockdev-backup",
        job_id="j",
        device="disk",
        target="disk",
        sync="incremental",
        bitmap="kept",
    )

    h.heading("But to be removed, and made anew")
    h.qmp("block-dirty-bitmap-remove", where)
    h.qmp("block-dirty-bitmap-add", node="disk", name="kept", persistent=True)
    h.io(URI, "write -P 6 4M 64k")
    bitmaps(h)
    h.restart(*SERVER)
    stored(h)
    open_disk(h)
    bitmaps(h)
    for name in ("kept", "new", "still"):
        h.qmp("block-dirty-bitmap-remove", node="disk", name=name)
    h.quit()
    stored(h)
    h.run("qemu-img", "check", "-q", "disk.qcow2")
