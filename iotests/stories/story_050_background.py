# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A daemon in the background, its pidfile, and signals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from iotests.harness.daemon import PATIENCE
from iotests.harness.story import Story


def gone(path: Path) -> bool:
    """Wait until a file is away."""
    deadline = time.monotonic() + PATIENCE
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not path.exists()


def story(h: Story) -> None:
    pidfile = h.folder / "daemon.pid"
    h.heading("The command returns when the daemon is ready")
    arguments = (
        *("--daemonize", "--pidfile", "daemon.pid"),
        *("--blockdev", "null-co,node-name=disk,size=1048576"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=disk,node-name=disk"),
    )
    h.command(*arguments)
    h.say("socket exists:", (h.folder / "nbd.sock").exists())
    text = pidfile.read_text()
    h.say("pidfile ends with a newline:", text.endswith("\n"))
    pid = int(text)
    try:
        os.kill(pid, 0)
        h.heading("A second one with the same pidfile")
        h.command(*("--daemonize", "--pidfile", "daemon.pid"))
        h.say("the first one's number still stands:", int(pidfile.read_text()) == pid)
        h.heading("SIGTERM ends it and its pidfile")
    finally:
        os.kill(pid, signal.SIGTERM)
    h.say("pidfile gone:", gone(pidfile))

    h.heading("A failure in the background is seen in the foreground")
    h.command(
        "--daemonize", "--pidfile", "daemon.pid", "--blockdev", "raw,node-name=x,file=missing"
    )
    h.say("pidfile exists:", pidfile.exists())
    h.command("--daemonize", "--pidfile", "missing-folder/pid")
