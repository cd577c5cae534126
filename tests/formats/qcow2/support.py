# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Images in memory that record every write, and the real tools to make and check them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from qsd.block.node import Node
from qsd.block.piped import Payload
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.support.memory import MemoryDriver, Rig

#: Bytes; damaged images make the driver write anywhere.
MAX_FILE = 256 << 20


class RecordingFile(MemoryDriver):
    """A file in memory, loaded from a real one.

    Attributes:
        writes: What happened, in order: (offset, bytes) of a write, (length, None) of a change of
            the length, None for a flush.
        before: The content when recording began.
    """

    name = "file"
    grows = True

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.writes: list[tuple[int, bytes | None] | None] = []
        self.before = b""
        self.path = Path()

    async def open(self, options: Any, opener: Any) -> None:
        self.path = Path(options.filename)
        self.before = self.path.read_bytes()
        self.data = bytearray(self.before)

    async def close(self) -> None:
        if not self.node.read_only:
            self.path.write_bytes(self.data)

    def filename(self) -> str:
        return str(self.path)

    def receive_nowait(self, offset: int, payload: Payload) -> bool:
        if not self.fast or self.fail("write", offset):
            return False
        pages = os.memfd_create("pages")
        try:
            payload.write_to(pages, 0)
        finally:
            data = os.pread(pages, payload.length, 0)
            os.close(pages)
            if data:
                self._put(offset, data)
        self.node.wr_highest_offset = max(self.node.wr_highest_offset, offset + payload.length)
        return True

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        if offset + len(data) > MAX_FILE:
            raise OSError(errno.EFBIG, "File too large")
        self.writes.append((offset, bytes(data)))
        super()._put(offset, data)

    async def flush(self) -> None:
        await super().flush()
        self.writes.append(None)

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        await super().truncate(length, exact, prealloc, flags)
        self.writes.append((length, None))

    def start_recording(self) -> None:
        self.writes.clear()
        self.before = bytes(self.data)


class Unseen:
    """A payload that is in memory after all.

    Attributes:
        length: Bytes.
        taken: Of so many the file takes; then it is full.
    """

    def __init__(self, data: bytes | memoryview, taken: int = 1 << 30) -> None:
        self.length = len(data)
        self.taken = taken
        self._data = data

    def write_to(self, fd: int, offset: int) -> None:
        os.pwrite(fd, self._data[: self.taken], offset)
        if self.taken < self.length:
            raise OSError(errno.ENOSPC, "No space left on device")


def rig() -> Rig:
    """A graph whose files are RecordingFiles."""
    return Rig(qcow2=Qcow2Driver, file=RecordingFile)


async def add_image(rig: Rig, path: Path, name: str = "q", **options: Any) -> Node:
    """Open an image under a node name."""
    return await rig.add(
        **{
            "driver": "qcow2",
            "node-name": name,
            "file": {"driver": "file", "filename": str(path)},
            **{key.replace("_", "-"): value for key, value in options.items()},
        }
    )


def file_of(node: Node) -> RecordingFile:
    driver = node.children["file"].node.driver
    assert isinstance(driver, RecordingFile)
    return driver


def run(*command: str | Path, ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in ok, done.stdout + done.stderr
    return done.stdout


def make(path: Path, size: str | int = "64M", options: str = "", *words: str) -> Path:
    """Let qemu-img make an image."""
    extra = ["-o", options] if options else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *words, *extra, path, str(size))
    return path


def check(path: Path, *, leaks: bool = False) -> dict[str, Any]:
    """Let qemu-img check an image; corruption fails, and so do leaks unless they are expected."""
    out = run("qemu-img", "check", "-U", "--output=json", path, ok=(0, 3) if leaks else (0,))
    result: dict[str, Any] = json.loads(out)
    assert not result.get("corruptions", 0), out
    return result


def content(path: Path, tmp: Path) -> bytes:
    """Return what the real tools read from an image."""
    raw = tmp / "content.raw"
    run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
    return raw.read_bytes()
