# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""SIGKILL while an overlay grows over a backing file that is longer than itself.

What the backing file has behind the overlay's old end was never part of the guest's disk.  When the
overlay grows, that place must show zeroes, whenever the daemon dies: either the image is still as
short as it was, or the old data is hidden already.
"""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

from iotests.harness.crash import SECTOR, Load, stamp
from iotests.harness.daemon import PATIENCE, Daemon
from iotests.harness.nbd import READ, Gone
from iotests.harness.tools import check_image, need, run

START = 2 << 20
LIMIT = 24 << 20

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "tiny-clusters": ["-o", "cluster_size=512"],
    "large-clusters": ["-o", "cluster_size=2M"],
    "extended-l2": ["-o", "extended_l2=on,cluster_size=64k"],
    "data-file": ["-o", "data_file=data.raw"],
    "lazy": ["-o", "lazy_refcounts=on,cluster_size=4k"],
}

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(3600)]


def make(folder: Path, variant: str) -> dict[int, bytes]:
    """Create an overlay shorter than its backing file; return what its sectors show."""
    content = b"".join(bytes([sector % 251 + 1]) * SECTOR for sector in range(LIMIT // SECTOR))
    (folder / "base.raw").write_bytes(content)
    new_overlay(folder, variant)
    return {n: content[n * SECTOR : (n + 1) * SECTOR] for n in range(START // SECTOR)}


def new_overlay(folder: Path, variant: str) -> None:
    """Create the overlay, in the place of an old one if there is any."""
    options = [*VARIANTS[variant], "-b", "base.raw", "-F", "raw"]
    (folder / "data.raw").unlink(missing_ok=True)
    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *options, "image", str(START))


def examine(folder: Path, variant: str) -> memoryview:
    """Check the image and return its content."""
    if variant == "lazy":
        run(folder, "qemu-img", "check", "-r", "all", "-f", "qcow2", "image")
    check_image(folder, "image", leaks=True)
    run(folder, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "after.raw")
    return memoryview((folder / "after.raw").read_bytes())


def check_rest(content: memoryview, touched: set[int]) -> None:
    """Find anything but zeroes where nobody ever wrote, behind the first end."""
    zeroes = bytes(SECTOR)
    for sector in range(START // SECTOR, len(content) // SECTOR):
        if sector not in touched:
            found = content[sector * SECTOR : (sector + 1) * SECTOR]
            assert found == zeroes, f"sector {sector} shows {found[0]}, nobody wrote it"


class Story:
    """Grows an image step by step, with some writing after each, until the daemon is gone."""

    def __init__(self, folder: Path, source: random.Random, before: dict[int, bytes]) -> None:
        self.folder = folder
        self.source = source
        self.before = dict(before)
        self.sizes = {START}  # what the image may be long now
        self.load: Load | None = None
        self.touched: set[int] = set()

    def tell(self, daemon: Daemon) -> None:
        """Go on until the image is at its limit."""
        size = START
        while size < LIMIT:
            wanted = min(size + self.source.choice([512, 4096, 70_000, 1 << 20, 5 << 20]), LIMIT)
            wanted -= wanted % SECTOR
            self.sizes = {size, wanted}
            daemon.ok("block_resize", **{"node-name": "top"}, size=wanted)
            self.sizes = {wanted}
            size = wanted
            self._write(daemon)

    def _write(self, daemon: Daemon) -> None:
        options = {"node-name": "top", "id": "x", "type": "nbd", "writable": True}
        daemon.ok("block-export-add", **options)
        load = self.load = Load(self.folder / "nbd.sock", "top", self.source.randrange(1 << 30))
        try:
            load.run(self.source.randrange(1, 12), self.before)
            load.settle()
            self.before = load.verify(self._read(load))
            self.touched.update(load.history)
            self.load = None
        finally:
            load.client.close()
        daemon.ok("block-export-del", id="x")
        daemon.event("BLOCK_EXPORT_DELETED", id="x")

    def _read(self, load: Load) -> bytes:
        step = 4 << 20
        size = load.client.size
        return b"".join(
            load.client.call(READ, at, min(step, size - at)) for at in range(0, size, step)
        )

    def verify(self, content: memoryview) -> None:
        """Compare the image with what may be there."""
        assert len(content) in self.sizes
        if self.load is not None:
            self.load.verify(content)
            self.touched.update(self.load.history)
        else:
            for sector, data in self.before.items():
                assert content[sector * SECTOR : (sector + 1) * SECTOR] == data
        check_rest(content, self.touched)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resizing(variant: str, tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    need("qemu-img")
    before = make(tmp_path, variant)
    source = random.Random(variant)
    for _ in range(-(-kill_rounds // len(VARIANTS))):
        new_overlay(tmp_path, variant)
        story = Story(tmp_path, source, before)
        with Daemon(
            daemon_kind,
            tmp_path,
            *("--blockdev", "file,node-name=file,filename=image"),
            *("--blockdev", "qcow2,node-name=top,file=file"),
            *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        ) as daemon:
            killer = threading.Timer(source.uniform(0.0, 0.5), daemon.process.kill)
            killer.start()
            try:
                story.tell(daemon)
            except (OSError, EOFError, Gone):
                assert daemon.process.wait(PATIENCE) < 0
            killer.join()
        (tmp_path / "nbd.sock").unlink(missing_ok=True)
        story.verify(examine(tmp_path, variant))


class Growth:
    """Writes behind the end of a mounted image, and what may be found there afterwards."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.flushed = START
        self.largest = START
        # By sector: contents it may have, oldest first; a flush leaves the newest.
        self.allowed: dict[int, list[bytes]] = {}

    def tell(self, path: Path) -> None:
        """Write until the image is at its limit."""
        file = os.open(path, os.O_RDWR)
        try:
            number = 0
            while self.largest < LIMIT:
                number += 1
                self._step(file, number)
        finally:
            os.close(file)

    def _step(self, file: int, number: int) -> None:
        source = self.source
        gap = source.choice([0, 0, SECTOR, 8 * SECTOR, 1 << 20])
        count = source.choice([1, 8, 64, 200])
        first = (self.largest + gap) // SECTOR
        end = (first + count) * SECTOR
        self.largest = max(self.largest, end)
        kind = source.choice(["write", "write", "write", "truncate", "fsync"])
        if kind == "truncate":
            os.ftruncate(file, end)
        elif kind == "fsync":
            self.largest = max(self.largest, os.fstat(file).st_size)
            os.fsync(file)
            self.flushed = os.fstat(file).st_size
            self.allowed = {sector: seen[-1:] for sector, seen in self.allowed.items()}
        else:
            for sector in range(first, first + count):
                self.allowed.setdefault(sector, [bytes(SECTOR)]).append(stamp(number))
            done = os.pwrite(file, stamp(number) * count, first * SECTOR)
            assert done == count * SECTOR

    def verify(self, content: memoryview, before: dict[int, bytes]) -> None:
        """Compare the image with what may be there."""
        assert self.flushed <= len(content) <= self.largest
        for sector, data in before.items():
            assert content[sector * SECTOR : (sector + 1) * SECTOR] == data
        for sector, seen in self.allowed.items():
            found = bytes(content[sector * SECTOR : (sector + 1) * SECTOR])
            assert not found or found in seen, f"sector {sector}"
        check_rest(content, set(self.allowed))


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and FUSE"
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_writing_behind_the_end(
    variant: str, tmp_path: Path, daemon_kind: str, kill_rounds: int
) -> None:
    need("qemu-img")
    before = make(tmp_path, variant)
    source = random.Random(variant)
    for number in range(-(-kill_rounds // len(VARIANTS))):
        new_overlay(tmp_path, variant)
        disk = tmp_path / f"disk{number}"
        disk.touch()
        growth = Growth(source)
        with Daemon(
            daemon_kind,
            tmp_path,
            *("--blockdev", "file,node-name=file,filename=image"),
            *("--blockdev", "qcow2,node-name=top,file=file"),
            *("--export", f"fuse,id=x,node-name=top,mountpoint={disk},writable=on,growable=on"),
        ) as daemon:
            killer = threading.Timer(source.uniform(0.0, 0.4), daemon.process.kill)
            killer.start()
            try:
                growth.tell(disk)
            except OSError as exc:
                if exc.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                    raise
                assert daemon.process.wait(PATIENCE) < 0
            killer.join()
        subprocess.run(["umount", "-l", str(disk)], check=False)
        growth.verify(examine(tmp_path, variant), before)


def test_the_backing_file_has_what_must_not_show(tmp_path: Path) -> None:
    """The tests above would see it: a bare change of the length shows the old data."""
    need("qemu-img")
    make(tmp_path, "plain")
    image = tmp_path / "image"
    header = bytearray(image.read_bytes())
    header[24:32] = LIMIT.to_bytes(8, "big")  # "size" in the specification's header
    image.write_bytes(header)
    info = run(tmp_path, "qemu-img", "info", "--output=json", "image")
    assert json.loads(info)["virtual-size"] == LIMIT
    with pytest.raises(AssertionError, match="nobody wrote it"):
        check_rest(examine(tmp_path, "plain"), set())
