# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a node takes and shares on its children, by the role of the child.

Found by watching ``x-debug-query-block-graph`` of the C daemon over combinations of roles, users
and read-only state; ``tests/block/test_default_perms.py`` holds the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.block.perms import (
    ALL,
    CONSISTENT_READ,
    RESIZE,
    ROLE_COW,
    ROLE_DATA,
    ROLE_FILTERED,
    ROLE_METADATA,
    WRITE,
    WRITE_UNCHANGED,
)

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.node import Node


def default_child_perms(node: Node, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
    """Return (perm, shared) for `edge` from the union and intersection of the users' own.

    * A filtered child is used exactly as the filter is used.
    * A backing file is only read.  Others may write to it if the users of the overlay can stand
      changes under their feet, that is, if they share writing themselves.
    * Metadata must be consistent and is the format's alone; a writable format always takes write
      and resize, since it updates its structures on its own account.
    * Pure data (external data file) is written only if the users write, be it what is there
      already (copy-on-read does), but then it may grow too.
    """
    role = edge.role
    if role & ROLE_FILTERED:
        return perm & ALL, shared & ALL
    if role & ROLE_COW:
        if shared & WRITE:
            return perm & CONSISTENT_READ, ALL
        return perm & CONSISTENT_READ, CONSISTENT_READ | WRITE_UNCHANGED
    if role & ROLE_METADATA:
        taken = perm | CONSISTENT_READ
        if not node.read_only:
            taken |= WRITE | RESIZE
        return taken, shared & CONSISTENT_READ | WRITE_UNCHANGED
    if role & ROLE_DATA:
        taken = perm
        if perm & (WRITE | WRITE_UNCHANGED) and not node.read_only:
            taken |= WRITE | RESIZE
        return taken, shared & ~RESIZE
    return 0, ALL
