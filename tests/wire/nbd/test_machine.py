# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What both sides of the handshake share."""

from __future__ import annotations

from typing import ClassVar

import pytest

from qsd.wire.nbd import client, handshake
from qsd.wire.nbd.machine import DONE, FAILED, TLS, Machine


class Door(Machine):
    moves: ClassVar[dict[str, tuple[str, ...]]] = {TLS: (DONE,), DONE: ()}


def test_only_legal_steps() -> None:
    door = Door(TLS)
    door._move(DONE)
    assert door.phase == DONE
    with pytest.raises(RuntimeError, match="cannot go from done to tls"):
        door._move(TLS)
    assert door.phase == DONE


def test_what_is_taken_is_gone() -> None:
    door = Door(TLS)
    door._out += b"out"
    door._buffer += b"rest"
    assert (door.take_output(), door.take_rest()) == (b"out", b"rest")
    assert (door.take_output(), door.take_rest()) == (b"", b"")


@pytest.mark.parametrize("moves", [client.MOVES, handshake.MOVES])
def test_tables_are_closed(moves: dict[str, tuple[str, ...]]) -> None:
    """Each phase that can be reached is in the table, and everything can fail but the end."""
    assert {target for targets in moves.values() for target in targets} <= set(moves)
    assert all(not targets or FAILED in targets for targets in moves.values())
