# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A full backup and two incremental ones, restored as a chain and compared with the disk."""

from __future__ import annotations

import json
import subprocess

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
URI = "nbd+unix:///disk?socket=nbd.sock"


def file(name: str) -> dict[str, str]:
    return {"driver": "file", "filename": name}


def wait(h: Story, job_id: str) -> None:
    event = h.daemon.event("BLOCK_JOB_COMPLETED", device=job_id)["data"]
    h.say(f"** {job_id}:", event["offset"], "of", event["len"], event.get("error", "done"))
    h.daemon.event("JOB_STATUS_CHANGE", id=job_id, status="null")


def mapped(h: Story, name: str) -> None:
    """Write down which link of the chain holds what; where in the file is its own business."""
    out = subprocess.run(
        ["qemu-img", "map", "--output=json", name], cwd=h.folder, capture_output=True, check=True
    )
    for extent in json.loads(out.stdout):
        h.say(f"{name}:", extent["start"], extent["length"], "depth", extent["depth"],
              "data" if extent["data"] else "zero")  # fmt: skip


def bitmap(h: Story) -> None:
    h.qmp("query-named-block-nodes", flat=True, show="node-name,dirty-bitmaps")


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "full.qcow2", "4M")
    for name, below in (("inc1", "full"), ("inc2", "inc1")):
        h.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2",
              f"{name}.qcow2")  # fmt: skip
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    h.qmp("blockdev-add", driver="qcow2", node_name="disk", file=file("disk.qcow2"))
    h.qmp("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
    h.io(URI, "write -P 1 0 1M", "write -P 2 2M 512k")

    h.heading("Everything, and from that moment on a record of what changes")
    h.qmp("blockdev-add", driver="qcow2", node_name="full", file=file("full.qcow2"))
    h.qmp(
        "transaction",
        actions=[
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "changes"}},
            {
                "type": "blockdev-backup",
                "data": {"job-id": "j0", "device": "disk", "target": "full", "sync": "full"},
            },
        ],
    )
    wait(h, "j0")
    h.qmp("blockdev-del", node_name="full")
    bitmap(h)

    h.heading("What changed since")
    h.io(URI, "write -P 3 64k 64k", "write -P 4 3M 1000")
    bitmap(h)
    for number, name in ((1, "inc1"), (2, "inc2")):
        h.qmp(
            "blockdev-add",
            {"backing": None},
            driver="qcow2",
            node_name=name,
            file=file(f"{name}.qcow2"),
        )
        h.qmp(
            "blockdev-backup",
            job_id=f"j{number}",
            device="disk",
            target=name,
            sync="incremental",
            bitmap="changes",
        )
        wait(h, f"j{number}")
        h.qmp("blockdev-del", node_name=name)
        bitmap(h)
        if number == 1:
            h.run("qemu-img", "compare", "-U", "inc1.qcow2", "disk.qcow2")
            h.io(URI, "write -P 5 0 64k", "write -z 2M 128k", "discard 3M 64k")
            bitmap(h)
    h.quit()
    h.heading("The chain holds what the disk holds, and each link what changed")
    h.run("qemu-img", "compare", "inc2.qcow2", "disk.qcow2")
    for name in ("full", "inc1", "inc2"):
        h.run("qemu-img", "check", "-q", f"{name}.qcow2")
        mapped(h, f"{name}.qcow2")
