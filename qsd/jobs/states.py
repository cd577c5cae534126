# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The states of a job, the legal moves between them, and what a user may ask for in each.

::

    undefined -> created -> running <-> paused           pause, resume
                               |
                               +------> ready <-> standby        jobs that wait to be completed
                               |          |
                               v          v
                             waiting  (until all jobs of the transaction have done their work)
                               v
                             pending  (until finalized)
                               v
    null <- concluded <------- +
               ^
               +--- aborting <- any of the states above: failure and cancellation

(QMP reference, "JobStatus" and "JobVerb".)  What the reference leaves open about verbs was found by
trying each of them in each state of a real job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.qapi.schema.job import JobStatus, JobVerb

_RUNS: Final = frozenset({"created", "running", "paused", "ready", "standby"})

MOVES: Final[Mapping[str, frozenset[JobStatus]]] = {
    "undefined": frozenset({"created"}),
    # A job that could not be set up goes from created to null without ever running.
    "created": frozenset({"running", "aborting", "null"}),
    "running": frozenset({"paused", "ready", "waiting", "aborting"}),
    "paused": frozenset({"running"}),
    "ready": frozenset({"standby", "waiting", "aborting"}),
    "standby": frozenset({"ready"}),
    "waiting": frozenset({"pending", "aborting"}),
    "pending": frozenset({"concluded", "aborting"}),
    "aborting": frozenset({"concluded"}),
    "concluded": frozenset({"null"}),
    "null": frozenset(),
}
"""From a status to those that may follow it."""

VERBS: Final[Mapping[str, frozenset[str]]] = {
    "cancel": _RUNS | {"waiting", "pending"},
    "pause": _RUNS,
    "resume": _RUNS,
    "set-speed": _RUNS,
    "complete": frozenset({"ready", "standby"}),
    "finalize": frozenset({"pending"}),
    "dismiss": frozenset({"concluded"}),
}
"""From a verb to the statuses in which it is accepted."""


def may_follow(status: JobStatus, following: JobStatus) -> bool:
    """Tell whether a job may go from `status` to `following`."""
    return following in MOVES[status]


def accepts(status: JobStatus, verb: JobVerb) -> bool:
    """Tell whether a job in `status` can be asked to do `verb`."""
    return status in VERBS[verb]
