# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Lookups: kinds and extents, against what the real tools see in the same image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import (
    DATA,
    HOLE,
    SPECIAL,
    ZERO,
    Mapping,
)
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.mapping import _kind, _run
from tests.formats.qcow2.support import add_image, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

#: Commands that leave clusters of every kind.
COMMANDS = (
    "write 0 192k",
    "write -z 64k 64k",
    "write -z -u 256k 64k",
    "write -c 320k 64k",
    "write 1M 512",
    "write 1100k 700k",
    "write -z 3000k 100k",
)


async def mappings(path: Path) -> list[tuple[int, Mapping]]:
    async with rig() as graph:
        node = await add_image(graph, path, read_only=True)
        driver = node.driver
        assert isinstance(driver, Qcow2Driver)
        found = []
        at, end = 0, node.length()
        while at < end:
            mapping = await driver.map(at, end - at)
            assert 0 < mapping.length <= end - at
            assert driver.map_nowait(at, end - at) == mapping
            found.append((at, mapping))
            at += mapping.length
        return found


def as_map(found: list[tuple[int, Mapping]]) -> list[tuple[int, int, bool, bool, int | None]]:
    """Merge as `qemu-img map` does: (start, length, present, data, offset)."""
    merged: list[tuple[int, int, bool, bool, int | None]] = []
    for at, mapping in found:
        present = mapping.kind != HOLE
        data = mapping.kind in (DATA, SPECIAL)
        host = mapping.host_offset if mapping.host_offset >= 0 else None
        if merged:
            start, length, p, d, offset = merged[-1]
            follows = (offset is None and host is None) or (
                offset is not None and offset + length == host
            )
            if (p, d) == (present, data) and follows:
                merged[-1] = (start, length + mapping.length, p, d, offset)
                continue
        merged.append((at, mapping.length, present, data, host))
    return merged


@pytest.mark.parametrize(
    "options",
    ["cluster_size=64k", "cluster_size=4k", "cluster_size=512", "extended_l2=on",
     "extended_l2=on,cluster_size=16k", "preallocation=metadata,cluster_size=4k"],
)  # fmt: skip
def test_the_real_tools_agree(tmp_path: Path, options: str) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "4M", options)
    for command in COMMANDS:
        if "-c" in command and ("prealloc" in options or "64k" not in options):
            continue
        tool("qemu-io", "-f", "qcow2", "-c", command, path)
    theirs = json.loads(tool("qemu-img", "map", "--output=json", "-f", "qcow2", path))
    # What the file system knows of holes below is not the format's business.
    expected = [
        (part["start"], part["length"], part["present"], part.get("offset")) for part in theirs
    ]
    ours = [
        (start, length, present, offset)
        for start, length, present, _, offset in as_map(run(mappings(path)))
    ]
    merged: list[tuple[int, int, bool, int | None]] = []
    for part in expected:
        if merged and merged[-1][2] == part[2]:
            start, length, present, offset = merged[-1]
            if (offset is None and part[3] is None) or (
                offset is not None and part[3] == offset + length
            ):
                merged[-1] = (start, length + part[1], present, offset)
                continue
        merged.append(part)
    simple: list[tuple[int, int, bool, int | None]] = []
    for part in ours:
        if simple and simple[-1][2] == part[2]:
            start, length, present, offset = simple[-1]
            if (offset is None and part[3] is None) or (
                offset is not None and part[3] == offset + length
            ):
                simple[-1] = (start, length + part[1], present, offset)
                continue
        simple.append(part)
    assert simple == merged


def test_holes_reach_over_missing_tables(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "10T")
    ((start, mapping),) = run(mappings(path))
    assert (start, mapping.kind, mapping.length) == (0, HOLE, 10 << 40)


def test_runs_of_subclusters() -> None:
    bitmap = 0b1100 | 0b0011 << 32
    assert _kind(0x10000, bitmap, 0, False) == ZERO
    assert _run(bitmap, ZERO, 0) == 2
    assert _kind(0x10000, bitmap, 2, False) == DATA
    assert _run(bitmap, DATA, 2) == 2
    assert _kind(0x10000, bitmap, 4, False) == HOLE
    assert _run(bitmap, HOLE, 4) == 28
    assert _run(0, HOLE, 31) == 1
    # Both bits, and data without a cluster, are invalid ("Extended L2 Entries").
    assert _kind(0x10000, 1 | 1 << 32, 0, False) == -1
    assert _kind(0, 1, 0, False) == -1
