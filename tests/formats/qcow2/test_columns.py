# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from array import array

from hypothesis import example, given
from hypothesis import strategies as st

from qsd.formats.qcow2.columns import IS_INSIDE, columns_between, columns_of, told_by
from qsd.formats.qcow2.layout import COPIED, OFFSET_MASK

ENTRIES = st.lists(st.integers(0, (1 << 64) - 1), max_size=20)


@given(ENTRIES, st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8))
@example([0, 0, 0], [OFFSET_MASK])
def test_columns_tell_which_bits_entries_have(entries: list[int], masks: list[int]) -> None:
    meanings = [(mask, 1 << number) for number, mask in enumerate(masks)]
    told = told_by(array("Q", entries).tobytes(), columns_of(meanings))
    assert list(told) == [
        sum(meaning for mask, meaning in meanings if entry & mask) for entry in entries
    ]


@given(
    st.integers(9, 21),
    st.integers(0, 1 << 56),
    st.integers(0, 1 << 40),
    st.lists(st.integers(0, (1 << 56) - 1), max_size=20),
    st.integers(0, 55),
)
def test_nothing_is_inside_that_is_not(
    bits: int, start: int, length: int, hosts: list[int], shift: int
) -> None:
    start, length, size = start >> shift & -(1 << bits), length >> shift, 1 << bits
    end = start + length
    near = [place + step * size for place in (start, end & -size) for step in (-2, -1, 0, 1)]
    hosts = [host & -size for host in (*hosts, *near) if 0 <= host < 1 << 56]
    raw = array("Q", [host | COPIED for host in hosts]).tobytes()
    told = told_by(raw, columns_between(start, end, bits)).translate(IS_INSIDE)
    for host, inside in zip(hosts, told, strict=True):
        assert not inside or start <= host <= end - size


def test_most_of_what_is_inside_is_known_to_be() -> None:
    size = 65536
    start, end = 5 * size, 0x4016_0000
    hosts = range(0, end + 5 * size, size)
    raw = array("Q", [host | COPIED for host in hosts]).tobytes()
    told = told_by(raw, columns_between(start, end, 16)).translate(IS_INSIDE)
    assert list(told) == [start <= host < end for host in hosts]
    # 10 TiB: the grain is coarser.
    far = array("Q", [1 << 43, (10 << 40) - (6 << 30), 10 << 40, size]).tobytes()
    told = told_by(far, columns_between(start, 10 << 40, 16)).translate(IS_INSIDE)
    assert list(told) == [1, 1, 0, 0]
