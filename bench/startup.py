# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Measure the time from spawn to the QMP greeting, beside the C daemon.

    python bench/startup.py [-n ROUNDS] [--subject COMMAND] [--reference COMMAND]

The two are started in turn, so that whatever else the machine does hits both alike.  The figure to
look at is the median; the smallest value tells what the machine could do if it did nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Start(NamedTuple):
    """What it took from spawn to greeting, in milliseconds.

    Attributes:
        elapsed: By the clock on the wall.
        processor: Of the daemon's processor time, which other load on the machine hardly changes.
    """

    elapsed: float
    processor: float


def greeting_time(command: list[str], folder: Path) -> Start:
    """Start a daemon that connects its monitor to us, and end it once it has greeted.

    Listening here, rather than polling for a socket of the daemon, measures without a grain.
    """
    path = folder / "qmp.sock"
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(30)
        before = time.perf_counter()
        daemon = subprocess.Popen(
            [*command, "--chardev", f"socket,id=m,path={path}", "--monitor", "m"],
            stdin=subprocess.DEVNULL,
        )
        try:
            connection, _ = listener.accept()
            with connection:
                greeting = connection.recv(4096)
                after = time.perf_counter()
                # clock_getcpuclockid(3) makes the clock of a process out of its id like this.
                processor = time.clock_gettime(~daemon.pid << 3 | 2)
                if b'"QMP"' not in greeting:
                    raise SystemExit(f"no greeting: {greeting!r}")
                connection.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
                while connection.recv(4096):
                    pass
        finally:
            daemon.wait(10)
    return Start((after - before) * 1000, processor * 1000)


def main() -> int:
    """Run both in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", "--rounds", type=int, default=20)
    parser.add_argument("--subject", default=f"{sys.executable} -m qsd")
    parser.add_argument("--reference", default="qemu-storage-daemon")
    options = parser.parse_args()
    commands = {"qsd": shlex.split(options.subject)}
    if shutil.which(shlex.split(options.reference)[0]):
        commands["reference"] = shlex.split(options.reference)
    times: dict[str, list[Start]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="qsd-bench-") as folder:
        for name, command in commands.items():
            greeting_time(command, Path(folder))  # warms caches, writes .pyc files
            del name
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(greeting_time(command, Path(folder)))
    print(f"spawn to QMP greeting, ms, {options.rounds} rounds")
    for name, starts in times.items():
        elapsed = [start.elapsed for start in starts]
        processor = statistics.median(start.processor for start in starts)
        print(
            f"  {name:10} median {statistics.median(elapsed):6.1f}  smallest {min(elapsed):6.1f}"
            f"  processor time {processor:6.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
