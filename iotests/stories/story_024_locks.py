# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Two daemons and qemu-img keep each other from ruining an image."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img",)


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    path = str(h.folder / "disk.qcow2")
    file = {"driver": "file", "filename": path}
    first = h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    second = h.start()

    h.heading("The first one writes")
    h.use(first)
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file)
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk", writable=True)
    h.heading("The second may neither write nor read, unless it takes the risk")
    h.use(second)
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file)
    h.qmp("blockdev-add", {"read-only": True}, driver="qcow2", node_name="disk", file=file)
    h.qmp(
        "blockdev-add",
        {"read-only": True, "force-share": True},
        driver="qcow2",
        node_name="disk",
        file=file,
    )
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", {"force-share": True}, driver="qcow2", node_name="disk", file=file)
    h.heading("Nor may qemu-img")
    h.run("qemu-img", "info", path, only="lock|Is another")
    h.run("qemu-img", "info", "-U", path, only="virtual size")
    h.run("qemu-img", "resize", "-f", "qcow2", path, "2M", only="lock|Is another")

    h.heading("Readers share")
    h.use(first)
    h.qmp("block-export-del", id="x")
    h.event("BLOCK_EXPORT_DELETED")
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", {"read-only": True}, driver="qcow2", node_name="disk", file=file)
    h.use(second)
    h.qmp("blockdev-add", {"read-only": True}, driver="qcow2", node_name="disk", file=file)
    h.run("qemu-img", "info", path, only="virtual size")
    h.run("qemu-img", "resize", "-f", "qcow2", path, "2M", only="lock|Is another")

    h.heading("Whoever was first to write is in the others' way until it ends")
    h.qmp("blockdev-del", node_name="disk")
    h.use(first)
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file)
    h.use(second)
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file)
    h.use(first)
    h.quit()
    h.use(second)
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file)
    h.qmp("blockdev-del", node_name="disk")

    h.heading("Locking can be switched off")
    h.qmp("blockdev-add", driver="file", node_name="a", filename=path, locking="off")
    h.run("qemu-img", "resize", "-q", "-f", "qcow2", path, "2M")
    h.quit()
