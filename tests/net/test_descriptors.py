# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Clients leave a reserve of descriptors."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from qsd.net.descriptors import RESERVE, has_room_for_client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def limit() -> Iterator[int]:
    """Allow as many descriptors as are open, the reserve, and ten."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + RESERVE + 10, hard))
    yield 10
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_reserve_is_left_alone(limit: int) -> None:
    taken = []
    while has_room_for_client(0):
        taken.append(os.dup(0))
    rest = [os.dup(0) for _ in range(RESERVE - 1)]
    for fd in (*taken, *rest):
        os.close(fd)
    assert 1 <= len(taken) <= limit
    assert has_room_for_client(0)


def test_no_descriptor_at_all(limit: int) -> None:
    taken: list[int] = []
    found = True
    try:
        while len(taken) <= limit + RESERVE:
            taken.append(os.dup(0))
    except OSError:
        found = has_room_for_client(0)
    for fd in taken:
        os.close(fd)
    assert not found
