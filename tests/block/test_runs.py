# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from qsd.block.runs import Runs, all_allocated, split

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


@given(st.lists(st.sampled_from((0, 1, 2, 5)), min_size=1, max_size=40), st.integers(9, 21))
def test_split(flags: list[int], bits: int) -> None:
    lengths, kinds = split(bytes(flags), bits)
    assert list(zip(lengths, kinds, strict=True)) == joined([(1 << bits, one) for one in flags])


@given(
    st.lists(
        st.tuples(st.integers(0, 127), st.one_of(st.integers(1, 5), st.integers(125, 131))),
        max_size=9,
    ),
    st.integers(9, 40),
)
def test_splitting_runs_of_any_length(runs: list[tuple[int, int]], bits: int) -> None:
    flags = b"".join(bytes((kind,)) * count for kind, count in runs)
    lengths, kinds = split(flags, bits)
    assert list(zip(lengths, kinds, strict=True)) == joined([(1 << bits, one) for one in flags])


def test_what_was_cut_is_known_to_end() -> None:
    runs = runs_of([(3, 1), (4, 2)])
    ends = []
    for limit in (2, 1):
        runs.cut(limit)
        ends.append(runs.ends)
    assert ends == [False, True]
    assert pairs(runs) == [(3, 1)]
    assert pairs(all_allocated(7)) == [(7, 1)]
