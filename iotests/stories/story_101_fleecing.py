# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A backup program pulls a point in time over NBD, while the guest writes."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
GUEST = "nbd+unix:///disk?socket=nbd.sock"
PULL = "nbd+unix:///then?socket=nbd.sock"


def file(name: str) -> dict[str, str]:
    return {"driver": "file", "filename": name}


def story(h: Story) -> None:
    for name in ("disk", "scratch"):
        h.run("qemu-img", "create", "-q", "-f", "qcow2", f"{name}.qcow2", "2M")
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    for name in ("disk", "scratch"):
        h.qmp("blockdev-add", driver="qcow2", node_name=name, file=file(f"{name}.qcow2"))
    h.heading("A filter above the disk keeps old data in the scratch image")
    h.qmp(
        "blockdev-add",
        driver="copy-before-write",
        node_name="cbw",
        file="disk",
        target="scratch",
    )
    h.qmp("block-export-add", type="nbd", id="disk", name="disk", node_name="cbw", writable=True)
    h.io(GUEST, "write -P 1 0 256k", "read -P 1 0 256k")
    h.heading("From here on a snapshot of that moment is readable")
    h.qmp("blockdev-add", driver="snapshot-access", node_name="then", file="cbw")
    h.qmp("block-export-add", type="nbd", id="then", name="then", node_name="then")
    h.io(PULL, "read -P 0 0 2M")
    h.io(GUEST, "write -P 2 1M 128k")
    h.io(PULL, "read -P 0 0 2M")
    h.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", PULL, "pulled.qcow2")
    h.io(GUEST, "read -P 1 0 256k", "read -P 2 1M 128k")
    h.run("qemu-img", "create", "-q", "-f", "raw", "empty.raw", "2M")
    h.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "pulled.qcow2", "empty.raw")
    h.restart("--nbd-server", "addr.type=unix,addr.path=nbd.sock")

    h.heading("The same by a job, whose target shows the disk through its backing file")
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "fleece.qcow2", "2M")
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file("disk.qcow2"))
    h.qmp("block-export-add", type="nbd", id="disk", name="disk", node_name="disk", writable=True)
    h.qmp(
        "blockdev-add",
        driver="qcow2",
        node_name="then",
        file=file("fleece.qcow2"),
        backing="disk",
    )
    h.qmp("blockdev-backup", job_id="fleece", device="disk", target="then", sync="none")
    h.qmp("block-export-add", type="nbd", id="then", name="then", node_name="then")
    h.io(GUEST, "write -P 3 0 128k", "write -z 1M 64k")
    h.io(PULL, "read -P 1 0 256k", "read -P 2 1M 128k", "read -P 0 1200k 100k")
    h.io(GUEST, "read -P 3 0 128k", "read -P 1 128k 128k", "read -P 0 1M 64k")
    h.qmp("query-block-jobs", show="device,type,status,offset,len")
    h.qmp("block-export-del", id="then")
    h.event("BLOCK_EXPORT_DELETED", id="then")
    h.qmp("block-job-cancel", device="fleece")
    h.event("BLOCK_JOB_CANCELLED", device="fleece")
    h.daemon.event("JOB_STATUS_CHANGE", id="fleece", status="null")
    h.qmp("query-named-block-nodes", flat=True, show="node-name,drv,backing_file")
    h.io(GUEST, "read -P 3 0 128k")
    h.quit()
    h.run("qemu-img", "map", "--output=json", "fleece.qcow2")
