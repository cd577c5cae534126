# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.qapi.convert import to_json
from qsd.qapi.schema.job import JobStatusChange

if TYPE_CHECKING:
    from qsd.qapi.events import EventSink
    from qsd.qapi.model import Event


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def finish(sink: EventSink) -> None:
    sink.emit(JobStatusChange(id="job0", status="concluded"))


def test_a_sink_gets_typed_events() -> None:
    recorder = Recorder()
    finish(recorder)
    assert [(event.NAME, to_json(event)) for event in recorder.events] == [
        ("JOB_STATUS_CHANGE", {"id": "job0", "status": "concluded"})
    ]
