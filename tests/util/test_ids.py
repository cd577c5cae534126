# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Which identifiers the C daemon takes."""

from __future__ import annotations

import pytest

from qsd.errors import QmpError
from qsd.util.ids import ID_HINT, check_id, is_valid_id


@pytest.mark.parametrize("text", ["a", "Z9", "a.b-c_d", "x" * 300])
def test_good_ones(text: str) -> None:
    assert is_valid_id(text)
    check_id(text)


@pytest.mark.parametrize("text", ["", "1x", "_x", "-x", ".x", "a b", "x/y", "xé", "éx", "#block1"])
def test_bad_ones(text: str) -> None:
    assert not is_valid_id(text)
    with pytest.raises(QmpError) as caught:
        check_id(text)
    assert caught.value.desc == "Parameter 'id' expects an identifier"
    assert caught.value.hint == ID_HINT


def test_the_parameter_is_named() -> None:
    with pytest.raises(QmpError, match=r"^Parameter 'node-name' expects an identifier$"):
        check_id("1", "node-name")
