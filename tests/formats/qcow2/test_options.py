# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Run-time options: defaults, checks, texts."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.errors import QmpError
from qsd.formats.qcow2 import overlap
from qsd.formats.qcow2.layout import Geometry, Header
from qsd.formats.qcow2.options import Options
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_REQUEST, FREE_SNAPSHOT
from qsd.qapi.schema.block_options import BlockdevOptionsQcow2, Qcow2OverlapCheckFlags


def options(size: int = 64 << 20, version: int = 3, bits: int = 16, **given: Any) -> Options:
    header = Header()
    header.version, header.size, header.cluster_bits = version, size, bits
    struct = BlockdevOptionsQcow2(file="f", **given)
    return Options(struct, header, Geometry(bits, 4, False), discard_unmap=True)


def test_defaults() -> None:
    found = options()
    assert (found.l2_entry_size, found.l2_slices) == (65536, 2)
    assert found.refcount_blocks == 4
    assert found.clean_interval == 600
    assert not found.lazy_refcounts
    assert found.overlap_checks == overlap.TEMPLATES["cached"]
    assert found.passes_discard[FREE_REQUEST]
    assert found.passes_discard[FREE_SNAPSHOT]
    assert not found.passes_discard[FREE_OTHER]


@pytest.mark.parametrize(
    ("size", "given", "slices", "blocks"),
    [
        (1 << 40, {}, 512, 4),
        (8 << 30, {}, 16, 4),
        (1 << 40, {"l2_cache_size": 1 << 20}, 16, 4),
        (1 << 40, {"l2_cache_size": 1 << 20, "l2_cache_entry_size": 4096}, 256, 4),
        (1 << 40, {"cache_size": 2 << 20}, 28, 4),
        (1 << 30, {"cache_size": 2 << 20}, 2, 30),
        (1 << 40, {"cache_size": 2 << 20, "l2_cache_size": 1 << 20}, 16, 16),
        (1 << 40, {"cache_size": 2 << 20, "refcount_cache_size": 1 << 20}, 16, 16),
        (1 << 40, {"l2_cache_size": 0, "refcount_cache_size": 0}, 2, 4),
    ],
)
def test_cache_sizes(size: int, given: dict[str, int], slices: int, blocks: int) -> None:
    found = options(size, **given)
    assert (found.l2_slices, found.refcount_blocks) == (slices, blocks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache_size": 100, "l2_cache_size": 1000}, "l2-cache-size may not exceed cache-size"),
        (
            {"cache_size": 100, "refcount_cache_size": 1000},
            "refcount-cache-size may not exceed cache-size",
        ),
        (
            {"cache_size": 300, "refcount_cache_size": 100, "l2_cache_size": 100},
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        ),
        (
            {"l2_cache_entry_size": 1000},
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        (
            {"l2_cache_entry_size": 131072},
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        ({"refcount_cache_size": 1 << 62}, "Refcount cache size too big"),
        ({"cache_clean_interval": -1}, "Cache clean interval too big"),
        ({"cache_clean_interval": 1 << 32}, "Cache clean interval too big"),
        (
            {"l2_cache_size": -1},
            "Parameter 'l2-cache-size' expects a non-negative number below 2^64",
        ),
        (
            {"version": 2, "lazy_refcounts": True},
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
        ),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        options(**given)
    assert caught.value.desc == message


def test_overlap_checks() -> None:
    assert options(overlap_check="none").overlap_checks == 0
    flags = Qcow2OverlapCheckFlags(template="all", main_header=False)
    assert options(overlap_check=flags).overlap_checks == 0x1FF & ~overlap.MAIN_HEADER
    flags = Qcow2OverlapCheckFlags(inactive_l2=True)
    assert options(overlap_check=flags).overlap_checks == 0x1FF
