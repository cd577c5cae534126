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
    ST_ALLOCATED,
    ST_DATA,
    ST_OFFSET,
    ST_ZERO,
    ZERO,
    Mapping,
    Status,
)
from qsd.block.status import chain_status
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.mapping import _kind, _run
from tests.formats.qcow2.support import RecordingFile, add_image, make, rig
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


@pytest.mark.parametrize("backing", [False, True])
def test_fast_extents_agree_with_the_plain_way(
    tmp_path: Path, backing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "i.qcow2", "4M")
    tool("qemu-io", "-f", "qcow2", *(f"-c{command}" for command in COMMANDS), str(path))
    if backing:
        base = make(tmp_path / "base.qcow2", "4M")
        tool("qemu-img", "rebase", "-u", "-b", str(base), "-F", "qcow2", str(path))
    with path.open("ab") as file:
        file.write(bytes(65536))  # the last cluster is there in full

    async def all_data(file: RecordingFile, offset: int, length: int, want_zero: bool) -> Status:
        return Status(length, ST_ALLOCATED | ST_OFFSET | ST_DATA, offset)

    monkeypatch.setattr(RecordingFile, "block_status", all_data)
    monkeypatch.setattr(RecordingFile, "known_data_end", lambda file, offset: len(file.data))

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            assert driver.extents_nowait(0, 4 << 20, 9) == []  # the table is not cached
            served = 0
            for start in range(0, 4 << 20, 60 << 10):
                plain: list[tuple[int, int]] = []
                at, end = start, min(start + (700 << 10), 4 << 20)
                while at < end:
                    status = await chain_status(node, at, end - at)
                    if plain and plain[-1][1] == status.flags:
                        plain[-1] = (plain[-1][0] + status.length, status.flags)
                    else:
                        plain.append((status.length, status.flags))
                    at += status.length
                fast = driver.extents_nowait(start, end - start, 99)
                served += len(fast)
                if backing and len(fast) < len(plain):
                    # It stopped at a hole, whose content is a matter of the backing file.
                    at = start + sum(length for length, _ in fast)
                    assert (await driver.map(at, end - at)).kind == HOLE
                    if fast:
                        length, flags = fast.pop()
                        assert flags == plain[len(fast)][1]
                        assert length <= plain[len(fast)][0]
                    assert fast == plain[: len(fast)]
                else:
                    assert fast == plain
                    assert driver.extents_nowait(start, end - start, 1) == plain[:1]
            assert served > 20

    run(main())


def test_fast_extents_do_not_guess_what_is_a_hole_of_the_file(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "i.qcow2", "4M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 192k", "-c", "write -z 0 64k", str(path))

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            await driver.map(0, 1)
            assert driver.extents_nowait(0, 1 << 20, 9) == [(65536, ST_ZERO | ST_ALLOCATED)]
            assert driver.extents_nowait(65536, 1 << 20, 9) == []

    run(main())
