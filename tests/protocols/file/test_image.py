# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from qsd.errors import QmpError
from qsd.protocols.file.image import OpenFile, open_file, probe_alignment, seek_size


def accept(mode: int) -> None:
    pass


def test_open_and_close(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 1000)
    opened = open_file(str(path), os.O_RDONLY, accept, seek_size)
    assert (opened.size, opened.align) == (1000, 1)
    assert not os.get_inheritable(opened.fd)
    fd = opened.take()
    opened.close()
    os.fstat(fd)
    os.close(fd)
    other = OpenFile(os.open(path, os.O_RDONLY), 0)
    other.close()
    other.close()


def test_failed_check_closes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    before = set(os.listdir("/proc/self/fd"))

    def refuse(mode: int) -> None:
        raise QmpError("no")

    with pytest.raises(QmpError):
        open_file(str(path), os.O_RDONLY, refuse, seek_size)
    assert set(os.listdir("/proc/self/fd")) == before


def test_alignment_of_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 65536)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert probe_alignment(fd) in (512, 1024, 2048, 4096)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("smallest", "expected"), [(1, 4096), (512, 512), (2048, 2048), (4096, 4096), (8192, 4096)]
)
def test_alignment_found_by_trying(
    smallest: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(fd: int, views: list[memoryview], offset: int, *more: Any) -> int:
        if len(views[0]) % smallest:
            raise OSError(errno.EINVAL, "Invalid argument")
        return len(views[0])

    monkeypatch.setattr(os, "preadv", preadv)
    assert probe_alignment(0) == expected
