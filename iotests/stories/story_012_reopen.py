# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Options of nodes change while they are in use, all of them or none."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
SHOW = "node-name,ro,cache,detect_zeroes"


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    file = {"driver": "file", "node-name": "file", "filename": "disk.qcow2"}
    disk = {"driver": "qcow2", "node-name": "disk", "file": "file"}
    h.qmp("blockdev-add", file)
    h.qmp("blockdev-add", disk)
    h.qmp("query-named-block-nodes", flat=True, show=SHOW)

    h.heading("To read-only and back")
    h.qmp("blockdev-reopen", options=[{**disk, "read-only": True}])
    h.qmp("query-named-block-nodes", flat=True, show=SHOW)
    h.qmp("block-export-add", type="nbd", id="w", node_name="disk", writable=True)
    h.qmp("blockdev-reopen", options=[disk])
    h.qmp("block-export-add", type="nbd", id="w", node_name="disk", writable=True)
    h.qmp("blockdev-reopen", options=[{**disk, "read-only": True}])

    h.heading("Options of the guest's requests")
    h.qmp("blockdev-reopen", options=[{**disk, "detect-zeroes": "on", "cache": {"no-flush": True}}])
    h.qmp("query-named-block-nodes", flat=True, show=SHOW)
    h.io("nbd+unix:///disk?socket=nbd.sock", "write -P 7 0 64k", "read -P 7 0 64k")

    h.heading("One bad entry spoils the whole list")
    h.qmp("blockdev-reopen", options=[disk, {**file, "filename": "other.qcow2"}])
    h.qmp("blockdev-reopen", options=[disk, disk])
    h.qmp("query-named-block-nodes", flat=True, show=SHOW)

    h.heading("What cannot be changed")
    h.qmp("blockdev-reopen", options=[{**disk, "driver": "raw"}])
    h.qmp("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "disk"}])
    h.qmp("blockdev-reopen", options=[{**disk, "node-name": "missing"}])
    h.qmp("blockdev-reopen", options=[{"driver": "qcow2", "file": "file"}])
    h.quit()
