# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a guest reads is copied from the backing file, whatever stands between filter and image."""

from __future__ import annotations

import json
import subprocess

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
URI = "nbd+unix:///disk?socket=nbd.sock"
SERVER = ("--nbd-server", "addr.type=unix,addr.path=nbd.sock", "--object", "throttle-group,id=g")


def file(name: str) -> dict[str, str]:
    return {"driver": "file", "filename": name}


def mapped(h: Story) -> None:
    """Write down what the top image has by now, and whether that is compressed."""
    out = subprocess.run(
        ["qemu-img", "map", "--output=json", "top.qcow2"], cwd=h.folder, capture_output=True,
        check=True,
    )  # fmt: skip
    for extent in json.loads(out.stdout):
        if extent["depth"] == 0 and extent["present"]:
            kind = "plain" if "offset" in extent else "compressed"
            h.say("top.qcow2:", extent["start"], extent["length"], kind)


def fresh(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    h.qmp("blockdev-add", driver="qcow2", node_name="top", file=file("top.qcow2"))


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "2M")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "base.qcow2", only="^wrote")
    h.start(*SERVER)
    for title, between in (
        ("Nothing", None),
        ("A raw layer", {"driver": "raw"}),
        ("A window", {"driver": "raw", "offset": 65536, "size": 1048576}),
        ("A throttle", {"driver": "throttle", "throttle-group": "g"}),
        ("A compressor", {"driver": "compress"}),
    ):
        h.heading(title)
        fresh(h)
        if between is not None:
            h.qmp("blockdev-add", between, node_name="between", file="top")
        below = "top" if between is None else "between"
        h.qmp("blockdev-add", driver="copy-on-read", node_name="cor", file=below)
        h.qmp("block-export-add", type="nbd", id="disk", name="disk", node_name="cor",
              writable=True)  # fmt: skip
        h.io(URI, "read -P 1 0 64k", "read 300k 64k", "read -P 1 1 1")
        h.restart(*SERVER)
        mapped(h)
    h.heading("A job copies all of it, compressed")
    fresh(h)
    h.qmp("blockdev-add", driver="compress", node_name="small", file="top")
    h.qmp("block-stream", job_id="j", device="small", auto_dismiss=False)
    h.job("j")
    h.quit()
    mapped(h)
    h.run("qemu-img", "compare", "top.qcow2", "base.qcow2")
    h.run("qemu-img", "check", "-q", "top.qcow2")
