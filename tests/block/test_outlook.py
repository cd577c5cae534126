# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is remembered of a source agrees with asking about each piece."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from qsd.block import outlook
from qsd.block.mapping import ST_DATA, ST_ZERO
from qsd.block.outlook import Outlook
from qsd.block.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Callable


LENGTH = 4096


class Source:
    """Stands for a node with data in some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = 0

    def length(self) -> int:
        return len(self.data)

    def runs(self, offset: int, length: int, limit: int) -> Runs:
        self.asked += 1
        runs = Runs()
        for byte in self.data[offset : offset + length]:
            runs.add(1, ST_DATA if byte else ST_ZERO)
        runs.cut(limit)
        return runs


def look_around(source: Source, unit: int, hole: int, step: int) -> bytes:
    """Go over a source; return what it has, by byte, as far as it was told."""
    known, found, offset = Outlook(hole, unit), bytearray(), 0
    while offset < LENGTH:
        answer = known.look(offset, LENGTH - offset)
        if answer is None:
            known.learn(source, offset, step)  # type: ignore[arg-type]
            answer = known.look(offset, LENGTH - offset)
            assert answer is not None
        found += bytes([answer[1]]) * answer[0]
        offset += answer[0]
    return bytes(found)


@pytest.fixture(autouse=True)
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain_runs_nowait(node: Any, offset: int, length: int, limit: int) -> Runs | None:
        answer: Callable[..., Runs] | None = getattr(node, "runs", None)
        return answer(offset, length, limit) if answer is not None else None

    monkeypatch.setattr(outlook, "chain_runs_nowait", chain_runs_nowait)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [40, 1000])
def test_units_are_data_if_any_byte_is(
    seed: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "_RUNS", limit)
    dice, unit = random.Random(seed), 16
    data = bytes(dice.random() < 0.03 for _ in range(LENGTH))
    source = Source(data)
    want = b"".join(bytes([any(data[at : at + unit])]) * unit for at in range(0, LENGTH, unit))
    assert look_around(source, unit, 1, 1024) == want
    assert source.asked < LENGTH // unit / 2


@pytest.mark.parametrize("seed", range(20))
def test_short_zeroes_between_data_are_data(seed: int) -> None:
    dice, hole = random.Random(seed), 20
    data = bytes(dice.random() < 0.05 for _ in range(LENGTH))
    found = look_around(Source(data), 1, hole, LENGTH)
    assert all(found[at] for at in range(LENGTH) if data[at])
    places = [at for at in range(LENGTH) if data[at]]
    for one, two in pairwise(places):
        is_long = two - one - 1 >= hole
        assert set(found[one + 1 : two]) <= {not is_long}


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_what_a_look_says(seed: int) -> None:
    dice, unit = random.Random(seed), 16
    data = bytes(dice.random() < 0.03 for _ in range(LENGTH))
    known = Outlook(unit, unit)
    assert known.pieces(0, 100) == ([], 0)
    known.learn(Source(data), 0, LENGTH // 2)  # type: ignore[arg-type]
    for _ in range(20):
        offset = dice.randrange(LENGTH)
        length = dice.randrange(1, LENGTH)
        pieces, end = known.pieces(offset, length)
        assert end == max(offset, min(offset + length, LENGTH // 2))
        found = bytearray(end - offset)
        for start, count in pieces:
            found[start - offset : start + count - offset] = b"x" * count
        want, position = b"", offset
        while position < end:
            answer = known.look(position, end - position)
            assert answer is not None
            want += (b"x" if answer[1] else b"\0") * answer[0]
            position += answer[0]
        assert found == want


def test_nothing_is_known_where_somebody_must_wait() -> None:
    class Slow:
        def length(self) -> int:
            return LENGTH

    known = Outlook(1)
    known.learn(Slow(), 0, LENGTH)  # type: ignore[arg-type]
    assert known.look(0, LENGTH) is None


@pytest.mark.parametrize("takes_unknown", [False, True])
def test_what_is_neither_data_nor_zero_is_what_one_wants(takes_unknown: bool) -> None:
    class Vague(Source):
        def runs(self, offset: int, length: int, limit: int) -> Runs:
            runs = Runs()
            for flags in (ST_DATA, 0, ST_ZERO):
                runs.add(1024, flags)
            return runs

    known = Outlook(1, 1, takes_unknown=takes_unknown)
    known.learn(Vague(bytes(LENGTH)), 0, LENGTH)  # type: ignore[arg-type]
    assert known.look(0, LENGTH) == (2048 if takes_unknown else 1024, True)
