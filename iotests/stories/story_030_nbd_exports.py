# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The life of NBD servers and exports, with and without clients."""

from __future__ import annotations

from iotests.harness.nbd import Client
from iotests.harness.story import Story

NEEDS = ("nbdinfo",)
SERVER = {"type": "unix", "data": {"path": "nbd.sock"}}
LIST = ("nbdinfo", "--list", "--json", "nbd+unix:///?socket=nbd.sock")
LOOK = r'"(export-name|description|export-size|is_read_only|can_\w+)"'


def story(h: Story) -> None:
    h.start("--blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on")
    h.heading("No server, no export")
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk")
    h.qmp("nbd-server-stop")
    h.qmp("nbd-server-start", addr=SERVER)
    h.qmp("nbd-server-start", addr=SERVER)

    h.heading("Exports with names and descriptions")
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk", description="the disk")
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk", name="other")
    h.qmp("block-export-add", type="nbd", id="y", node_name="disk")
    h.qmp("block-export-add", type="nbd", id="y", node_name="disk", name="z", writable=True)
    h.qmp("block-export-add", type="nbd", id="7", node_name="disk", name="seven")
    h.qmp("block-export-add", type="nbd", id="v", node_name="missing")
    h.qmp("block-export-add", type="nonsense", id="v", node_name="disk")
    h.qmp("query-block-exports")
    h.run(*LIST, only=LOOK)

    h.heading("A connected client holds its export, unless one insists")
    client = Client(h.folder / "nbd.sock", "disk")
    h.say("connected, size", client.size)
    h.qmp("block-export-del", id="x")
    h.qmp("block-export-del", id="x", mode="hard")
    h.event("BLOCK_EXPORT_DELETED")
    client.close()
    h.qmp("block-export-del", id="x")
    h.qmp("block-export-del", id="y")
    h.event("BLOCK_EXPORT_DELETED")

    h.heading("The older commands")
    h.qmp("nbd-server-add", device="disk")
    h.qmp("nbd-server-add", device="disk")
    h.qmp("nbd-server-add", device="missing")
    h.qmp("nbd-server-add", device="disk", name="w", writable=True)
    h.qmp("query-block-exports")
    h.qmp("nbd-server-remove", name="w")
    h.event("BLOCK_EXPORT_DELETED")
    h.qmp("nbd-server-remove", name="w")

    h.heading("A server that stops takes its exports along, and can start anew")
    h.qmp("nbd-server-stop")
    h.event("BLOCK_EXPORT_DELETED")
    h.qmp("query-block-exports")
    h.say("socket exists:", (h.folder / "nbd.sock").exists())
    h.qmp("nbd-server-start", addr=SERVER, max_connections=1)
    h.qmp("block-export-add", type="nbd", id="x", node_name="disk")
    client = Client(h.folder / "nbd.sock", "disk")
    h.say("connected, size", client.size)
    client.close()
    h.quit()
