# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Guest data in a file of its own, which is a valid raw image if wanted."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
URI = "nbd+unix:///disk?socket=nbd.sock"


def story(h: Story) -> None:
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    h.heading("Made by the daemon")
    for name in ("meta.qcow2", "data.raw"):
        h.create(driver="file", filename=name, size=0)
        h.qmp("blockdev-add", driver="file", node_name=name.partition(".")[0], filename=name)
    h.create(driver="qcow2", file="meta", size=1 << 20, data_file="data", data_file_raw=True)
    h.qmp("blockdev-add", {"data-file": "data"}, driver="qcow2", node_name="disk", file="meta")
    h.qmp("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
    h.io(URI, "write -P 9 64k 64k", "read -P 9 64k 64k", "read -P 0 128k 64k")
    h.quit()
    h.heading("The data file alone holds the disk")
    h.run("qemu-img", "info", "-f", "qcow2", "meta.qcow2", only="data file|virtual")
    h.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "meta.qcow2", "data.raw")
    h.run("qemu-img", "check", "-f", "qcow2", "meta.qcow2", only="No errors|leaked|error")
    h.heading("Opened by the image's own record; missing, it is missed")
    h.start()
    h.qmp(
        "blockdev-add",
        driver="qcow2",
        node_name="disk",
        file={"driver": "file", "filename": "meta.qcow2"},
    )
    h.quit()
