# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Metadata contexts: which ones an export has, and which of them a client asks for.

An export offers an ordered list of contexts, each with the id that block status replies carry::

    0     base:allocation             always
    1     qemu:allocation-depth       if asked for in the export's options
    2...  qemu:dirty-bitmap:NAME      one for each exported bitmap

NBD specification, "Metadata querying"; the ``qemu`` namespace as QEMU documents it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

BASE_ALLOCATION_ID = 0
ALLOCATION_DEPTH_ID = 1
FIRST_BITMAP_ID = 2


def offered_contexts(allocation_depth: bool, bitmaps: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Return ids and names of the contexts of an export.

    Args:
        allocation_depth: Whether allocation depth is offered.
        bitmaps: Names of the exported dirty bitmaps.
    """
    contexts = [(BASE_ALLOCATION_ID, BASE_ALLOCATION)]
    if allocation_depth:
        contexts.append((ALLOCATION_DEPTH_ID, ALLOCATION_DEPTH))
    contexts += [
        (FIRST_BITMAP_ID + index, DIRTY_BITMAP + name) for index, name in enumerate(bitmaps)
    ]
    return tuple(contexts)


def match(query: str, offered: Sequence[str], *, listing: bool) -> list[int]:
    """Return the positions of the offered contexts that a query selects.

    When listing, a query that is only a namespace ("base:", "qemu:", "qemu:dirty-bitmap:") selects
    everything in it; when setting, it selects nothing.  A query stops at its first match unless it
    is a wildcard (NBD specification, "NBD_OPT_LIST_META_CONTEXT").
    """
    if listing and query in ("base:", "qemu:", DIRTY_BITMAP):
        return [index for index, name in enumerate(offered) if name.startswith(query)]
    return [offered.index(query)] if query in offered else []


def select(queries: Sequence[str], offered: Sequence[str], *, listing: bool) -> list[int]:
    """Return the positions that a list of queries selects: in the order of offer, no repeats.

    An empty list of queries means everything when listing and nothing when setting.
    """
    if listing and not queries:
        return list(range(len(offered)))
    chosen: set[int] = set()
    for query in queries:
        chosen.update(match(query, offered, listing=listing))
    return sorted(chosen)
