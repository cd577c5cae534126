# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from qsd.block import mapping


def test_kinds_and_flags_are_told_apart() -> None:
    kinds = [mapping.DATA, mapping.ZERO, mapping.HOLE, mapping.SPECIAL]
    assert len(set(kinds)) == 4
    flags = [value for name, value in vars(mapping).items() if name.startswith("ST_")]
    assert sum(flags) == (1 << len(flags)) - 1
    requests = [
        mapping.FUA,
        mapping.MAY_UNMAP,
        mapping.NO_FALLBACK,
        mapping.COMPRESSED,
        mapping.UNCHANGED,
        mapping.ZERO_NEW,
    ]
    assert sum(requests) == (1 << len(requests)) - 1


def test_a_mapping_is_not_writable_unless_it_says_so() -> None:
    found = mapping.Mapping(mapping.DATA, 512)
    assert not found.writable
    assert found.host_offset == -1
    assert found.edge is None
