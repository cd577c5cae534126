# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import os
from time import monotonic

import pytest

from qsd.aio import polling
from qsd.aio.loop import run
from qsd.aio.polling import TRUST, BusyPoll


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(polling, "_SOON", 10.0)
    monkeypatch.setattr(polling, "WINDOW", 0.02)


def come_back(poll: BusyPoll, source: int, times: int) -> None:
    for _ in range(times):
        poll.arrived(source)
        poll.served(source)


def is_awake(poll: BusyPoll) -> bool:
    return poll._spinning


def test_stays_awake_for_who_comes_back() -> None:
    async def main() -> None:
        poll = BusyPoll()
        come_back(poll, 5, TRUST)
        assert not is_awake(poll)  # the first arrival is no return
        come_back(poll, 5, 1)
        assert is_awake(poll)
        before = monotonic()
        while is_awake(poll):
            await asyncio.sleep(0)
        assert 0.01 < monotonic() - before < 1

    run(main())


def test_gives_up_on_who_did_not_come_in_time() -> None:
    async def main() -> None:
        poll = BusyPoll()
        come_back(poll, 5, TRUST + 1)
        while is_awake(poll):
            await asyncio.sleep(0)
        come_back(poll, 5, TRUST + 1)
        assert not is_awake(poll)
        come_back(poll, 5, polling._PENALTY)
        assert is_awake(poll)

    run(main())


def test_does_not_wait_for_one_of_many() -> None:
    async def main() -> None:
        poll = BusyPoll()
        for _ in range(3 * TRUST):
            come_back(poll, 5, 1)
            come_back(poll, 6, 1)
        assert not is_awake(poll)
        poll.served(7)
        assert not is_awake(poll)

    run(main())


def test_slow_returns_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        poll = BusyPoll()
        monkeypatch.setattr(polling, "_SOON", 0.0)
        come_back(poll, 5, 3 * TRUST)
        assert not is_awake(poll)

    run(main())


def test_one_processor_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
        poll = BusyPoll()
        come_back(poll, 5, 3 * TRUST)
        assert not is_awake(poll)

    run(main())
