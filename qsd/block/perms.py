# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Permissions: what users of a node do to it, and what they let others do.

Every edge (parent -> child node) carries two sets: `perm`, what the parent does with the child, and
`shared`, what it allows all *other* parents of that child to do.  The invariant is::

    for any two edges A, B to the same node:  A.perm is a subset of B.shared

A node's own needs follow from its users: what it takes on its children is computed by its driver
from the union of its parents' `perm` and the intersection of their `shared`.  A change anywhere is
first computed for the whole reachable subgraph, then checked, then applied; a conflict leaves
everything as it was.
"""

from __future__ import annotations

CONSISTENT_READ = 1  #: reads return what was written before, by everybody
WRITE = 2  #: change what the guest sees
WRITE_UNCHANGED = 4  #: write what is there already (copy on read)
RESIZE = 8  #: change the length
ALL = CONSISTENT_READ | WRITE | WRITE_UNCHANGED | RESIZE

#: Names as QMP spells them (BlockPermission), by bit.
NAMES = (
    (CONSISTENT_READ, "consistent read"),
    (WRITE, "write"),
    (WRITE_UNCHANGED, "write unchanged"),
    (RESIZE, "resize"),
)

# Child roles (what a parent uses a child for); a child may have several.
ROLE_DATA = 1  #: guest-visible data
ROLE_METADATA = 2  #: the format's own structures
ROLE_FILTERED = 4  #: the one node a filter passes requests to
ROLE_COW = 8  #: backing file
ROLE_PRIMARY = 16  #: the child that makes the image (bs->file of old)
ROLE_IMAGE = ROLE_DATA | ROLE_METADATA


def names(perms: int) -> str:
    """Return the permission names as messages list them, comma separated."""
    return ", ".join(name for bit, name in NAMES if perms & bit)


def qmp_names(perms: int) -> list[str]:
    """Return the permissions as BlockPermission values."""
    return [name.replace(" ", "-") for bit, name in NAMES if perms & bit]
