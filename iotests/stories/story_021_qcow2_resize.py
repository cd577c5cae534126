# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Growing and shrinking images under the daemon."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")


def size(h: Story) -> None:
    h.qmp("query-named-block-nodes", flat=True, show="node-name,image.virtual-size")


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "2M")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 2M", "disk.qcow2")
    h.start(
        *("--blockdev", "file,node-name=file,filename=disk.qcow2"),
        *("--blockdev", "qcow2,node-name=disk,file=file"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
    )
    size(h)
    h.heading("Growing reads as zeroes; shrinking drops what is beyond")
    h.qmp("block_resize", node_name="disk", size=4 << 20)
    size(h)
    h.qmp("block_resize", node_name="disk", size=1 << 20)
    h.qmp("block_resize", node_name="disk", size=3 << 20)
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk", writable=True)
    h.io(
        "nbd+unix:///disk?socket=nbd.sock",
        *("read -P 5 0 1M", "read -P 0 1M 2M", "write -P 6 2M 1M", "read -P 6 2M 1M"),
    )
    h.heading("What cannot be")
    h.qmp("block_resize", node_name="disk", size=8 << 20)
    h.qmp("block-export-del", id="x")
    h.event("BLOCK_EXPORT_DELETED")
    h.qmp("block_resize", node_name="disk", size=1000)
    h.qmp("block_resize", node_name="disk", size=-1)
    h.qmp("block_resize", node_name="disk", size=1 << 62)
    h.qmp("block_resize", node_name="missing", size=512)
    h.qmp("block_resize", size=512)
    h.quit()
    h.run("qemu-img", "info", "-f", "qcow2", "disk.qcow2", only="virtual")
    h.run("qemu-img", "check", "-f", "qcow2", "disk.qcow2", only="No errors|leaked|error")
