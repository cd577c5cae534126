# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A blocking QMP client without ambitions; test_clients.py uses a real one."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any


def _connect(client: socket.socket, path: Path) -> None:
    """Connect to a socket that exists.

    Between bind and listen it still refuses; while others wait to be accepted it is not ready.
    """
    for _ in range(500):
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, BlockingIOError):
            time.sleep(0.01)
        else:
            return
    raise ConnectionRefusedError(path)


class Monitor:
    """One QMP connection, negotiated.

    Attributes:
        events: Events that came and were not taken yet, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self.events: deque[dict[str, Any]] = deque()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        try:
            _connect(self._socket, path)
        except OSError:
            self._socket.close()
            raise
        self._stream = self._socket.makefile("rb")
        try:
            self.greeting = self._message()
            self.call("qmp_capabilities")
        except (OSError, EOFError):
            self.close()
            raise

    def _message(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise EOFError("the monitor closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a command; return its reply, keep events for later."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        while True:
            message = self._message()
            if "event" not in message:
                return message
            self.events.append(message)

    def next_event(self) -> dict[str, Any]:
        """Return the next event, waiting for it if need be."""
        if self.events:
            return self.events.popleft()
        return self._message()

    def close(self) -> None:
        """Disconnect."""
        self._stream.close()
        self._socket.close()
