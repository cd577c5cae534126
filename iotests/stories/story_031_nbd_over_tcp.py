# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""An export over TCP, from the command line, written and read by real clients."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io", "nbdinfo")


def story(h: Story) -> None:
    h.run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    port = h.port()
    h.start(
        *("--blockdev", "file,node-name=file,filename=disk.qcow2,discard=unmap"),
        *("--blockdev", "qcow2,node-name=disk,file=file,discard=unmap"),
        *("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
        *("--export", "nbd,id=x,node-name=disk,name=a/b c,writable=on"),
    )
    uri = f"nbd://127.0.0.1:{port}/a%2Fb%20c"
    h.run("nbdinfo", uri, only="export-size|export=|can_|is_|block_size")
    h.io(uri, "write -P 1 0 64k", "write -z 64k 64k", "discard 0 64k", "flush", "read -P 0 0 128k")
    h.io(uri, "write -P 2 1000 3000", "read -P 2 1000 3000", "read -P 0 4000 96", "read -P 0 1M 1")
    h.heading("The port is taken as long as the daemon lives")
    h.command(
        *("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
    )
    h.quit()
    h.run("qemu-img", "check", "-f", "qcow2", "disk.qcow2", only="No errors|leaked|error")
