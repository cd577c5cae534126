# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def numbered(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file in which each byte is its offset, modulo 256."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(range(256)) * 1024, 0)
    yield fd
    os.close(fd)
