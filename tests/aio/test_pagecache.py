# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
from pathlib import Path

import pytest

from qsd.aio.pagecache import CacheProbe


def test_tells_what_is_cached(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    probe = CacheProbe()
    fd = os.open(path, os.O_RDWR)
    try:
        cached = probe.is_cached(fd, 100, 70_000)
        if not probe.can_probe:
            pytest.skip("this kernel has no cachestat(2)")
        assert cached
        assert not probe.is_cached(fd, 0, 2 << 20)
    finally:
        os.close(fd)
    assert not probe.is_cached(fd, 0, 1)  # an error is not a reason to stop asking
    assert probe.can_probe
