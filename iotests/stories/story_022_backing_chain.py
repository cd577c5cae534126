# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A chain of images: found by itself, read through, never written below the top."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
URI = "nbd+unix:///disk?socket=nbd.sock"


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "raw", "base.raw", "1M")
    h.run("qemu-io", "-f", "raw", "-c", "write -q -P 1 0 1M", "base.raw")
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 2 256k 256k", "mid.qcow2")
    h.run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "mid.qcow2",
        "-F",
        "qcow2",
        "top.qcow2",
        "2M",
    )

    h.heading("The image's own record opens the chain")
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    h.qmp(
        "blockdev-add",
        driver="qcow2",
        node_name="disk",
        file={"driver": "file", "filename": "top.qcow2"},
    )
    h.qmp(
        "query-named-block-nodes",
        flat=True,
        show="node-name,drv,ro,backing_file_depth,backing_file",
    )
    h.qmp("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
    h.io(URI, "read -P 1 0 256k", "read -P 2 256k 256k", "read -P 1 512k 512k", "read -P 0 1M 1M")
    h.heading("A small write copies the rest of its cluster up")
    h.io(
        URI, "write -P 3 300k 1k", "read -P 2 256k 44k", "read -P 3 300k 1k", "read -P 2 301k 211k"
    )
    h.restart("--nbd-server", "addr.type=unix,addr.path=nbd.sock")

    h.heading("Backing nodes given by the caller, or none at all")
    h.qmp("blockdev-add", driver="null-co", node_name="zeroes", size=1 << 20, read_zeroes=True)
    file = {"driver": "file", "filename": "top.qcow2"}
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file, backing="zeroes")
    h.qmp("block-export-add", type="nbd", id="disk", node_name="disk")
    h.io(URI, "read -P 0 0 256k", "read -P 2 256k 44k", "read -P 0 512k 512k")
    h.qmp("blockdev-del", node_name="zeroes")
    h.qmp("block-export-del", id="disk")
    h.event("BLOCK_EXPORT_DELETED")
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", {"backing": None}, driver="qcow2", node_name="disk", file=file)
    h.qmp("query-named-block-nodes", flat=True, show="node-name,drv,backing_file_depth")
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file, backing="missing")
    h.quit()

    h.heading("A chain that is broken")
    (h.folder / "base.raw").unlink()
    h.start()
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file)
    h.qmp("query-named-block-nodes", flat=True, show="node-name")
    h.quit()
