# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The run-time options of a qcow2 node (QMP reference, "BlockdevOptionsQcow2"), checked and filled.

Cache sizes follow the manual of the C implementation (docs/qcow2-cache): one byte of L2 table maps
`cluster_size / 8` bytes of the image, and a cache larger than what the whole image needs is of no
use.  Defaults: the L2 cache covers the image up to 32 MiB, the refcount cache holds four blocks,
and what was unused for ten minutes is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsd.errors import QmpError
from qsd.formats.qcow2 import overlap
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_REQUEST, FREE_SILENT, FREE_SNAPSHOT

if TYPE_CHECKING:
    from qsd.formats.qcow2.layout import Geometry, Header

#: Bytes.
MAX_DEFAULT_L2_CACHE = 32 << 20
#: Blocks.
MIN_REFCOUNT_BLOCKS = 4
#: Seconds.
DEFAULT_CLEAN_INTERVAL = 600
#: Slices.
MIN_L2_SLICES = 2

_NUMBER_HINT = (
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)

_OVERLAP_MEMBERS = (
    ("main_header", overlap.MAIN_HEADER),
    ("active_l1", overlap.ACTIVE_L1),
    ("active_l2", overlap.ACTIVE_L2),
    ("refcount_table", overlap.REFCOUNT_TABLE),
    ("refcount_block", overlap.REFCOUNT_BLOCK),
    ("snapshot_table", overlap.SNAPSHOT_TABLE),
    ("inactive_l1", overlap.INACTIVE_L1),
    ("inactive_l2", overlap.INACTIVE_L2),
    ("bitmap_directory", overlap.BITMAP_DIRECTORY),
)


class Options:
    """Options in force.

    Attributes:
        lazy_refcounts: Whether refcounts may be stale on disk while the image is in use.
        l2_entry_size: Bytes of an L2 slice.
        l2_slices: L2 slices to cache.
        refcount_blocks: Refcount blocks to cache.
        clean_interval: Seconds after which unused tables are dropped, 0 for never.
        passes_discard: By reason of a free (refcount.FREE_*): whether the file is told.
        discard_no_unref: Always false in this version.
        overlap_checks: Bits of overlap.py.
    """

    __slots__ = (
        "clean_interval",
        "l2_entry_size",
        "l2_slices",
        "lazy_refcounts",
        "overlap_checks",
        "passes_discard",
        "refcount_blocks",
    )

    def __init__(self, given: Any, header: Header, geometry: Geometry, discard_unmap: bool) -> None:
        """Check and complete `given`, a BlockdevOptionsQcow2 (or None for all defaults).

        Raises:
            QmpError: With the C daemon's text.
        """

        def get(name: str) -> Any:
            return getattr(given, name, None) if given is not None else None

        self._set_caches(get, header, geometry)
        interval = get("cache_clean_interval")
        self.clean_interval = DEFAULT_CLEAN_INTERVAL if interval is None else interval
        if not 0 <= self.clean_interval < 1 << 32:
            raise QmpError("Cache clean interval too big")
        lazy = get("lazy_refcounts")
        self.lazy_refcounts = bool(header.compatible_features & 1 if lazy is None else lazy)
        if header.version < 3 and self.lazy_refcounts:
            raise QmpError(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"
            )
        self.overlap_checks = _overlap_checks(get("overlap_check"))
        request = get("pass_discard_request")
        snapshot = get("pass_discard_snapshot")
        other = get("pass_discard_other")
        self.passes_discard = {
            FREE_REQUEST: discard_unmap if request is None else request,
            FREE_SNAPSHOT: True if snapshot is None else snapshot,
            FREE_OTHER: bool(other),
            FREE_SILENT: False,
        }

    def _set_caches(self, get: Any, header: Header, geometry: Geometry) -> None:
        size = geometry.cluster_size
        entry_size = _number(get, "l2_cache_entry_size")
        if entry_size is None:
            entry_size = min(size, 65536)
        bound = _number(get, "cache_size")
        l2 = _number(get, "l2_cache_size")
        refcounts = _number(get, "refcount_cache_size")
        entry_bytes = 8 * geometry.entry_words
        # Bytes of L2 tables for the whole image, in whole tables.
        needed = -(-header.size // geometry.cluster_size) * entry_bytes
        needed += -needed % entry_size if 512 <= entry_size <= size else 0
        least = MIN_REFCOUNT_BLOCKS * size
        if bound is not None and l2 is not None and refcounts is not None:
            raise QmpError(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
            )
        if bound is not None and l2 is not None and l2 > bound:
            raise QmpError("l2-cache-size may not exceed cache-size")
        if bound is not None and refcounts is not None and refcounts > bound:
            raise QmpError("refcount-cache-size may not exceed cache-size")
        if bound is not None:
            if l2 is not None:
                refcounts = bound - l2
            elif refcounts is not None:
                l2 = bound - refcounts
            elif bound < needed + least:
                refcounts = min(bound, least)
                l2 = bound - refcounts
            else:
                l2, refcounts = needed, bound - needed
        if l2 is None:
            l2 = min(MAX_DEFAULT_L2_CACHE, needed)
        if refcounts is None:
            refcounts = least
        if not 512 <= entry_size <= size or entry_size & (entry_size - 1):
            raise QmpError(
                "L2 cache entry size must be a power of two between 512 and the cluster size "
                f"({size})"
            )
        self.l2_entry_size = entry_size
        self.l2_slices = max(min(l2, needed) // entry_size, MIN_L2_SLICES)
        self.refcount_blocks = max(refcounts // size, MIN_REFCOUNT_BLOCKS)
        if self.refcount_blocks > 0x7FFFFFFF:
            raise QmpError("Refcount cache size too big")


def _number(get: Any, name: str) -> int | None:
    value: int | None = get(name)
    if value is not None and value < 0:
        raise QmpError(
            f"Parameter '{name.replace('_', '-')}' expects a non-negative number below 2^64",
            hint=_NUMBER_HINT,
        )
    return value


def _overlap_checks(given: Any) -> int:
    if given is None:
        return overlap.TEMPLATES["cached"]
    if isinstance(given, str):
        return overlap.TEMPLATES[given]
    checks = overlap.TEMPLATES[given.template or "cached"]
    for name, bit in _OVERLAP_MEMBERS:
        value = getattr(given, name)
        if value is not None:
            checks = checks | bit if value else checks & ~bit
    return checks
