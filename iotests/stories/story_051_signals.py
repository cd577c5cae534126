# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""SIGTERM, SIGINT and SIGHUP end the daemon in order: data safe, socket and pidfile gone."""

from __future__ import annotations

import signal

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")


def story(h: Story) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        name = number.name
        h.heading(name)
        h.run("qemu-img", "create", "-q", "-f", "qcow2", f"{name}.qcow2", "1M")
        daemon = h.start(
            *("--blockdev", f"file,node-name=file,filename={h.folder}/{name}.qcow2"),
            *("--blockdev", "qcow2,node-name=disk,file=file"),
            *("--nbd-server", f"addr.type=unix,addr.path={h.folder}/nbd.sock"),
            *("--export", "nbd,id=disk,node-name=disk,writable=on"),
            *("--pidfile", "pid"),
        )
        h.say("pidfile is right:", int((daemon.folder / "pid").read_text()) == daemon.process.pid)
        h.io(f"nbd+unix:///disk?socket={h.folder}/nbd.sock", "write -P 4 0 128k")
        h.say("exit", daemon.stop(number))
        h.say(daemon.log_text())
        for left in ("qmp.sock", "pid"):
            h.say(f"{left} exists:", (daemon.folder / left).exists())
        h.run("qemu-img", "check", "-f", "qcow2", f"{name}.qcow2", only="No errors|leaked|error")
        h.run(
            "qemu-io",
            "-r",
            "-f",
            "qcow2",
            "-c",
            "read -P 4 0 128k",
            f"{name}.qcow2",
            only="read|failed",
        )
