# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.util.zeroes import ZERO_CHUNK, ZEROES, fill_zero, is_zero

LENGTHS = [0, 1, 63, 64, 65, 127, 128, 129, 4096, ZERO_CHUNK - 1, ZERO_CHUNK, ZERO_CHUNK + 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_zeroes_are_found(length: int) -> None:
    buffer = bytearray(length)
    assert is_zero(memoryview(buffer))
    for position in {0, 1, length // 2, length - 65, length - 64, length - 1}:
        if 0 <= position < length:
            buffer[position] = 1
            assert not is_zero(memoryview(buffer))
            buffer[position] = 0


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_same_as_the_plain_way(data: bytes, before: int, after: int) -> None:
    buffer = bytes(before) + data + bytes(after)
    assert is_zero(memoryview(buffer)) == (not any(buffer))


@pytest.mark.parametrize("length", LENGTHS)
def test_fill(length: int) -> None:
    buffer = bytearray(b"\xa5" * (length + 2))
    fill_zero(memoryview(buffer)[1 : length + 1])
    assert buffer == b"\xa5" + bytes(length) + b"\xa5"


def test_shared_zeroes_cannot_be_spoilt() -> None:
    assert len(ZEROES) == ZERO_CHUNK
    with pytest.raises(TypeError):
        ZEROES[0] = 1
