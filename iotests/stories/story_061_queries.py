# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The shape of the longer replies: whole nodes, statistics, the graph."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    h.qmp(
        "blockdev-add",
        driver="qcow2",
        node_name="disk",
        file={"driver": "file", "filename": "disk.qcow2"},
    )
    h.qmp("query-named-block-nodes")
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk", writable=True)
    h.io("nbd+unix:///disk?socket=nbd.sock", "write 0 64k", "read 0 64k")
    h.qmp("query-blockstats", query_nodes=True)
    h.qmp("query-block")
    graph = h.daemon.ok("x-debug-query-block-graph")
    for node in graph["nodes"]:
        h.say("node", node["type"], node["name"])
    for edge in graph["edges"]:
        h.say("edge", edge["name"], edge["perm"], edge["shared-perm"])
    h.quit()
