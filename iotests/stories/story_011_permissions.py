# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Users of a node say what they do to it and what others may do: who fits together, and who not."""

from __future__ import annotations

from iotests.harness.story import Story


def story(h: Story) -> None:
    (h.folder / "disk.raw").write_bytes(bytes(1 << 20))
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    h.qmp("blockdev-add", driver="file", node_name="file", filename="disk.raw")
    h.qmp("blockdev-add", driver="raw", node_name="disk", file="file")

    h.heading("A format wants its file for itself")
    h.qmp("block-export-add", type="nbd", id="below", node_name="file", writable=True)
    h.qmp("block-export-add", type="nbd", id="below", node_name="file")

    h.heading("Writers on top share; nobody may resize below an export")
    h.qmp("block-export-add", type="nbd", id="a", node_name="disk", name="a", writable=True)
    h.qmp("block-export-add", type="nbd", id="b", node_name="disk", name="b", writable=True)
    h.qmp("block_resize", node_name="disk", size=2 << 20)
    h.qmp("query-block-exports")
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("block-export-del", id="a")
    h.event("BLOCK_EXPORT_DELETED", id="a")
    h.qmp("block-export-del", id="b")
    h.event("BLOCK_EXPORT_DELETED", id="b")
    h.qmp("block_resize", node_name="disk", size=2 << 20)

    h.heading("Read-only nodes")
    h.qmp("blockdev-add", {"driver": "raw", "node-name": "ro", "read-only": True, "file": "file"})
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", {"driver": "raw", "node-name": "ro", "read-only": True, "file": "file"})
    h.qmp("block-export-add", type="nbd", id="w", node_name="ro", writable=True)
    h.qmp("block_resize", node_name="ro", size=1 << 20)
    h.qmp("block-export-add", type="nbd", id="r", node_name="ro")
    h.qmp("query-block-exports")
    h.quit()
