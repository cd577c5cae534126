# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Formulas as programs for arrays, and the ciphers that are computed with arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.crypto.buffers import load_numpy
from qsd.crypto.serpent import Serpent
from qsd.crypto.straightline import BLOCK, LANES, pieces, trace
from qsd.crypto.twofish import Twofish

Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(st.sampled_from("^&|<>#"), st.integers(0, 9), st.integers(0, 9), st.integers(1, 31)),
    min_size=4,
    max_size=40,
)


def compute(words: Sequence[Any], program: list[Step]) -> list[Any]:
    """Apply random operations to random ones of the words so far; the last four are the results."""
    known = list(words)
    for operation, left, right, count in program:
        one, other = known[-1 - left % len(known)], known[-1 - right % len(known)]
        if operation == "^":
            known.append(one ^ other)
        elif operation == "&":
            known.append(one & other)
        elif operation == "|":
            known.append(one | other)
        elif operation == "<":
            known.append(one << count)
        elif operation == ">":
            known.append(one >> count)
        else:
            known.append(one ^ (count * 0x01234567 & 0xFFFFFFFF))
    return known[-4:]


@given(program=steps, count=st.integers(1, 40))
def test_programs_compute_formulas(program: list[Step], count: int) -> None:
    np = load_numpy()
    blocks = np.frombuffer(os.urandom(BLOCK * count), "<u4").reshape(count, 4)
    expected = np.stack(compute(list(blocks.T), program), axis=1)
    traced = trace(lambda words: compute(words, program), np)
    for _ in range(2):
        result = np.zeros((count, 4), "<u4")
        traced.run(blocks, result)
        assert (result == expected).all()


def test_few_registers_are_enough() -> None:
    """Whatever is not needed any more makes room."""
    np = load_numpy()

    def formula(words: Any) -> Any:
        a, b, c, d = words
        for _ in range(50):
            a, b, c, d = b ^ (c & d), c, d, a
        return a, b, c, d

    assert len(trace(formula, np)._registers) <= 6


@pytest.mark.parametrize("blocks", [1, LANES, LANES + 1, 2 * LANES + 3])
def test_pieces(blocks: int) -> None:
    data = os.urandom(blocks * BLOCK)
    out = bytearray(len(data) + BLOCK)
    for source, target in pieces(data, out):
        assert 0 < len(source) == len(target) <= LANES
        target[:] = source
    assert out == data + bytes(BLOCK)


@pytest.mark.parametrize("kind", [Serpent, Twofish])
@pytest.mark.parametrize("length", [16, 24, 32])
@pytest.mark.parametrize("blocks", [40, LANES + 5])
def test_integers_and_arrays_agree(kind: type[Serpent | Twofish], length: int, blocks: int) -> None:
    cipher = kind(os.urandom(length))
    data = os.urandom(BLOCK * blocks)
    fast, slow = bytearray(BLOCK * (blocks + 1)), bytearray(BLOCK * (blocks + 1))
    cipher.encrypt(data, fast)
    checked = BLOCK * min(blocks, 100)
    cipher._work_slowly(data[:checked], slow, checked // BLOCK, encrypting=True)
    assert fast[:checked] == slow[:checked]
    cipher._work_slowly(slow[:checked], slow, checked // BLOCK, encrypting=False)
    assert slow[:checked] == data[:checked]
    cipher.decrypt(fast[: len(data)], fast)
    assert fast[: len(data)] == data
