# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A daemon as a process of its own, for what cannot be tested in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Seconds; a loaded machine takes its time to start an interpreter.
PATIENCE = 60


class Daemon:
    """A running daemon, which is killed at the end if it still runs.

    Its working directory is `folder`.  With `monitor` a QMP session is set up: the daemon connects
    to a socket that listens here, so nothing polls for it.
    """

    def __init__(
        self, folder: Path, *words: str, monitor: bool = False, inherit: Sequence[int] = ()
    ) -> None:
        self._client: socket.socket | None = None
        self._replies: Any = None
        listener: socket.socket | None = None
        if monitor:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"\0qsd-test-{os.getpid()}-{id(self)}")
            listener.listen(1)
            listener.settimeout(PATIENCE)
            name = listener.getsockname()[1:].decode()
            words = (*words, "--chardev", f"socket,id=qmp,path={name},abstract=on", "--monitor")
            words = (*words, "qmp")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qsd", *words],
            cwd=folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=list(inherit),
        )
        self.pid = self.process.pid
        if listener is not None:
            with listener:
                self._client, _ = listener.accept()
            self._client.settimeout(PATIENCE)
            self._replies = self._client.makefile("rb")
            assert "QMP" in json.loads(self._replies.readline())
            self.qmp("qmp_capabilities")

    @staticmethod
    def environment() -> dict[str, str]:
        """Return an environment in which a new interpreter finds the package under test."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    @classmethod
    def command(cls, folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "qsd", *words],
            cwd=folder,
            env=cls.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        if self._client is not None:
            self._replies.close()
            self._client.close()

    def stderr_line(self) -> bytes:
        """Wait for a line on standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result; events are skipped.

        Raises:
            RuntimeError: With the description of the error.
        """
        assert self._client is not None
        request = {"execute": command, "arguments": arguments}
        self._client.sendall(json.dumps(request).encode())
        while True:
            reply = json.loads(self._replies.readline())
            if "error" in reply:
                raise RuntimeError(reply["error"]["desc"])
            if "return" in reply:
                return reply["return"]
