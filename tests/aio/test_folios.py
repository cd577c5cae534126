# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Splitting folios for the sake of small writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qsd.aio import folios
from qsd.aio.folios import FolioSplitter
from qsd.aio.pagecache import CacheProbe

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 1 << 20


class Calls:
    """Stands in for the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offsets: list[int] = []
        monkeypatch.setattr(folios, "_splitter", lambda: self._split)

    def _split(self, fd: int, offset: int) -> None:
        self.offsets.append(offset)


class NothingCached(CacheProbe):
    """Knows of no page."""

    def is_cached(self, fd: int, offset: int, length: int) -> bool:
        """Say no."""
        return False


@pytest.fixture
def cached(tmp_path: Path) -> int:
    """Return a descriptor of a file of 4 MiB that was just written."""
    path = tmp_path / "image"
    path.write_bytes(b"x" * (4 << 20))
    return os.open(path, os.O_RDWR)


def test_many_slow_small_writes_start_it() -> None:
    splitter = FolioSplitter()
    for number in range(200):
        splitter.was_slow(number * 1e-4, number * 1e-4 + 50e-6)
    assert splitter.until > 5


def test_rare_slow_writes_do_not() -> None:
    splitter = FolioSplitter()
    for number in range(500):
        splitter.was_slow(number * 0.01, number * 0.01 + 50e-6)
    assert not splitter.until


def test_a_long_wait_counts_as_one_slow_write() -> None:
    splitter = FolioSplitter()
    splitter.was_slow(1.0, 3.0)
    assert not splitter.until


def test_each_block_is_looked_at_once_for_a_while(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    splitter = FolioSplitter()
    if not splitter._probe.is_cached(cached, 0, 1):
        pytest.skip("the kernel does not tell what is cached")
    splitter.prepare(cached, 5000, 1.0)
    splitter.prepare(cached, 4096, 1.1)
    splitter.prepare(cached, BLOCK, 1.2)
    assert calls.offsets == [5000, BLOCK]
    splitter.prepare(cached, 4096, 7.0)
    assert calls.offsets == [5000, BLOCK, 4096]
    os.close(cached)


def test_what_is_not_cached_is_left_alone(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    splitter = FolioSplitter()
    monkeypatch.setattr(splitter, "_probe", NothingCached())
    splitter.prepare(cached, 0, 1.0)
    assert not calls.offsets
    os.close(cached)


def test_memory_for_blocks_is_bounded(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folios, "_MAX_BLOCKS", 3)
    Calls(monkeypatch)
    splitter = FolioSplitter()
    for number in range(20):
        splitter.prepare(cached, number * BLOCK, 1.0)
    assert len(splitter._looked_at) <= 3
    os.close(cached)


def test_content_stays_and_no_page_is_lost(cached: int) -> None:
    os.fsync(cached)
    splitter = FolioSplitter()
    for offset in range(0, 4 << 20, BLOCK):
        splitter.prepare(cached, offset + 4096, 1.0)
        os.pwrite(cached, b"y" * 4096, offset + 4096)
    for offset in range(0, 4 << 20, BLOCK):
        assert os.pread(cached, BLOCK, offset) == b"x" * 4096 + b"y" * 4096 + b"x" * (BLOCK - 8192)
    os.close(cached)


def test_a_file_that_cannot_be_mapped_is_left_alone() -> None:
    reading, writing = os.pipe()
    folios._splitter()(writing, 0)
    os.close(reading)
    os.close(writing)
