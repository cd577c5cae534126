# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qsd.block import perms
from qsd.block.default_perms import default_child_perms

LETTERS = {"C": perms.CONSISTENT_READ, "W": perms.WRITE, "U": perms.WRITE_UNCHANGED}
LETTERS["R"] = perms.RESIZE

# As observed on QEMU 7.2.22: role, read-only, users take/share -> node takes/shares on the child.
OBSERVED = [
    ("format", False, "- CWUR", "CWR CU"),
    ("format", False, "C CWU", "CWR CU"),
    ("format", True, "- CWUR", "C CU"),
    ("format", True, "C CWU", "C CU"),
    ("cow", False, "- CWUR", "- CWUR"),
    ("cow", False, "C CWU", "C CWUR"),
    ("cow", False, "CW CWU", "C CWUR"),
    ("cow", False, "CWR CU", "C CU"),
    ("data", False, "- CWUR", "- CWU"),
    ("data", False, "CW CWU", "CWR CWU"),
    ("data", False, "CWR CU", "CWR CU"),
    ("data", False, "U CWUR", "WUR CWU"),
    ("data", True, "- CWUR", "- CWU"),
    ("data", False, "C CU", "C CU"),
    ("filter", False, "- CWUR", "- CWUR"),
    ("filter", False, "CW CWU", "CW CWU"),
]
ROLES = {
    "format": perms.ROLE_IMAGE | perms.ROLE_PRIMARY,
    "cow": perms.ROLE_COW,
    "data": perms.ROLE_DATA,
    "filter": perms.ROLE_FILTERED | perms.ROLE_PRIMARY,
}


def bits(text: str) -> int:
    return sum(LETTERS[letter] for letter in text if letter != "-")


@pytest.mark.parametrize(("role", "read_only", "users", "expected"), OBSERVED)
def test_table(role: str, read_only: bool, users: str, expected: str) -> None:
    node: Any = SimpleNamespace(read_only=read_only)
    edge: Any = SimpleNamespace(role=ROLES[role])
    perm, shared = (bits(part) for part in users.split())
    taken, given = (bits(part) for part in expected.split())
    assert default_child_perms(node, edge, perm, shared) == (taken, given)
