# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The same random vhost-user sessions for both daemons: the answers must be the same.

Compared are statuses, lengths and data of all requests, where rings are gone on with, what ends a
session, and at the end the images.
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.tools import need, run
from iotests.harness.vhost_replay import DISK, Maker, Session, play
from tests.support import vhost_frontend as vf

pytestmark = [pytest.mark.slow, pytest.mark.interop]

SESSIONS = 40
QUEUES = 3

#: By name: the nodes, and options of the export.
CASES = {
    "raw": (["file,node-name=top,filename=image,discard=unmap"], "writable=on"),
    "read-only": (["file,node-name=top,filename=image,read-only=on"], ""),
    "blocks of 4k": (
        ["file,node-name=top,filename=image,discard=unmap"],
        "writable=on,logical-block-size=4096",
    ),
    "qcow2": (
        [
            "file,node-name=file,filename=image,discard=unmap",
            "qcow2,node-name=top,file=file,discard=unmap",
        ],
        "writable=on,writethrough=on",
    ),
}


class Side:
    """A daemon that is started again whenever a front end has killed it."""

    def __init__(self, kind: str, folder: Path, case: str) -> None:
        self._kind = kind
        self._folder = folder
        self._nodes, self._options = CASES[case]
        self.deaths = 0
        self._daemon = self._start()

    def _start(self) -> Daemon:
        (self._folder / "vhost.sock").unlink(missing_ok=True)
        path = self._folder / "vhost.sock"
        export = f"vhost-user-blk,id=x,node-name=top,num-queues={QUEUES}"
        options = f",{self._options}" if self._options else ""
        return Daemon(
            self._kind,
            self._folder,
            *(part for node in self._nodes for part in ("--blockdev", node)),
            *("--export", f"{export},addr.type=unix,addr.path={path}{options}"),
        )

    def play(self, session: Session) -> list[str]:
        transcript = play(self._folder / "vhost.sock", session)
        if transcript[-1] == "broken":
            # Whether it lives on is the original's weakness; ours must.
            try:
                self._daemon.ok("query-block-exports")
            except (OSError, EOFError):
                self.deaths += 1
                self._daemon.kill()
                self._daemon = self._start()
        return transcript

    def quit(self) -> None:
        assert self._daemon.quit() == 0

    def kill(self) -> None:
        self._daemon.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="vhost-replay-") as path:
        yield Path(path)


def make_image(folder: Path, case: str) -> None:
    data = random.Random(case).randbytes(DISK // 2)
    (folder / "flat").write_bytes(data + bytes(DISK // 2))
    fmt = "qcow2" if case == "qcow2" else "raw"
    run(folder, "qemu-img", "convert", "-f", "raw", "-O", fmt, "flat", "image")


@pytest.mark.parametrize("seed", [1, 1000])
@pytest.mark.parametrize("case", CASES)
def test_same_answers(folder: Path, case: str, seed: int) -> None:
    need("qemu-img", "qemu-storage-daemon")
    theirs = folder / "real"
    theirs.mkdir()
    make_image(theirs, case)
    run(folder, "cp", "-a", "real", "ours")
    mine, original = Side("ours", folder / "ours", case), Side("real", theirs, case)
    try:
        for number in range(seed, seed + SESSIONS):
            session = Maker(random.Random(number), QUEUES).session()
            expected = original.play(session)
            assert mine.play(session) == expected, f"seed {number}: {session}"
        assert not mine.deaths
        mine.quit()
        original.quit()
    finally:
        mine.kill()
        original.kill()
    fmt = "qcow2" if case == "qcow2" else "raw"
    run(folder, "qemu-img", "compare", "-f", fmt, "-F", fmt, "ours/image", "real/image")


class Guest(vf.Frontend):
    """The memory of a front end that no back end serves."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/socket")
            listener.listen()
            super().__init__(f"{folder}/socket", 4096)


#: Reads an index in shared memory until its input ends; prints what it was beside 1 and 2.
WATCH = """
import mmap, select, sys
words = memoryview(mmap.mmap(int(sys.argv[1]), 4096)).cast("H")
at, seen = int(sys.argv[2]) // 2, set()
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    for _ in range(1000):
        seen.add(words[at])
print(sorted(seen - {1, 2}))
"""


def test_an_index_is_never_seen_half_written() -> None:
    """A device that polls its ring finds the old index or the new one.

    Once this front end cleared an index before it wrote it.  The original, asked for more just
    then, served old requests again or gave up on the ring, some time in a thousand sessions.
    """
    with Guest() as guest:
        queue = vf.Queue(guest, 0, 64, 0)
        guest.queues.append(queue)
        arguments = [sys.executable, "-c", WATCH, str(guest.memfd), str(queue.avail + 2)]
        queue.avail_idx = 1
        queue.offer(kick=False)
        with subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[guest.memfd],
            text=True,
        ) as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "ready\n"
            for _ in range(50_000):
                queue.avail_idx = 3 - queue.avail_idx
                queue.offer(kick=False)
            assert watcher.communicate("")[0] == "[]\n"
