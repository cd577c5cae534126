# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from qsd.block import perms


def test_names_come_in_the_order_of_messages() -> None:
    assert perms.names(perms.ALL) == "consistent read, write, write unchanged, resize"
    assert perms.names(perms.WRITE | perms.RESIZE) == "write, resize"
    assert perms.names(0) == ""


def test_qmp_names_are_enum_values() -> None:
    assert perms.qmp_names(perms.ALL) == [
        "consistent-read",
        "write",
        "write-unchanged",
        "resize",
    ]
