# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Nodes: made, looked at, used by other nodes, refused, and removed again."""

from __future__ import annotations

from iotests.harness.story import Story

BRIEF = "node-name,drv,ro,file,image.virtual-size,image.format,cache"


def story(h: Story) -> None:
    (h.folder / "disk.raw").write_bytes(bytes(1 << 20))
    (h.folder / "odd.raw").write_bytes(bytes(1000))
    h.start()

    h.heading("A file and a raw format on top")
    h.qmp("blockdev-add", driver="file", node_name="file", filename="disk.raw")
    h.qmp("blockdev-add", driver="raw", node_name="disk", file="file")
    h.qmp("query-named-block-nodes", flat=True, show=BRIEF)

    h.heading("Names are unique and well-formed; nodes that are used stay")
    h.qmp("blockdev-add", driver="null-co", node_name="disk")
    h.qmp("blockdev-add", driver="null-co", node_name="7up")
    h.qmp("blockdev-add", driver="null-co", node_name="")
    h.qmp("blockdev-add", driver="null-co", node_name="a" * 32)
    h.qmp("blockdev-add", driver="null-co")
    h.qmp("blockdev-del", node_name="file")
    h.qmp("blockdev-del", node_name="missing")

    h.heading("Whole trees at once; inner nodes get names, and go with the tree")
    h.qmp(
        "blockdev-add",
        {"driver": "raw", "node-name": "tree", "read-only": True},
        file={"driver": "file", "filename": "odd.raw"},
    )
    h.qmp("query-named-block-nodes", flat=True, show=BRIEF)
    h.qmp("blockdev-del", node_name="tree")

    h.heading("A part of a file; parts must fit")
    h.qmp("blockdev-add", driver="raw", node_name="part", file="file", offset=512, size=65536)
    h.qmp("blockdev-del", node_name="disk")
    h.qmp("blockdev-add", driver="raw", node_name="part", file="file", offset=512, size=65536)
    h.qmp("blockdev-add", driver="raw", node_name="bad", file="file", offset=2 << 20)
    h.qmp("blockdev-del", node_name="part")
    h.qmp("blockdev-add", driver="raw", node_name="bad", file="file", offset=2 << 20)
    h.qmp("blockdev-add", driver="raw", node_name="bad", file="file", offset=4096, size=1 << 20)
    h.qmp("blockdev-add", driver="raw", node_name="bad", file="file", size=1000)

    h.heading("What is missing or unknown is named")
    h.qmp("blockdev-add", driver="file", node_name="x", filename="missing.raw")
    h.qmp("blockdev-add", driver="file", node_name="x", filename=".")
    h.qmp("blockdev-add", driver="file", node_name="x", filename="disk.raw", nonsense=1)
    h.qmp("blockdev-add", driver="raw", node_name="x", file="missing")
    h.qmp("blockdev-add", driver="raw", node_name="x")
    h.qmp("blockdev-add", driver="nonsense", node_name="x")
    h.qmp("blockdev-add", {"driver": "null-co", "node-name": "x", "size": "1M"})

    h.qmp("blockdev-del", node_name="file")
    h.qmp("query-named-block-nodes")
    h.quit()
