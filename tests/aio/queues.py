# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What tests of the ways to hand requests to the kernel need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest

from qsd.aio.kernel_queue import KernelQueue
from qsd.aio.operations import Operation

Queue = TypeVar("Queue", bound=KernelQueue)


def make(kind: type[Queue], entries: int = 8) -> Queue:
    """Make a queue, or skip the test where the kernel gives none."""
    try:
        return kind(asyncio.get_running_loop(), entries)
    except OSError as exc:
        pytest.skip(f"the kernel gives none here: {exc}")


class Ends:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.batches: list[list[Operation]] = []
        self.fails = False

    def finished(self, operations: list[Operation]) -> None:
        self.batches.append(operations)
        if self.fails:
            raise ValueError

    @property
    def ended(self) -> list[Operation]:
        return [each for batch in self.batches for each in batch]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)
