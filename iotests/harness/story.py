# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a story is told with: it does something, and what came of it is written down, line by line.

A story never asserts.  Its transcript is compared with the one kept beside it, which both daemons
must reproduce.  So the transcript holds nothing that may differ from run to run:

* ``DIR`` stands for the story's folder and ``PORT`` for a TCP port chosen by the story,
* ``#block0``, ``#block1``, ... are the generated node names in order of appearance,
* timestamps of events, sizes on disk and the daemon's version are left out.

Lines begin with what they are: ``==`` a heading, ``->`` a QMP command, ``<-`` its reply, ``**`` an
event, ``$`` a program with its output below, indented.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

from iotests.harness.daemon import PATIENCE, ROOT, Daemon, command_line

#: Members of replies that differ from machine to machine.
_VOLATILE = {
    "actual-size", "timestamp", "disk-size", "qemu", "package", "thread-id", "date-sec", "date-nsec"
}  # fmt: skip


class Story:
    """One telling.

    Attributes:
        folder: A fresh folder; every process runs in it.
        lines: The transcript.
        daemon: The daemon started last.
    """

    def __init__(self, which: str, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.which = which
        self._daemons: list[Daemon] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._generated: dict[str, str] = {}
        self._ports: list[int] = []

    @property
    def daemon(self) -> Daemon:
        return self._daemons[-1]

    # What is written down

    def say(self, *words: object) -> None:
        """Write a line."""
        self.lines.append(self.normal(" ".join(str(word) for word in words)))

    def heading(self, text: str) -> None:
        """Begin a part of the story."""
        if self.lines:
            self.lines.append("")
        self.say("==", text)

    def normal(self, text: str) -> str:
        """Replace what differs from run to run."""
        text = text.replace(str(self.folder), "DIR")
        for port in self._ports:
            text = re.sub(rf"\b{port}\b", "PORT", text)
        return re.sub(r"#block\d+", self._rename, text)

    def _rename(self, found: re.Match[str]) -> str:
        return self._generated.setdefault(found[0], f"#block{len(self._generated)}")

    # Daemons

    def start(self, *arguments: str) -> Daemon:
        """Start a daemon with a monitor; the story goes on with it."""
        folder = self.folder
        if self._daemons:
            folder = self.folder / f"daemon{len(self._daemons)}"
            folder.mkdir()
        daemon = Daemon(self.which, folder, *arguments)
        self._daemons.append(daemon)
        return daemon

    def use(self, daemon: Daemon) -> None:
        """Go on with an earlier daemon."""
        self._daemons.remove(daemon)
        self._daemons.append(daemon)

    def restart(self, *arguments: str) -> Daemon:
        """Quit the running daemon and start another in its place."""
        self.quit()
        self._daemons.clear()
        return self.start(*arguments)

    def crash(self, *arguments: str) -> Daemon:
        """Kill the running daemon and start another in its place."""
        self.daemon.kill()
        self.say("killed")
        self._daemons.clear()
        return self.start(*arguments)

    def quit(self) -> None:
        """Send quit, and say how the daemon ended."""
        self.say("-> quit")
        self.say(f"exit {self.daemon.quit()}")

    def end(self) -> None:
        """Kill what still runs."""
        for daemon in self._daemons:
            daemon.kill()
        for process in self._processes:
            process.kill()
            process.communicate()

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a daemon with pipes for standard input and output; it is killed at the end."""
        process = subprocess.Popen(
            [*command_line(self.which), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._processes.append(process)
        return process

    def command(self, *arguments: str) -> None:
        """Run a daemon that ends by itself; write down what it printed and its exit code."""
        self.say("$ qemu-storage-daemon", *arguments)
        done = subprocess.run(
            [*command_line(self.which), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        self._indent(done.stdout)
        self.say(f"exit {done.returncode}")

    # QMP

    def qmp(self, command: str, *positional: dict[str, Any], show: str = "", **named: Any) -> Any:
        """Run a command and write down its reply; return it.

        Args:
            command: Its name.
            positional: At most one dictionary: arguments whose names are no Python names.
            show: Comma-separated paths: write down only these members of a returned list or object.
            named: More arguments; ``_`` stands for ``-``.
        """
        arguments = dict(positional[0]) if positional else {}
        arguments.update({key.replace("_", "-"): value for key, value in named.items()})
        self.say("->", command, *([json.dumps(arguments)] if arguments else []))
        reply = self.daemon.qmp(command, **arguments)
        if "error" in reply:
            error = reply["error"]
            self.say(f"<- {error['class']}: {error['desc']}")
            return None
        value = reply["return"]
        self.show(value, show)
        return value

    def show(self, value: Any, paths: str = "") -> None:
        """Write down a value, or these members of it; a list item by item."""
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                self.show(item, paths)
            return
        if paths:
            picked = {path: _member(value, path.split(".")) for path in paths.split(",")}
            value = {path: item for path, item in picked.items() if item is not _MISSING}
        self.say("<-", json.dumps(_steady(value)))

    def event(self, name: str, **data: Any) -> None:
        """Wait for an event, pass over others, write it down."""
        event = self.daemon.event(name, **data)
        self.say("**", name, json.dumps(_steady(event.get("data", {}))))

    def job(self, job_id: str) -> None:
        """Wait for a job's end; write down how it ended, and dismiss it."""
        self.daemon.event("JOB_STATUS_CHANGE", id=job_id, status="concluded")
        (info,) = (job for job in self.daemon.ok("query-jobs") if job["id"] == job_id)
        self.say(f"** job {job_id} ({info['type']}): {info.get('error', 'done')}")
        self.daemon.ok("job-dismiss", id=job_id)

    def create(self, **options: Any) -> None:
        """Run blockdev-create as a job, to its end."""
        options = {key.replace("_", "-"): value for key, value in options.items()}
        self.qmp("blockdev-create", job_id="create", options=options)
        if any(job["id"] == "create" for job in self.daemon.ok("query-jobs")):
            self.job("create")

    # Other programs

    def run(self, *command: str, only: str = "") -> None:
        """Run a program; write down its output (only lines that `only` matches) and a bad exit."""
        self.say("$", *command)
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        lines = done.stdout.splitlines()
        self._indent("\n".join(line for line in lines if re.search(only, line)))
        if done.returncode:
            self.say(f"exit {done.returncode}")

    def _indent(self, text: str) -> None:
        for line in text.rstrip("\n").splitlines():
            self.say(f"    {line}".rstrip())

    def io(self, uri: str, *commands: str) -> None:
        """Run qemu-io commands on an NBD export; rates are left out."""
        words = [word for command in commands for word in ("-c", command)]
        self.run("qemu-io", "-f", "raw", *words, uri, only=r"^(?!.*ops/sec)")

    def port(self) -> int:
        """Return a TCP port that is free now."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self._ports.append(port)
        return port


_MISSING = object()


def _member(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return _MISSING
    return value


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return value


__all__ = ["Story"]
