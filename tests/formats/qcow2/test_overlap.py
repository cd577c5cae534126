# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Knowing where metadata lies."""

from __future__ import annotations

from array import array

from qsd.formats.qcow2 import overlap
from qsd.formats.qcow2.layout import COPIED, Geometry, Header
from qsd.formats.qcow2.overlap import Overlaps
from qsd.formats.qcow2.snapshots import Snapshot

SIZE = 65536


def sample(checks: int = 0x1FF) -> Overlaps:
    header = Header()
    header.l1_table_offset, header.l1_size = 3 * SIZE, 10000
    header.refcount_table_offset, header.refcount_table_clusters = SIZE, 1
    snapshot = Snapshot("1", "s")
    snapshot.l1_table_offset, snapshot.l1_size = 20 * SIZE, 1
    found = Overlaps(Geometry(16, 4, False), checks)
    found.load(header, array("Q", [0, 7 * SIZE | COPIED]), array("Q", [2 * SIZE, 0]), [snapshot])
    return found


def test_every_structure_is_found() -> None:
    places = sample()
    expected = {
        0: "qcow2_header",
        1: "refcount table",
        2: "refcount block",
        3: "active L1 table",
        4: "active L1 table",
        5: None,
        7: "active L2 table",
        20: "inactive L1 table",
    }
    for cluster, text in expected.items():
        assert places.find(cluster * SIZE + 100, 50) == text
    assert places.find(5 * SIZE, 2 * SIZE) is None
    assert places.find(5 * SIZE, 2 * SIZE + 1) == "active L2 table"


def test_only_what_is_asked_for_is_guarded() -> None:
    places = sample(overlap.ACTIVE_L2)
    assert places.find(0, 7 * SIZE) is None
    assert places.find(7 * SIZE, 1) == "active L2 table"
    assert sample(0).find(0, 100 * SIZE) is None


def test_changes() -> None:
    places = sample()
    places.add(30 * SIZE, 1, overlap.REFCOUNT_BLOCK)
    assert places.find(30 * SIZE, 1) == "refcount block"
    assert places.end == 31 * SIZE
    places.remove(30 * SIZE, 1)
    assert places.find(30 * SIZE, 1) is None


def test_tables_that_map_data_to_metadata() -> None:
    places = sample()
    assert not places.guards_any(array("Q", [0, 9 * SIZE | COPIED, 7 * SIZE]))
    assert places.guards_any(array("Q", [0, 9 * SIZE | COPIED, 7 * SIZE | COPIED]))


def test_absurd_tables_take_no_memory() -> None:
    places = sample()
    places.add(0, 1 << 50, overlap.INACTIVE_L1)
    assert places.find(100 * SIZE, 1) is None
