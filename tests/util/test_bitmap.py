# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sparse bitmaps against a set of granule numbers."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.util.bitmap import LEAF_BITS, MAX_FRESH, Bitmap

GRANULARITY = 512
BITS = 3 * LEAF_BITS + 100
LENGTH = BITS * GRANULARITY - 200


class Change(NamedTuple):
    kind: str
    offset: int
    length: int


def _near(edge: int) -> st.SearchStrategy[int]:
    return st.integers(max(edge - 3, 0), edge + 3)


POINTS = st.one_of(
    st.integers(0, LENGTH - 1),
    *(_near(n * LEAF_BITS * GRANULARITY) for n in range(4)),
    st.integers(0, BITS - 2).map(lambda bit: bit * GRANULARITY),
)
CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(["set", "set", "clear"]),
        POINTS,
        st.one_of(st.integers(0, 5000), st.sampled_from([1, 512, LENGTH])),
    ),
    max_size=12,
)


def touched(offset: int, length: int) -> range:
    if not length:
        return range(0)
    return range(offset // GRANULARITY, (offset + length - 1) // GRANULARITY + 1)


def build(changes: list[Change]) -> tuple[Bitmap, set[int]]:
    bitmap, model = Bitmap(LENGTH, GRANULARITY), set[int]()
    for kind, offset, wanted in changes:
        length = min(wanted, LENGTH - offset)
        if kind == "set":
            bitmap.set(offset, length)
            model.update(touched(offset, length))
        else:
            bitmap.clear(offset, length)
            model.difference_update(touched(offset, length))
    return bitmap, model


def content(bitmap: Bitmap) -> set[int]:
    return {bit for area in bitmap.areas() for bit in touched(*area)}


@given(CHANGES)
def test_like_a_set(changes: list[Change]) -> None:
    bitmap, model = build(changes)
    assert content(bitmap) == model
    assert bitmap.count() == len(model)
    assert bool(bitmap) == bool(model)
    assert bitmap.dirty_bytes() == len(model) * GRANULARITY


PLACES = st.lists(st.integers(0, 4 * LEAF_BITS - 1), min_size=1, max_size=5)


@given(
    st.sampled_from([512, 2048, 4096, 65536]),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([512, 4096, 8192, 1536, 65536]), PLACES, st.booleans()),
            st.tuples(st.just(0), PLACES, st.booleans()),
        ),
        max_size=6,
    ),
)
def test_ranges_of_equal_length(granularity: int, steps: list[tuple[int, list[int], bool]]) -> None:
    size = 5 * LEAF_BITS * 4096
    bitmap, model = Bitmap(size, granularity), set[int]()
    for length, places, is_aligned in steps:
        offsets = [place * (4096 if is_aligned else 512) for place in places]
        if not length:
            for offset in offsets:
                bitmap.clear(offset, 4096)
                model -= {*range(offset // granularity, (offset + 4095) // granularity + 1)}
            continue
        bitmap.set_all(offsets, length)
        for offset in offsets:
            model |= {*range(offset // granularity, (offset + length - 1) // granularity + 1)}
    assert bitmap.count() == len(model)
    assert {offset // granularity for offset, length in bitmap.areas()} <= model
    assert all(bitmap.get(bit * granularity) for bit in model)


def test_what_is_noted_is_cleared_with_the_rest() -> None:
    bitmap = Bitmap(1 << 20, 4096)
    bitmap.set_all([0, 8192], 4096)
    bitmap.clear_all()
    assert not bitmap
    bitmap.set_all([4096], 4096)
    assert list(bitmap.areas()) == [(4096, 4096)]


def test_what_is_noted_is_bounded() -> None:
    bitmap = Bitmap(1 << 44, 512)
    batches = [[(n * 32 + i) << 13 for i in range(32)] for n in range(1000)]
    kept = 0
    for batch in batches:
        bitmap.set_all(batch, 4096)
        kept = max(kept, len(bitmap.fresh) + 32 * len(bitmap._noted))
    assert kept <= MAX_FRESH + 32 * 129
    assert bitmap.count() == 32000 * 8
    assert not bitmap.fresh
    assert not bitmap._noted


@given(CHANGES, POINTS, POINTS)
def test_searching(changes: list[Change], one: int, other: int) -> None:
    bitmap, model = build(changes)
    start, end = min(one, other), max(one, other)
    inside = touched(start, end - start)
    dirty = [bit for bit in inside if bit in model]
    clean = [bit for bit in inside if bit not in model]
    expected = max(dirty[0] * GRANULARITY, start) if dirty else None
    assert bitmap.next_dirty(start, end) == expected
    assert bitmap.next_clean(start, end) == (max(clean[0] * GRANULARITY, start) if clean else None)
    assert bitmap.is_all_dirty(start, end - start) == (not clean)
    assert bitmap.get(start) == (start // GRANULARITY in model)
    area = bitmap.next_dirty_area(start, end)
    if expected is None:
        assert area is None
    else:
        assert area is not None
        assert area[0] == expected
        assert start <= area[0] < area[0] + area[1] <= end
        assert all(bit in model for bit in touched(*area))


@given(CHANGES, CHANGES)
def test_merging(one: list[Change], other: list[Change]) -> None:
    (first, model), (second, more) = build(one), build(other)
    kept = second.copy()
    first.merge(second)
    assert content(first) == model | more
    assert second == kept


@given(CHANGES, st.sampled_from([1024, 65536, 1 << 20]))
def test_merging_into_coarser_and_back(changes: list[Change], granularity: int) -> None:
    bitmap, model = build(changes)
    coarse = Bitmap(LENGTH, granularity)
    coarse.merge(bitmap)
    ratio = granularity // GRANULARITY
    assert coarse.count() == len({bit // ratio for bit in model})
    fine = Bitmap(LENGTH, GRANULARITY)
    fine.merge(coarse)
    assert content(fine) >= model
    assert fine.count() <= BITS


@given(CHANGES, POINTS)
def test_resizing(changes: list[Change], length: int) -> None:
    bitmap, model = build(changes)
    bitmap.resize(length)
    bitmap.resize(LENGTH)
    assert content(bitmap) == {bit for bit in model if bit < -(-length // GRANULARITY)}


@given(CHANGES)
def test_bytes_and_back(changes: list[Change]) -> None:
    bitmap, _ = build(changes)
    other = Bitmap(LENGTH, GRANULARITY)
    for bit, data in bitmap.leaf_bytes():
        other.or_bytes(bit, data)
    assert content(other) == content(bitmap)


def test_bytes_are_little_endian() -> None:
    bitmap = Bitmap(LENGTH, GRANULARITY)
    bitmap.or_bytes(8, b"\x01\x80")
    assert content(bitmap) == {8, 23}


def test_copies_are_independent() -> None:
    bitmap, _ = build([Change("set", 0, 512)])
    other = bitmap.copy()
    other.clear_all()
    assert bitmap.count() == 1
    assert not other


@pytest.mark.parametrize("granularity", [512, 65536, 64 << 20])
def test_memory_follows_what_is_dirty(granularity: int) -> None:
    bitmap = Bitmap(16 << 40, granularity)
    for place in range(0, 16 << 40, 1 << 40):
        bitmap.set(place + 4096, 500)
    assert bitmap.count() == 16
    size = sum(sys.getsizeof(leaf) for leaf in bitmap._leaves.values())
    assert size + sys.getsizeof(bitmap._leaves) < 16 * 1024
    assert sum(1 for _ in bitmap.areas()) == 16


def test_full_leaves_are_shared() -> None:
    bitmap = Bitmap(1 << 40, 65536)
    bitmap.set(0, 1 << 40)
    assert bitmap.count() == 1 << 24
    assert len({id(leaf) for leaf in bitmap._leaves.values()}) <= 3
    assert list(bitmap.areas()) == [(0, 1 << 40)]


@given(CHANGES, POINTS, st.integers(1, LENGTH))
def test_columns(changes: list[Change], offset: int, length: int) -> None:
    bitmap, _ = build(changes)
    end = min(offset + length, LENGTH)
    while offset < end:
        bit = offset // GRANULARITY
        rest = LEAF_BITS - bit % LEAF_BITS
        count = min((end - 1) // GRANULARITY + 1 - bit, rest)
        found = bitmap.column(offset, end)
        expected = bytes(bitmap.get((bit + index) * GRANULARITY) for index in range(count))
        assert found in ({b"", expected} if not any(expected) else {expected})
        offset = (bit + count) * GRANULARITY
