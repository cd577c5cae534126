# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Events reach everybody, limited ones at their rate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.qapi.schema.block_events import QuorumFailure, QuorumReportBad
from qsd.qapi.schema.job import JobStatusChange
from qsd.qmp import events
from qsd.qmp.events import EventFanout


def collecting(fanout: EventFanout) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    fanout.add_listener(found.append)
    return found


def failure(sector: int) -> QuorumFailure:
    return QuorumFailure(reference="r", sector_num=sector, sectors_count=1)


def test_message_and_listeners() -> None:
    fanout = EventFanout(clock_ns=lambda: 1_795_349_817_396_023_999)
    first, second = collecting(fanout), collecting(fanout)
    fanout.emit(JobStatusChange(id="j", status="created"))
    assert first == second
    assert first == [
        {
            "event": "JOB_STATUS_CHANGE",
            "timestamp": {"seconds": 1795349817, "microseconds": 396023},
            "data": {"id": "j", "status": "created"},
        }
    ]
    fanout.remove_listener(fanout._listeners[0])
    fanout.emit(JobStatusChange(id="j", status="running"))
    assert (len(first), len(second)) == (1, 2)


def test_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first passes, of the others within the pause the last one, later."""
    monkeypatch.setattr(events, "RATE_LIMITS", {"QUORUM_FAILURE": (0.02, None)})

    async def main() -> None:
        fanout = EventFanout()
        found = collecting(fanout)
        arrived = asyncio.Event()
        fanout.add_listener(lambda _: arrived.set())
        for sector in range(5):
            fanout.emit(failure(sector))
        assert [event["data"]["sector-num"] for event in found] == [0]
        arrived.clear()
        await arrived.wait()
        assert [event["data"]["sector-num"] for event in found] == [0, 4]
        fanout.emit(failure(5))
        assert len(found) == 2  # a new pause has begun
        arrived.clear()
        await arrived.wait()
        assert [event["data"]["sector-num"] for event in found] == [0, 4, 5]
        fanout.close()

    run(main())


def test_pause_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RATE_LIMITS", {"QUORUM_FAILURE": (0.001, None)})

    async def main() -> None:
        fanout = EventFanout()
        found = collecting(fanout)
        fanout.emit(failure(0))
        await asyncio.sleep(0.02)
        assert len(found) == 1
        fanout.emit(failure(1))
        assert len(found) == 2
        fanout.close()

    run(main())


def test_keys_are_independent() -> None:
    async def main() -> None:
        fanout = EventFanout()
        found = collecting(fanout)
        for node in ("a", "b", "a"):
            fanout.emit(QuorumReportBad(type="read", node_name=node, sector_num=0, sectors_count=1))
        assert [event["data"]["node-name"] for event in found] == ["a", "b"]
        fanout.close()

    run(main())
