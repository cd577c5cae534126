# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Telling a write that had to wait from one whose thread had to wait for the processor.

Buffered writes run inline until the kernel makes them wait: it throttles who dirties too many
pages, and a journal may be full.  The time that a call takes shows that, but on a busy machine a
call takes as long when the processor was somebody else's turn, and then threads would only make it
worse.  What tells them apart is the kernel's count of a thread's voluntary switches, where waiting
counts and being preempted does not (getrusage(2), "ru_nvcsw").

Counting before every write would cost more than the write, so it is done only after a slow one::

    quiet ──slow call──▶ watching (1 s) ──slow call that waited──▶ pausing (0.5 s): threads write
      ▲                    │  ▲                                       │
      └── nothing more ────┘  └───────────────────────────────────────┘

With other work on the machine, copies on write over a backing file went from 2,600/s to 3,300/s.
"""

from __future__ import annotations

from typing import Final

#: Seconds; an inline write that takes longer is worth a look.
SLOW_CALL: Final = 0.02
#: Seconds; how long threads write after one that had to wait.
SLOW_PAUSE: Final = 0.5
#: Seconds; how long after a slow write others are watched.
_WATCH: Final = 1.0


def _voluntary_switches() -> int:
    from resource import RUSAGE_THREAD, getrusage

    return getrusage(RUSAGE_THREAD).ru_nvcsw


class WriteWatch:
    """Decides for one file whether writes may run inline.  Times are monotonic seconds.

    Attributes:
        until: Before this time, ask `may_write` before a write.
    """

    __slots__ = ("_paused_until", "_switches", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self._paused_until = 0.0
        self._switches = 0

    def may_write(self, before: float) -> bool:
        """Tell whether a write may start inline now; it is watched then."""
        if before < self._paused_until:
            return False
        self._switches = _voluntary_switches()
        return True

    def was_slow(self, before: float, after: float) -> None:
        """Take note of a write that took longer than `SLOW_CALL`."""
        if before < self.until and _voluntary_switches() != self._switches:
            self._paused_until = after + SLOW_PAUSE
        self.until = after + _WATCH
