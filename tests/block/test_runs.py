# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from qsd.block.runs import Runs

EXTENTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=9)


def joined(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [
        (sum(length for length, _ in group), flags)
        for flags, group in groupby(extents, key=lambda extent: extent[1])
    ]


def runs_of(extents: list[tuple[int, int]]) -> Runs:
    runs = Runs()
    for length, flags in extents:
        runs.add(length, flags)
    return runs


def pairs(runs: Runs) -> list[tuple[int, int]]:
    return list(zip(runs.lengths, runs.flags, strict=True))


@given(EXTENTS, EXTENTS, st.integers(0, 9))
def test_neighbours_of_one_kind_are_one(
    first: list[tuple[int, int]], second: list[tuple[int, int]], limit: int
) -> None:
    runs = runs_of(first)
    assert pairs(runs) == joined(first)
    more = runs_of(second)
    runs.extend_by(more)
    both = joined(first + second)
    assert pairs(runs) == both
    assert len(runs) == len(both)
    assert runs.total == sum(length for length, _ in both)
    runs.cut(limit)
    assert pairs(runs) == both[:limit]
    assert runs.total == sum(length for length, _ in both[:limit])
