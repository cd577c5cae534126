# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What clients learn about holes, zeroes and layers through meta contexts."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io", "nbdinfo")


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 192k", "base.qcow2")
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 2 64k 64k", "top.qcow2")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -z 128k 64k", "top.qcow2")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 512k 64k", "top.qcow2")
    h.start(
        *("--blockdev", "file,node-name=file,filename=top.qcow2"),
        *("--blockdev", "qcow2,node-name=disk,file=file"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=plain,node-name=disk,name=plain"),
        *("--export", "nbd,id=depth,node-name=disk,name=depth,allocation-depth=on"),
    )
    plain, depth = (f"nbd+unix:///{name}?socket=nbd.sock" for name in ("plain", "depth"))
    h.heading("base:allocation")
    h.run("nbdinfo", "--map", plain)
    h.run("qemu-img", "map", "-f", "raw", "--output=json", plain)
    h.heading("qemu:allocation-depth, where it was asked for")
    h.run("nbdinfo", "--map=qemu:allocation-depth", depth)
    h.run("nbdinfo", "--map=qemu:allocation-depth", plain, only="context|supported|^ ")
    h.run("nbdinfo", depth, only="qemu:|base:")
    h.quit()
