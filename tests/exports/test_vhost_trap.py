# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Memory that vanishes under its user: zeroes where it was guarded, death elsewhere."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qsd.aio import loop
from qsd.aio.pagemap import FilePages, PageMaps
from qsd.exports.vhost_trap import trap
from tests.support.views import need_views

SIZE = 1 << 20
PAGE = mmap.PAGESIZE

pytestmark = pytest.mark.skipif(trap() is None, reason="layouts of this machine are not known")


class Memory:
    """A guarded mapping of a file that has lost all but its first page."""

    def __init__(self) -> None:
        fd = os.memfd_create("memory", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        self.mapping = mmap.mmap(fd, SIZE)
        self.mapping[:] = b"\1" * SIZE
        pages: list[None] = []
        self._lost = pages
        guard = trap()
        assert guard is not None
        guard.guard(self.mapping, lambda: pages.append(None))
        os.ftruncate(fd, PAGE)
        os.close(fd)

    @property
    def lost(self) -> int:
        return len(self._lost)


TOUCHES: dict[str, Callable[[memoryview], object]] = {
    "read": lambda view: view[0],
    "write": lambda view: view.__setitem__(0, 7),
    "copy out": lambda view: bytes(view[:PAGE]),
    "copy in": lambda view: view.__setitem__(slice(0, PAGE), b"x" * PAGE),
    "unpack": lambda view: struct.unpack_from("<QIHHQIHHQIHH", view),
    "pack": lambda view: struct.pack_into("<QQ", view, 8, 1, 2),
    "cast": lambda view: view.cast("H")[5],
}


@pytest.mark.parametrize("how", TOUCHES)
def test_an_access_is_repeated_on_zeroes(how: str) -> None:
    memory = Memory()
    view = memoryview(memory.mapping)
    assert view[PAGE - 1] == 1
    TOUCHES[how](view[4 * PAGE : 5 * PAGE])
    assert memory.lost == 1
    assert view[5 * PAGE - 1] in (0, ord("x"))
    assert memory.lost == 1  # it is there now
    assert view[5 * PAGE] == 0
    assert memory.lost == 2


def test_across_pages_and_many_times() -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(3)
    try:
        memory = Memory()
        view = memoryview(memory.mapping)
        assert bytes(view[PAGE : 20 * PAGE]) == bytes(19 * PAGE)
        for page in range(20, SIZE // PAGE):
            assert struct.unpack_from("<QIHH", view, page * PAGE) == (0, 0, 0, 0)
        assert memory.lost == SIZE // PAGE - 1
    finally:
        gc.set_threshold(*threshold)


def test_system_calls_just_fail() -> None:
    memory = Memory()
    view = memoryview(memory.mapping)
    with open("/dev/zero", "rb") as zeroes, pytest.raises(OSError, match="Bad address"):
        os.preadv(zeroes.fileno(), [view[PAGE : 2 * PAGE]], 0)
    assert not memory.lost


def test_images_are_watched(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\1" * SIZE)
    need_views(path)
    fd = os.open(path, os.O_RDONLY)

    async def main() -> None:
        maps = PageMaps()
        guard = trap()
        assert guard is not None
        guard.watch(maps)
        pages = FilePages(maps, fd)
        view = pages.view_nowait(0, SIZE)
        assert view is not None
        buffer = bytearray(b"\2" * SIZE)
        os.truncate(path, PAGE)
        memoryview(buffer)[:] = view
        assert buffer[:PAGE] == b"\1" * PAGE
        assert buffer[PAGE:] == bytes(SIZE - PAGE)
        assert maps.losses == SIZE // PAGE - 1
        assert maps.mapped() == 0
        maps.settle()

    try:
        loop.run(main())
    finally:
        os.close(fd)


_ELSEWHERE = """
import mmap, os, sys
from qsd.exports.vhost_trap import trap
def mapping():
    fd = os.memfd_create("x")
    os.ftruncate(fd, 8192)
    made = mmap.mmap(fd, 8192)
    os.ftruncate(fd, 0)
    return made
guarded = mapping()
trap().guard(guarded, lambda: None)
assert guarded[0] == 0
if sys.argv[1] == "freed":
    del guarded
    assert not trap()._ranges
print("so far", flush=True)
mapping()[0]
"""


@pytest.mark.parametrize("how", ["kept", "freed"])
def test_elsewhere_it_is_as_it_was(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, how], capture_output=True, text=True, check=False
    )
    assert done.stdout == "so far\n", done.stderr
    assert done.returncode == -signal.SIGBUS
