# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Power cuts, replayed from a log of all writes.

The daemon serves a qcow2 image through blklogwrites.  Afterwards, states that a power cut could
have left are built from the log: everything before the last flush is there, and of the writes
since then any part may be missing.  Each of them must check clean but for leaked clusters.

Log format: Linux kernel documentation, "dm-log-writes".
"""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from iotests.harness.crash import Load
from iotests.harness.daemon import Daemon
from iotests.harness.tools import check_image, need, run

SECTOR = 512
FLUSH, FUA, DISCARD = 1, 2, 4

VARIANTS = {
    "plain": [],
    "small-clusters": ["-o", "cluster_size=4k"],
    "refcount1": ["-o", "refcount_bits=1,cluster_size=4k"],
    "extended-l2": ["-o", "extended_l2=on,cluster_size=32k"],
    "v2": ["-o", "compat=0.10,cluster_size=4k"],
    "snapshot": ["-o", "cluster_size=4k"],
}


class Entry(NamedTuple):
    """One logged change."""

    offset: int
    length: int
    flags: int
    data: bytes


def read_log(path: Path) -> list[Entry]:
    """Parse a log."""
    log = path.read_bytes()
    magic, version, count, sector_size = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (0x6A736677736872, 1)
    entries = []
    position = sector_size
    for _ in range(count):
        sector, sectors, flags, _ = struct.unpack_from("<QQQQ", log, position)
        position += sector_size
        length = sectors * sector_size
        data = b""
        if not flags & DISCARD:
            data = log[position : position + length]
            position += length
        entries.append(Entry(sector * sector_size, length, flags, data))
    return entries


def apply(image: bytearray, entry: Entry) -> None:
    """Carry out one entry."""
    data = bytes(entry.length) if entry.flags & DISCARD else entry.data
    end = entry.offset + len(data)
    if end > len(image):
        image.extend(bytes(end - len(image)))
    image[entry.offset : end] = data


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_state_is_consistent(
    variant: str, tmp_path: Path, daemon_kind: str, kill_rounds: int
) -> None:
    need("qemu-img", "qemu-io")
    run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", *VARIANTS[variant], "image", "8M")
    if variant == "snapshot":
        run(tmp_path, "qemu-io", "-f", "qcow2", "-c", "write -P 9 0 2M", "image")
        run(tmp_path, "qemu-img", "snapshot", "-c", "before", "image")
    shutil.copyfile(tmp_path / "image", tmp_path / "before")
    (tmp_path / "log").write_bytes(b"")
    with Daemon(
        daemon_kind,
        tmp_path,
        "--blockdev",
        "file,node-name=file,filename=image,discard=unmap",
        "--blockdev",
        "file,node-name=log,filename=log",
        "--blockdev",
        "blklogwrites,node-name=logged,file=file,log=log,discard=unmap",
        "--blockdev",
        "qcow2,node-name=top,file=logged,discard=unmap",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=x,node-name=top,name=x,writable=on",
    ) as daemon:
        load = Load(tmp_path / "nbd.sock", "x", 11)
        load.run(120)
        load.client.close()
        assert daemon.stop() == 0
    entries = read_log(tmp_path / "log")
    assert sum(bool(entry.flags & FLUSH) for entry in entries) > 3
    check_states(tmp_path, entries, choose_cuts(entries, 5 * kill_rounds))


def choose_cuts(entries: list[Entry], states: int) -> list[tuple[int, float]]:
    """Return where power is cut, and which share of the writes since the last flush is there.

    With enough states that is after each entry, once with all that was written up to there and once
    with a part of it; else half of the cuts lie just before a flush.
    """
    source = random.Random(3)
    if states >= len(entries):
        everywhere = range(len(entries) + 1)
        return [
            (point, share)
            for point in everywhere
            for share in (1.0, source.choice([0.0, 0.2, 0.5, 0.8]))
        ]
    flushes = [index for index, entry in enumerate(entries) if entry.flags & FLUSH]
    points = sorted(
        source.choice(flushes) if source.random() < 0.5 else source.randrange(len(entries))
        for _ in range(states)
    )
    return [(point, source.choice([0.0, 0.2, 0.5, 0.8, 1.0])) for point in points]


def check_states(folder: Path, entries: list[Entry], cuts: list[tuple[int, float]]) -> None:
    """Build states and let qemu-img check them."""
    source = random.Random(3)
    flushes = [index for index, entry in enumerate(entries) if entry.flags & FLUSH]
    durable = bytearray((folder / "before").read_bytes())
    done = 0  # entries that are in `durable`
    for point, share in cuts:
        last = max((index for index in flushes if index < point), default=-1)
        for entry in entries[done : last + 1]:
            apply(durable, entry)
        done = max(done, last + 1)
        state = bytearray(durable)
        for entry in entries[done:point]:
            if source.random() < share or entry.flags & FUA:
                apply(state, entry)
        (folder / "state").write_bytes(state)
        check_image(folder, "state", leaks=True)
