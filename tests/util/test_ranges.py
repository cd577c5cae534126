# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsd.util.ranges import align_down, align_up, div_up, split

values = st.integers(0, 1 << 64)
units = st.integers(1, 1 << 40)


@given(values, units)
def test_alignment(value: int, unit: int) -> None:
    down, up = align_down(value, unit), align_up(value, unit)
    assert down % unit == up % unit == 0
    assert down <= value <= up
    assert up - down in (0, unit)
    assert div_up(value, unit) * unit == up


def test_examples() -> None:
    assert (align_down(4097, 4096), align_up(4097, 4096)) == (4096, 8192)
    assert (align_down(10, 3), align_up(10, 3)) == (9, 12)
    assert [div_up(value, 4) for value in (0, 1, 4, 5)] == [0, 1, 1, 2]


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 300))
def test_split(offset: int, length: int, chunk: int) -> None:
    position = offset
    for start, piece in split(offset, length, chunk):
        assert start == position
        assert 0 < piece <= chunk
        position += piece
    assert position == offset + length
