# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd.errors import QmpError
from qsd.protocols.file import prealloc
from qsd.protocols.file.prealloc import resize


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def size(fd: int) -> int:
    return os.fstat(fd).st_size


def space(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_off_reserves_the_first_block_only(fd: int) -> None:
    resize(fd, 0, 1 << 20, "off")
    assert (size(fd), space(fd)) == (1 << 20, 4096)
    resize(fd, 1 << 20, 100, "off")
    assert size(fd) == 100
    resize(fd, 100, 0, "off")
    resize(fd, 0, 100, "off")  # no whole sector to write
    assert (size(fd), space(fd)) == (100, 0)


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_growing_reserves_the_new_part(mode: str, fd: int) -> None:
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"end", (1 << 20) - 3)
    resize(fd, 1 << 20, (2 << 20) + 1, mode)
    assert size(fd) == (2 << 20) + 1
    assert 1 << 20 < space(fd) < 2 << 20
    assert os.pread(fd, 10, (1 << 20) - 3) == b"end" + bytes(7)
    resize(fd, size(fd), size(fd), mode)
    with pytest.raises(QmpError, match=r"^Preallocation can't be used for shrinking files$"):
        resize(fd, size(fd), 100, mode)


def test_failed_zeroes_are_taken_back(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, views: object, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prealloc, "write_full", full)
    text = "Could not write zeros for preallocation: No space left on device"
    with pytest.raises(QmpError, match=rf"^{text}$"):
        resize(fd, 0, 1 << 20, "full")
    assert size(fd) == 0
    resize(fd, 0, 1 << 20, "off")  # the first block is but a courtesy


def test_failed_reservation_is_taken_back(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(fd: int, mode: int, offset: int, length: int) -> None:
        os.ftruncate(fd, offset + length // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prealloc, "fallocate", half)
    text = "Could not preallocate new data: No space left on device"
    with pytest.raises(QmpError, match=rf"^{text}$"):
        resize(fd, 0, 1 << 20, "falloc")
    assert size(fd) == 0


def test_failed_sync_is_taken_back(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(QmpError, match=r"^Could not flush file to disk: Input/output error$"):
        resize(fd, 0, 4096, "full")
    assert size(fd) == 0


def test_unsupported(fd: int) -> None:
    with pytest.raises(QmpError, match=r"^Unsupported preallocation mode: metadata$"):
        resize(fd, 0, 4096, "metadata")
