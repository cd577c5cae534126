# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.errors import QmpError
from qsd.protocols.file.create import create
from qsd.protocols.file.locks import ImageLock
from qsd.qapi.schema.block_create import BlockdevCreateOptionsFile
from tests.support.memory import Rig


def make(path: Path | str, size: int, **more: Any) -> None:
    async def main() -> None:
        async with Rig() as rig:
            await create(
                rig.graph, BlockdevCreateOptionsFile(filename=str(path), size=size, **more)
            )

    before = set(os.listdir("/proc/self/fd"))
    try:
        run(main())
    finally:
        assert set(os.listdir("/proc/self/fd")) == before


def refusal(path: Path | str, size: int, **more: Any) -> str:
    with pytest.raises(QmpError) as info:
        make(path, size, **more)
    return info.value.desc


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_size_is_taken_as_it_is(path: Path) -> None:
    for size in (1000, 0, 1 << 40):
        make(path, size)
        assert path.stat().st_size == size
        assert path.stat().st_mode & 0o777 == 0o644
        assert path.stat().st_blocks <= 8


def test_old_content_is_dropped(path: Path) -> None:
    path.write_bytes(b"x" * 10000)
    make(path, 10000)
    assert path.read_bytes() == bytes(10000)


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_preallocation(mode: str, path: Path) -> None:
    make(path, 1 << 20, preallocation=mode)
    assert path.stat().st_blocks >= 2048
    assert path.read_bytes() == bytes(1 << 20)


def test_refusals(path: Path, tmp_path: Path) -> None:
    text = "Unsupported preallocation mode: metadata"
    assert refusal(path, 512, preallocation="metadata") == text
    assert path.stat().st_size == 0
    assert refusal(path, 512, extent_size_hint=1 << 32) == "Extent size hint is too large"
    inner = tmp_path / "no" / "dir"
    assert refusal(inner, 512) == f"Could not create '{inner}': No such file or directory"
    assert refusal("", 512) == "Could not create '': No such file or directory"
    assert refusal(tmp_path, 512) == f"Could not create '{tmp_path}': Is a directory"
    assert refusal("/dev/null", 512) == "Could not resize file: Invalid argument"
    assert refusal("a\0b", 512) == "Could not create 'a\0b': No such file or directory"
    assert refusal("/dev/fdset/1", 512) == (
        "Could not dup FD for /dev/fdset/1 flags 42: Function not implemented"
    )


def test_size_limits(path: Path) -> None:
    assert refusal(path, (1 << 63) - 1) == "Could not resize file: File too large"
    assert refusal(path, 1 << 63) == "Could not resize file: Invalid argument"
    text = "Could not preallocate new data: File too large"
    assert refusal(path, 1 << 50, preallocation="falloc") == text
    assert path.stat().st_size == 0


def test_hints_are_only_hints(path: Path) -> None:
    make(path, 4096, nocow=True, extent_size_hint=12345)
    make(path, 4096, nocow=False, extent_size_hint=0)
    make(path, 4096, extent_size_hint=(1 << 32) - 1)


def test_image_in_use_is_left_alone(path: Path) -> None:
    path.write_bytes(b"precious")
    fd = os.open(path, os.O_RDWR)
    lock = ImageLock(fd, "f", (0, 0))
    lock.prepare(perms.CONSISTENT_READ, perms.ALL & ~perms.RESIZE)
    assert refusal(path, 4096) == 'Failed to get "resize" lock'
    assert path.read_bytes() == b"precious"
    os.close(fd)
    make(path, 4096)
