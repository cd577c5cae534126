# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Things that are done together: all of them, or none."""

from __future__ import annotations

from typing import Any

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")


def file(name: str) -> dict[str, str]:
    return {"driver": "file", "filename": name}


def action(kind: str, /, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {key.replace("_", "-"): value for key, value in data.items()}}


def backup(job_id: str, device: str, target: str, **more: Any) -> dict[str, Any]:
    return action(
        "blockdev-backup", job_id=job_id, device=device, target=target, sync="bitmap",
        bitmap="b", bitmap_mode="on-success", **more,
    )  # fmt: skip


def shape(h: Story) -> None:
    show = "node-name,ro,backing_file,image.snapshots.0.name"
    h.qmp("query-named-block-nodes", flat=True, show=show)


def bitmaps(h: Story) -> None:
    for node in sorted(h.daemon.ok("query-named-block-nodes"), key=lambda node: node["node-name"]):
        for bitmap in node.get("dirty-bitmaps", []):
            h.say(node["node-name"], bitmap.get("name"), bitmap["count"], "busy", bitmap["busy"])


def ends(h: Story, *job_ids: str) -> None:
    left = set(job_ids)
    while left:  # which one ends first is chance
        left.discard(h.daemon.event("JOB_STATUS_CHANGE", status="concluded")["data"]["id"])
    for job_id in job_ids:
        (job,) = (job for job in h.daemon.ok("query-jobs") if job["id"] == job_id)
        h.say(f"** {job_id}:", job.get("error", "done"))
        h.daemon.ok("job-dismiss", id=job_id)


def story(h: Story) -> None:
    for name in ("a", "b", "ta", "tb", "over"):
        h.run("qemu-img", "create", "-q", "-f", "qcow2", f"{name}.qcow2", "1M")
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    for name in ("a", "b", "ta"):
        h.qmp("blockdev-add", driver="qcow2", node_name=name, file=file(f"{name}.qcow2"))
    h.qmp("blockdev-add", {"backing": None}, driver="qcow2", node_name="over",
          file=file("over.qcow2"))  # fmt: skip
    broken = {
        "driver": "blkdebug",
        "image": {"driver": "qcow2", "file": file("tb.qcow2")},
        "inject-error": [{"event": "none", "iotype": "write", "errno": 5}],
    }
    h.qmp("blockdev-add", broken, node_name="tb")
    for name in ("a", "b"):
        h.qmp("block-dirty-bitmap-add", node=name, name="b")
        h.qmp("block-export-add", type="nbd", id=name, name=name, node_name=name, writable=True)
        h.io(f"nbd+unix:///{name}?socket=nbd.sock", "write -P 1 0 128k")
        h.qmp("block-export-del", id=name)
        h.event("BLOCK_EXPORT_DELETED", id=name)

    h.heading("One action fails: nothing has happened")
    h.qmp(
        "transaction",
        actions=[
            action("blockdev-snapshot-internal-sync", device="a", name="inside"),
            action("blockdev-snapshot", node="a", overlay="over"),
            action("block-dirty-bitmap-clear", node="b", name="b"),
            backup("j1", "b", "ta"),
            action("blockdev-snapshot-sync", node_name="nope", snapshot_file="x.qcow2"),
        ],
    )
    h.event("JOB_STATUS_CHANGE", id="j1", status="null")
    shape(h)
    bitmaps(h)
    h.qmp("query-jobs")

    jobs = [
        backup("j1", "a", "ta", auto_dismiss=False),
        backup("j2", "b", "tb", auto_dismiss=False),
    ]
    h.heading("One job of a group fails: the other one too, and both bitmaps keep what they had")
    h.qmp("transaction", actions=jobs, properties={"completion-mode": "grouped"})
    ends(h, "j1", "j2")
    bitmaps(h)
    h.heading("The same without a group")
    h.qmp("transaction", actions=jobs, properties={"completion-mode": "individual"})
    ends(h, "j1", "j2")
    bitmaps(h)
    h.heading("What cannot be part of a group")
    h.qmp(
        "transaction",
        actions=[action("blockdev-snapshot", node="a", overlay="over")],
        properties={"completion-mode": "grouped"},
    )
    h.heading("All goes well")
    h.qmp(
        "transaction",
        actions=[
            action("blockdev-snapshot-internal-sync", device="b", name="inside"),
            action("blockdev-snapshot", node="a", overlay="over"),
            action("block-dirty-bitmap-clear", node="b", name="b"),
        ],
    )
    shape(h)
    bitmaps(h)
    h.quit()
    for name in ("a", "b", "ta", "over"):
        h.run("qemu-img", "check", "-q", f"{name}.qcow2")
