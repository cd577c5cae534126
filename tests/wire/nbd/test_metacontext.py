# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.wire.nbd.metacontext import offered_contexts, select

ALL = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b", "qemu:dirty-bitmap:c"]


def test_ids() -> None:
    assert offered_contexts(False, []) == ((0, "base:allocation"),)
    assert offered_contexts(True, ["b"]) == tuple(enumerate(ALL[:3]))
    assert offered_contexts(False, ["b", "c"]) == (
        (0, ALL[0]),
        (2, ALL[2]),
        (3, ALL[3]),
    )


@pytest.mark.parametrize(
    ("queries", "listed", "chosen"),
    [
        ([], [0, 1, 2, 3], []),
        (["base:"], [0], []),
        (["qemu:"], [1, 2, 3], []),
        (["qemu:dirty-bitmap:"], [2, 3], []),
        (["qemu:dirty-bitmap:c", "base:allocation", "base:allocation"], [0, 3], [0, 3]),
        (["base", "base:allocation:", "qemu:a", "foo:", "qemu:dirty-bitmap:x"], [], []),
    ],
)
def test_select(queries: list[str], listed: list[int], chosen: list[int]) -> None:
    assert select(queries, ALL, listing=True) == listed
    assert select(queries, ALL, listing=False) == chosen
