# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Serve a demo image: a daemon with a QMP socket, a new qcow2 image, an NBD export of it.

Everything after the start is done over QMP, the way a management program does it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZE = 1 << 30


class Qmp:
    """Just enough of a QMP client: one JSON object per line, events are skipped."""

    def __init__(self, path: Path, daemon: subprocess.Popen[bytes]) -> None:
        """Connect to the daemon's socket as soon as it is there."""
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if daemon.poll() is not None:
                    raise SystemExit("the daemon did not start") from None
                time.sleep(0.02)
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Run one command and return its result."""
        request = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            reply = json.loads(self._file.readline())
            if "error" in reply:
                raise SystemExit(f"{name}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def run_job(self, name: str, **arguments: Any) -> None:
        """Run a command that starts a job, and wait for the job's end."""
        self.command(name, **{"job-id": "demo", **arguments})
        while True:
            (job,) = self.command("query-jobs")
            if job["status"] == "concluded":
                break
            time.sleep(0.02)
        self.command("job-dismiss", id="demo")
        if "error" in job:
            raise SystemExit(f"{name}: {job['error']}")

    def close(self) -> None:
        """Leave; the daemon goes on."""
        self._file.close()
        self._socket.close()


def make_image(qmp: Qmp, image: Path) -> None:
    """Create a qcow2 image with the daemon's own means."""
    qmp.run_job("blockdev-create", options={"driver": "file", "filename": str(image), "size": 0})
    qmp.command("blockdev-add", **{"driver": "file", "node-name": "file", "filename": str(image)})
    qmp.run_job("blockdev-create", options={"driver": "qcow2", "file": "file", "size": SIZE})


def set_up(qmp: Qmp, image: Path) -> None:
    """Open the image, after making it if need be, and export it."""
    if image.exists():
        qmp.command(
            "blockdev-add", **{"driver": "file", "node-name": "file", "filename": str(image)}
        )
    else:
        make_image(qmp, image)
    qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "demo", "file": "file"})
    qmp.command(
        "block-export-add",
        **{"type": "nbd", "id": "demo", "node-name": "demo", "writable": True},
    )
    qmp.close()


def main() -> int:
    """Start, set up, explain, and stay until the daemon ends."""
    folder = Path(os.environ.get("QSD_DEMO") or tempfile.mkdtemp(prefix="qsd-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    image, qmp_path, nbd_path = folder / "demo.qcow2", folder / "qmp.sock", folder / "nbd.sock"
    command = Path(sys.executable).parent / "qemu-storage-daemon"
    daemon = subprocess.Popen(
        [
            str(command),
            *("--chardev", f"socket,id=qmp,path={qmp_path},server=on,wait=off"),
            *("--monitor", "chardev=qmp"),
            *("--nbd-server", f"addr.type=unix,addr.path={nbd_path}"),
        ]
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon gets it too, and we follow it
    signal.signal(signal.SIGTERM, lambda *_: daemon.terminate())
    try:
        set_up(Qmp(qmp_path, daemon), image)
    except BaseException:
        daemon.terminate()
        daemon.wait()
        raise
    print(
        f"""
The daemon runs as process {daemon.pid}.  Its image: {image}

In another terminal:

  look at the export          nbdinfo 'nbd+unix:///demo?socket={nbd_path}'
  write and read              qemu-io -f raw 'nbd+unix:///demo?socket={nbd_path}' \\
                                  -c 'write -P 42 0 1M' -c 'read -P 42 0 1M'
  copy it out                 qemu-img convert -O raw \\
                                  'nbd+unix:///demo?socket={nbd_path}' copy.raw
  talk to the monitor         socat - UNIX-CONNECT:{qmp_path}
                              {{"execute": "qmp_capabilities"}}
                              {{"execute": "query-block-exports"}}
  end it                      {{"execute": "quit"}}, or Ctrl-C here
""",
        flush=True,
    )
    return daemon.wait()


if __name__ == "__main__":
    sys.exit(main())
