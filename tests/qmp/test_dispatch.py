# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From requests to handlers and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.errors import DEVICE_NOT_FOUND, QmpError
from qsd.qapi.schema.job import JobInfo
from qsd.qmp.dispatch import Dispatcher
from qsd.qmp.session import Session

Handler = Callable[[Any], Awaitable[object]]


def dispatcher(handlers: dict[str, Handler], problems: list[str] | None = None) -> Dispatcher:
    def complain(what: str, exc: BaseException) -> None:
        assert problems is not None, (what, exc)
        problems.append(f"{what}: {exc}")

    return Dispatcher(handlers.get, complain)


async def ask(target: Dispatcher, text: str, session: Session | None = None) -> Any:
    if session is None:
        session = Session()
        session.negotiated([])
    (item,) = session.receive(text.encode() + b" ")
    reply = await target.answer(session, item)
    return None if reply is None else json.loads(reply)


def error(desc: str, error_class: str = "GenericError") -> dict[str, Any]:
    return {"error": {"class": error_class, "desc": desc}}


async def two_jobs(args: Any) -> list[JobInfo]:
    return [
        JobInfo(id=name, type="create", status="running", current_progress=0, total_progress=1)
        for name in "ab"
    ]


async def cancel(args: Any) -> None:
    if args.id == "io":
        raise OSError(5, "Input/output error")
    if args.id == "bug":
        raise ZeroDivisionError("oops")
    if args.id != "known":
        raise QmpError("Job not found", DEVICE_NOT_FOUND)


def test_results() -> None:
    async def main() -> None:
        target = dispatcher({"query-jobs": two_jobs, "job-cancel": cancel})
        reply = await ask(target, '{"execute":"query-jobs"}')
        assert reply["return"][1] == {
            "id": "b", "type": "create", "status": "running",
            "current-progress": 0, "total-progress": 1,
        }  # fmt: skip
        assert await ask(
            target, '{"execute":"job-cancel","arguments":{"id":"known"},"id":null}'
        ) == {"return": {}, "id": None}

    run(main())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"execute":"nope"}', error("The command nope has not been found", "CommandNotFound")),
        ('{"execute":"JOB_STATUS_CHANGE"}', error(
            "The command JOB_STATUS_CHANGE has not been found", "CommandNotFound")),
        ('{"execute":"job-cancel"}', error("Parameter 'id' is missing")),
        ('{"execute":"job-cancel","arguments":{"id":1}}',
         error("Invalid parameter type for 'id', expected: string")),
        ('{"execute":"job-cancel","arguments":{"id":"x"}}',
         error("Job not found", "DeviceNotFound")),
        ('{"execute":"job-cancel","arguments":{"id":"io"}}', error("Input/output error")),
        ('{"execute":"job-pause","arguments":{"id":"x"}}',
         error("The command 'job-pause' is not available in this release")),
    ],
)  # fmt: skip
def test_errors(text: str, expected: Any) -> None:
    assert run(ask(dispatcher({"job-cancel": cancel}), text)) == expected


def test_defects_are_reported_and_answered() -> None:
    problems: list[str] = []
    target = dispatcher({"job-cancel": cancel}, problems)
    reply = run(ask(target, '{"execute":"job-cancel","arguments":{"id":"bug"}}'))
    assert reply == error("Internal error: oops")
    assert problems == ["command 'job-cancel': oops"]


def test_negotiation() -> None:
    async def main() -> None:
        target = dispatcher({"query-jobs": two_jobs})
        session = Session()
        bad = '{"execute":"qmp_capabilities","arguments":{"enable":["bogus"]}}'
        assert await ask(target, bad, session) == error(
            "Parameter 'null' does not accept value 'bogus'"
        )
        good = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'
        assert await ask(target, good, session) == {"return": {}}
        assert session.capabilities == {"oob"}
        assert await ask(target, bad, session) == error(
            "Parameter 'null' does not accept value 'bogus'"
        )
        assert await ask(target, good, session) == error(
            "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
        )
        assert await ask(target, '{"exec-oob":"query-jobs"}', session) == error(
            "The command query-jobs does not support OOB"
        )

    run(main())


def test_one_at_a_time_in_order_of_arrival() -> None:
    async def main() -> None:
        trace: list[str] = []
        going_on = asyncio.Event()

        async def slow(args: Any) -> None:
            trace.append(f"{args.id} begins")
            await going_on.wait()
            trace.append(f"{args.id} ends")

        target = dispatcher({"job-cancel": slow})
        tasks = TaskOwner("clients")
        for name in "abc":
            text = f'{{"execute":"job-cancel","arguments":{{"id":"{name}"}}}}'
            tasks.spawn(ask(target, text), name)
        await asyncio.sleep(0)
        assert trace == ["a begins"]
        going_on.set()
        await tasks.join()
        assert trace == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]

    run(main())


def test_nothing_after_the_end() -> None:
    target = dispatcher({"query-jobs": two_jobs})
    target.stopped = True
    assert run(ask(target, '{"execute":"query-jobs"}')) is None


def test_call() -> None:
    async def main() -> None:
        target = dispatcher({"query-jobs": two_jobs, "job-cancel": cancel})
        assert [job["id"] for job in await target.call("query-jobs", {})] == ["a", "b"]
        assert await target.call("job-cancel", {"id": "known"}) == {}
        for arguments, text in (({"id": "io"}, "Input/output error"), ({}, "Parameter 'id' is")):
            with pytest.raises(QmpError, match=text):
                await target.call("job-cancel", arguments)

    run(main())
