# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status in the plain way, to compare the fast ones with."""

from __future__ import annotations

from qsd.block.mapping import ST_DATA, ST_ZERO
from qsd.block.node import Node
from qsd.block.runs import Runs
from qsd.block.status import chain_status


def pairs(runs: Runs | None) -> list[tuple[int, int]]:
    """Return (length, flags) of each run."""
    return [] if runs is None else list(zip(runs.lengths, runs.flags, strict=True))


async def plainly(node: Node, start: int, end: int) -> list[tuple[int, int]]:
    """Ask for one extent after the other."""
    runs = Runs()
    while start < end:
        status = await chain_status(node, start, end - start)
        runs.add(status.length, status.flags & (ST_DATA | ST_ZERO))
        start += status.length
    return pairs(runs)
