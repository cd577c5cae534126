# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Bytes to records and back."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.layout import Extension, Feature, Geometry, Header


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=20))
def test_tables_are_big_endian(entries: list[int]) -> None:
    data = b"".join(entry.to_bytes(8, "big") for entry in entries)
    table = layout.table_from_bytes(data)
    assert list(table) == entries
    assert layout.table_to_bytes(table) == data
    assert list(table) == entries


@given(st.integers(0, 6), st.data())
def test_refcount_blocks(order: int, data: st.DataObject) -> None:
    width = 1 << order
    counts = data.draw(st.lists(st.integers(0, (1 << width) - 1), min_size=64, max_size=64))
    # "Refcount block": the first count is in the lowest bits, wide ones are big-endian.
    if width < 8:
        per_byte = 8 // width
        raw = bytes(
            sum(count << (width * n) for n, count in enumerate(counts[at : at + per_byte]))
            for at in range(0, 64, per_byte)
        )
    else:
        raw = b"".join(count.to_bytes(width // 8, "big") for count in counts)
    block = layout.refcounts_from_bytes(raw, order)
    assert list(block) == counts
    assert layout.refcounts_to_bytes(block, order) == raw


@pytest.mark.parametrize("order", range(7))
def test_empty_blocks_fill_a_cluster(order: int) -> None:
    block = layout.empty_refcounts(Geometry(9, order, False))
    assert len(layout.refcounts_to_bytes(block, order)) == 512
    assert not any(block)


@given(st.integers(9, 21), st.data())
def test_compressed_entries(bits: int, data: st.DataObject) -> None:
    geometry = Geometry(bits, 4, False)
    offset = data.draw(st.integers(0, (1 << min(geometry.compressed_shift, 56)) - 1))
    length = data.draw(st.integers(1, geometry.cluster_size - 1))
    start, upper = geometry.compressed_range(geometry.compressed_entry(offset, length))
    assert start == offset
    assert length <= upper < length + 512


def test_geometry() -> None:
    plain = Geometry(16, 4, False)
    assert plain.l2_span_bits == 29
    assert plain.subcluster_size == 65536
    assert plain.l1_entries((1 << 29) + 1) == 2
    extended = Geometry(16, 4, True)
    assert extended.l2_span_bits == 28
    assert extended.subcluster_size == 2048


def full_header() -> Header:
    header = Header()
    header.size = 12345 << 9
    header.l1_size, header.l1_table_offset = 7, 0x30000
    header.refcount_table_offset, header.refcount_table_clusters = 0x10000, 2
    header.nb_snapshots, header.snapshots_offset = 3, 0x50000
    header.incompatible_features = layout.INCOMPAT_DIRTY
    header.autoclear_features = layout.AUTOCLEAR_BITMAPS
    header.refcount_order = 6
    header.extensions = [Extension(0x1234, b"abc"), Extension(layout.EXT_BACKING_FORMAT, b"raw")]
    header.backing_file = "base"
    return header


@pytest.mark.parametrize("version", [2, 3])
def test_header_round_trip(version: int) -> None:
    header = full_header()
    header.version = version
    data = header.pack().ljust(65536, b"\0")
    assert layout.magic_and_version(data) == (layout.MAGIC, version)
    again = Header.parse(data)
    for name in ("version", "size", "l1_size", "l1_table_offset", "refcount_table_offset",
                 "refcount_table_clusters", "nb_snapshots", "snapshots_offset"):  # fmt: skip
        assert getattr(again, name) == getattr(header, name)
    if version == 3:
        assert again.incompatible_features == layout.INCOMPAT_DIRTY
        assert again.refcount_order == 6
    else:
        assert again.incompatible_features == 0
        assert again.refcount_order == 4
    found = list(layout.parse_extensions(data, again.header_length, again.backing_file_offset))
    assert found == header.extensions
    backing = data[again.backing_file_offset :][: again.backing_file_size]
    assert backing == b"base"


def test_extensions_that_do_not_fit() -> None:
    data = (5).to_bytes(4, "big") + (9).to_bytes(4, "big") + bytes(8)
    assert list(layout.parse_extensions(data, 0, 16)) == [None]


def test_set_extension() -> None:
    header = full_header()
    header.set_extension(0x1234, b"new")
    header.set_extension(0x99, b"added")
    header.set_extension(layout.EXT_BACKING_FORMAT, None)
    assert header.extensions == [Extension(0x1234, b"new"), Extension(0x99, b"added")]
    assert header.extension(0x99) == b"added"
    assert header.extension(0x98) is None


def test_long_names_of_formats_are_cut() -> None:
    assert layout.backing_format("raw") == (layout.EXT_BACKING_FORMAT, b"raw")
    assert layout.backing_format("copy-before-write") == (
        layout.EXT_BACKING_FORMAT, b"copy-before-wri",
    )  # fmt: skip


def test_feature_names() -> None:
    features = layout.parse_features(layout.pack_features() + b"rest")
    assert features == list(layout.FEATURE_NAMES)
    assert Feature(1, 0, "lazy refcounts") in features


def test_slices_of_tables_keep_their_type() -> None:
    table = array("Q", range(10))
    assert layout.table_to_bytes(table[2:3]) == (2).to_bytes(8, "big")
