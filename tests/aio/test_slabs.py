# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import ctypes
import gc
import mmap
import os
import weakref

import pytest

from qsd.aio.slabs import Slabs

MIB = 1 << 20


def test_pieces_are_memory_of_their_own() -> None:
    cutter = Slabs()
    pieces = [cutter.cut(size) for size in (4096, MIB, 8192, 4 * MIB, 4 * MIB, 8 * MIB)]
    for number, (piece, address) in enumerate(pieces):
        assert address == ctypes.addressof(ctypes.c_char.from_buffer(piece))
        assert address % mmap.PAGESIZE == 0
        piece[:8] = piece[-8:] = bytes([number]) * 8
    assert [len(piece) for piece, _ in pieces] == [4096, MIB, 8192, 4 * MIB, 4 * MIB, 8 * MIB]
    for number, (piece, _) in enumerate(pieces):
        assert piece[:8] == piece[-8:] == bytes([number]) * 8


def flags_at(address: int) -> list[str]:
    """Return how the kernel treats the mapping at an address (proc_pid_smaps(5), VmFlags)."""
    inside = False
    with open("/proc/self/smaps", encoding="ascii") as maps:
        for line in maps:
            first, _, rest = line.partition(" ")
            if first.endswith(":"):
                if inside and first == "VmFlags:":
                    return rest.split()
            else:
                start, end = (int(word, 16) for word in first.split("-"))
                inside = start <= address < end
    raise AssertionError("nothing is mapped there")


def test_huge_pages_are_asked_for_and_no_fork_shares_them() -> None:
    first, address = Slabs().cut(4096)
    assert address % (2 * MIB) == 0
    flags = flags_at(address)
    assert "dc" in flags
    if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        assert "hg" in flags
    first.release()


def test_a_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(mmap.mmap):
        def madvise(self, option: int, *where: int) -> None:
            if option == mmap.MADV_HUGEPAGE:
                raise OSError(22, "Invalid argument")
            super().madvise(option, *where)

    monkeypatch.setattr("qsd.aio.slabs.mmap", Plain)
    piece, _ = Slabs().cut(4096)
    piece[:] = bytes(range(256)) * 16


def test_a_slab_lives_as_long_as_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[mmap.mmap]] = []

    class Watched(mmap.mmap):
        def __init__(self, *_: object, **__: object) -> None:
            made.append(weakref.ref(self))

    monkeypatch.setattr("qsd.aio.slabs.mmap", Watched)
    cutter = Slabs()
    pieces = [cutter.cut(4 * MIB)[0] for _ in range(3)]
    del pieces[0]
    gc.collect()
    assert [one() is None for one in made] == [False, False]
    del pieces[0]
    gc.collect()
    assert [one() is None for one in made] == [True, False]
