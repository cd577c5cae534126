# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Start a daemon, ours or the C one, with the same arguments, and talk QMP to it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self


class Daemon:
    """One running daemon in `folder`; usable as a context manager.

    Attributes:
        uri: Prefix-free socket path of its NBD server, once `nbd()` was called.
    """

    def __init__(self, command: list[str], folder: Path, *arguments: str) -> None:
        self.folder = folder
        path = folder / "qmp.sock"
        path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *command,
                "--chardev",
                f"socket,id=qmp,path={path},server=on,wait=off",
                "--monitor",
                "qmp",
                *arguments,
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
        )
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 20
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.process.kill()
                    raise
                time.sleep(0.01)
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        self._events: list[dict[str, Any]] = []
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns; an error ends the benchmark."""
        request = {
            "execute": command,
            "arguments": {key.replace("_", "-"): value for key, value in arguments.items()},
        }
        self._file.write(json.dumps(request).encode() + b"\n")
        self._file.flush()
        while True:
            reply = json.loads(self._file.readline())
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']['desc']}")
            self._events.append(reply)

    def event(self) -> dict[str, Any]:
        """Wait for an event: asking again and again would be a load of its own."""
        if not self._events:
            self._events.append(json.loads(self._file.readline()))
        return self._events.pop(0)

    def resident(self) -> int:
        """Return the resident memory in bytes."""
        return self._status("VmRSS")

    def own_memory(self) -> int:
        """Return how much of that is nobody else's, in bytes: without pages of files."""
        return self._status("RssAnon")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {name}")

    def processor_time(self) -> float:
        """Return the processor time of all its threads so far, in seconds.

        clock_getcpuclockid(3) makes the clock of another process out of its id like this.
        """
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
