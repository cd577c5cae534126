# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsd.util.extents import MAX_EXTENTS, Extents

ranges = st.tuples(st.integers(0, 60), st.integers(1, 10)).map(lambda r: (r[0], r[0] + r[1]))


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=30))
def test_model(operations: list[tuple[bool, tuple[int, int]]]) -> None:
    extents = Extents()
    model: set[int] = set()
    for add, (start, end) in operations:
        if add:
            extents.add(start, end)
            model.update(range(start, end))
        else:
            extents.forget(start, end)
            model.difference_update(range(start, end))
        for at in range(75):
            found = extents.end_of(at)
            assert (found > at) == (at in model)
            if found:
                assert found not in model
                assert all(inner in model for inner in range(at, found))


def test_the_number_of_ranges_is_bounded() -> None:
    extents = Extents()
    for index in range(MAX_EXTENTS + 10):
        extents.add(index * 10, index * 10 + 5)
    assert len(extents) == 10
    assert extents.end_of((MAX_EXTENTS + 5) * 10) == (MAX_EXTENTS + 5) * 10 + 5
