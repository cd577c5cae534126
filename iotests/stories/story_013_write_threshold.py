# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""An event when a write passes a mark, once, so that a thin volume can be grown in time."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-io",)
URI = "nbd+unix:///disk?socket=nbd.sock"


def marks(h: Story) -> None:
    h.qmp("query-named-block-nodes", flat=True, show="node-name,write_threshold")


def story(h: Story) -> None:
    (h.folder / "disk.raw").write_bytes(bytes(1 << 20))
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    h.qmp("blockdev-add", driver="file", node_name="disk", filename="disk.raw")
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk", writable=True)
    h.qmp("block-set-write-threshold", {"node-name": "disk", "write-threshold": 65536})
    marks(h)
    h.io(URI, "write 0 64k")
    marks(h)
    h.io(URI, "write 60k 8k")
    h.event("BLOCK_WRITE_THRESHOLD")
    marks(h)

    h.heading("Taking it away; and nonsense")
    h.qmp("block-set-write-threshold", {"node-name": "disk", "write-threshold": 65536})
    h.qmp("block-set-write-threshold", {"node-name": "disk", "write-threshold": 0})
    h.io(URI, "write 0 1M")
    h.qmp("block-set-write-threshold", {"node-name": "missing", "write-threshold": 1})
    h.qmp("block-set-write-threshold", {"node-name": "disk", "write-threshold": -1})
    h.quit()
