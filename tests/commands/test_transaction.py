# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Transactions, with actions of our own."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, get_args

import pytest

from qsd.aio.loop import run
from qsd.commands import transaction
from qsd.errors import QmpError
from qsd.qapi.schema.transaction import TransactionActionKind
from tests.commands.support import Daemon
from tests.jobs.chains import Guest, World, tell

ABORT = {"type": "abort", "data": {}}
ABORTED = "Transaction aborted using Abort action"


class Noted(transaction.Action):
    """Writes down what is done to it."""

    log: ClassVar[list[str]] = []

    def _note(self, what: str) -> None:
        self.log.append(f"{what} {getattr(self.data, 'name', 'job')}")

    async def prepare(self) -> None:
        self._note("prepare")

    async def commit(self) -> None:
        self._note("commit")

    async def abort(self) -> None:
        self._note("abort")

    async def clean(self) -> None:
        self._note("clean")


def note(name: str) -> dict[str, Any]:
    return {"type": "block-dirty-bitmap-clear", "data": {"node": "n", "name": name}}


@pytest.fixture(autouse=True)
def _own_action(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"block-dirty-bitmap-clear": Noted, "blockdev-backup": Noted}
    original = transaction.find_action
    monkeypatch.setattr(transaction, "find_action", lambda kind: own.get(kind) or original(kind))
    monkeypatch.setattr(Noted, "log", [])


def carry_out(*actions: dict[str, Any], mode: str | None = None) -> str | None:
    """Run a transaction; return the text of its error, if any."""
    properties = {"properties": {"completion-mode": mode}} if mode else {}

    async def main() -> str | None:
        async with Daemon() as daemon:
            try:
                assert await daemon.qmp("transaction", actions=list(actions), **properties) is None
            except QmpError as exc:
                return exc.desc
            return None

    return run(main())


def test_nothing_to_do() -> None:
    assert carry_out() is None
    assert carry_out(mode="grouped") is None


def test_all_are_committed_in_order() -> None:
    assert carry_out(note("a"), note("b")) is None
    assert Noted.log == [
        "prepare a", "prepare b", "commit a", "commit b", "clean a", "clean b",
    ]  # fmt: skip


def test_a_failure_undoes_the_rest_backwards() -> None:
    assert carry_out(note("a"), note("b"), ABORT, note("c")) == ABORTED
    assert Noted.log == [
        "prepare a", "prepare b", "abort b", "abort a", "clean b", "clean a",
    ]  # fmt: skip


def test_completion_mode() -> None:
    data = {"device": "n", "target": "t", "sync": "full"}
    grouped = {"type": "blockdev-backup", "data": data}
    assert carry_out(grouped, note("b"), mode="individual") is None
    Noted.log.clear()
    assert carry_out(grouped, note("b"), mode="grouped") == (
        "Action 'block-dirty-bitmap-clear' does not support Transaction property "
        "completion-mode = grouped"
    )
    assert Noted.log == ["prepare job", "abort job", "clean job"]
    assert carry_out(ABORT, mode="grouped") == ABORTED


def test_requests_in_flight_end_before_anything_is_prepared() -> None:
    async def story(world: World) -> None:
        node = (await world.rig.memory("m", 1 << 20)).node
        memory, tasks = world.driver("m"), world.rig.graph.tasks
        memory.gate = asyncio.Event()
        guest = Guest(world.rig, node)
        write = tasks.spawn(guest.write(0, b"x" * 512), "write", awaited=True)
        await asyncio.sleep(0.01)
        change = tasks.spawn(
            world.qmp("transaction", actions=[note("one")]), "change", awaited=True
        )
        await asyncio.sleep(0.01)
        assert not Noted.log
        memory.gate.set()
        await asyncio.wait([write, change])
        write.result()
        change.result()
        assert Noted.log == ["prepare one", "commit one", "clean one"]
        await guest.leave()

    tell(story)


def test_there_is_an_action_of_each_kind() -> None:
    kinds = get_args(TransactionActionKind)
    assert set(transaction.ACTIONS) == set(kinds)
    for kind in kinds:
        assert issubclass(transaction.find_action(kind), transaction.Action)
