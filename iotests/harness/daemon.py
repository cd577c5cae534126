# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The daemon under test as a process, with its monitor."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from iotests.harness.qmp import Monitor

#: Seconds; how long a daemon may take to start or stop on a busy machine.
PATIENCE = 30.0

ROOT = Path(__file__).resolve().parent.parent.parent


def command_line(which: str) -> list[str]:
    """Return the command for "ours", "real", or any other command line."""
    if which == "ours":
        return [sys.executable, "-m", "qsd"]
    if which == "real":
        return [real_daemon()]
    return shlex.split(which)


def real_daemon() -> str:
    """Return the C daemon's path, and not that of our command of the same name."""
    ours = Path(sys.executable).parent
    folders = [folder for folder in os.get_exec_path() if Path(folder) != ours]
    found = shutil.which("qemu-storage-daemon", path=os.pathsep.join(folders))
    return found or "qemu-storage-daemon"


class Daemon:
    """A running daemon in `folder`; as a context manager it is killed at the end at the latest.

    Attributes:
        process: The process.
        monitor: The QMP connection.
    """

    def __init__(self, which: str, folder: Path, *arguments: str) -> None:
        self.folder = folder
        path = folder / "qmp.sock"
        path.unlink(missing_ok=True)
        self.monitor: Monitor | None = None
        self.log = (folder / "daemon.log").open("ab")
        self.process = subprocess.Popen(
            [
                *command_line(which),
                "--chardev",
                "socket,id=qmp,path=qmp.sock,server=on,wait=off",
                "--monitor",
                "qmp",
                *arguments,
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the daemon did not start: {self.log_text()}")
            time.sleep(0.005)
        try:
            self.monitor = Monitor(path)
        except (OSError, EOFError) as exc:
            self.kill()
            raise RuntimeError(f"the daemon did not start: {self.log_text()}") from exc

    def log_text(self) -> str:
        """Return what the daemon wrote to its standard streams."""
        return (self.folder / "daemon.log").read_text(errors="replace")

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command; return {"return": ...} or {"error": ...}."""
        assert self.monitor is not None
        return self.monitor.call(command, **arguments)

    def ok(self, command: str, **arguments: Any) -> Any:
        """Run a command that must succeed and return its value."""
        reply = self.qmp(command, **arguments)
        if "return" not in reply:
            raise AssertionError(f"{command}: {reply}")
        return reply["return"]

    def event(self, name: str, **data: Any) -> dict[str, Any]:
        """Wait for the next event of that name with these data; others are passed over."""
        assert self.monitor is not None
        while True:
            event = self.monitor.next_event()
            found = event.get("data", {})
            if event["event"] == name and all(found.get(k) == v for k, v in data.items()):
                return event

    def job(self, job_id: str) -> None:
        """Wait until a job is concluded, then dismiss it; a failed job fails the test."""
        self.event("JOB_STATUS_CHANGE", id=job_id, status="concluded")
        (info,) = (job for job in self.ok("query-jobs") if job["id"] == job_id)
        self.ok("job-dismiss", id=job_id)
        if "error" in info:
            raise AssertionError(f"job {job_id}: {info['error']}")

    def quit(self) -> int:
        """Stop by QMP and return the exit code."""
        self.ok("quit")
        return self._finish()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop by a signal and return the exit code."""
        self.process.send_signal(number)
        return self._finish()

    def _finish(self) -> int:
        code = self.process.wait(PATIENCE)
        self._close()
        return code

    def kill(self) -> None:
        """SIGKILL, now; no harm if it is gone already."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self.log.close()
        if self.monitor is not None:
            self.monitor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


__all__ = ["PATIENCE", "Daemon", "command_line"]
