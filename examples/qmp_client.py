# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The daemon as a process of its own, driven over QMP with nothing but the standard library.

python examples/qmp_client.py
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any


class Qmp:
    """A blocking QMP client: one JSON object per line, events are collected."""

    def __init__(self, stream: socket.socket) -> None:
        """Read the greeting and negotiate."""
        self.events: list[dict[str, Any]] = []
        self._stream = stream
        self._lines = stream.makefile("rb")
        self.greeting = json.loads(self._lines.readline())
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Run one command and return its result; `_` in names stands for `-`."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._stream.sendall(json.dumps({"execute": name, "arguments": named}).encode())
        while "event" in (reply := json.loads(self._lines.readline())):
            self.events.append(reply)
        if "error" in reply:
            raise RuntimeError(reply["error"]["desc"])
        return reply["return"]


def main() -> None:
    """Start a daemon, hand it one end of a socket pair as its monitor, and use the other."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = ["--chardev", f"socket,id=qmp,fd={theirs.fileno()}", "--monitor", "qmp"]
        command = [sys.executable, "-m", "qsd", *options]
        daemon = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        qmp = Qmp(ours)
        print("version", qmp.command("query-version")["qemu"])
        qmp.command("blockdev-add", driver="null-co", node_name="disk", size=1 << 20)
        try:
            qmp.command("blockdev-add", driver="null-co", node_name="disk")
        except RuntimeError as error:
            print("refused:", error)
        for node in qmp.command("query-named-block-nodes"):
            print("node", node["node-name"], node["image"]["virtual-size"])
        qmp.command("quit")
        print("exit", daemon.wait())


if __name__ == "__main__":
    main()
