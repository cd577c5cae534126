# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The state table of jobs."""

from __future__ import annotations

from typing import get_args

import pytest

from qsd.jobs.states import MOVES, VERBS, accepts, may_follow
from qsd.qapi.schema.job import JobStatus, JobVerb

STATUSES = get_args(JobStatus)


def test_tables_cover_the_schema() -> None:
    assert set(MOVES) == set(STATUSES)
    assert set(VERBS) == set(get_args(JobVerb))
    assert set().union(*MOVES.values()) <= set(STATUSES)


def test_every_status_is_reached_and_every_job_can_end() -> None:
    reached = {"undefined"}
    for _ in STATUSES:
        reached |= {to for status in reached for to in MOVES[status]}
    assert reached == set(STATUSES)
    ends = {"null"}
    for _ in STATUSES:
        ends |= {status for status in STATUSES if MOVES[status] & ends}
    assert ends == set(STATUSES)


@pytest.mark.parametrize(
    ("verb", "accepted"),
    [
        ("cancel", "created running paused ready standby waiting pending"),
        ("pause", "created running paused ready standby"),
        ("resume", "created running paused ready standby"),
        ("set-speed", "created running paused ready standby"),
        ("complete", "ready standby"),
        ("finalize", "pending"),
        ("dismiss", "concluded"),
    ],
)
def test_verbs(verb: JobVerb, accepted: str) -> None:
    assert {status for status in STATUSES if accepts(status, verb)} == set(accepted.split())


def test_moves() -> None:
    assert may_follow("running", "paused")
    assert not may_follow("paused", "waiting")
    assert not may_follow("concluded", "running")
