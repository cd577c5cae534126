# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Events, fanned out to all clients, some of them at a limited rate.

The manual marks events as "rate-limited": QUORUM_REPORT_BAD, QUORUM_FAILURE and VSERPORT_CHANGE.
Of such an event, the first is sent at once.  What follows within a second is held back, each
replacing the one before; what is held at the end of the second is sent then, and a new second
begins.  Events that say different things (another quorum node, another port) do not hold back each
other.
"""

from __future__ import annotations

import asyncio
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from qsd.qapi.convert import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qsd.qapi.model import Event

RATE_LIMITS: Final[Mapping[str, tuple[float, str | None]]] = {
    "QUORUM_FAILURE": (1.0, None),
    "QUORUM_REPORT_BAD": (1.0, "node-name"),
    "VSERPORT_CHANGE": (1.0, "id"),
}
"""Seconds between two of them, and the member that tells independent ones apart."""


class EventFanout:
    """The event sink of a daemon.

    Needs a running loop only when a limited event is emitted.
    """

    __slots__ = ("_clock_ns", "_listeners", "_throttled")

    def __init__(self, clock_ns: Callable[[], int] = time_ns) -> None:
        """Make a sink without listeners.

        Args:
            clock_ns: The time of day in nanoseconds.
        """
        self._clock_ns = clock_ns
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        self._throttled: dict[tuple[str, Any], _Throttled] = {}

    def add_listener(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Have `listener` called with every event, as the message to send; it must not raise."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Send an event now, or later if its kind is limited and one was sent lately."""
        seconds, microseconds = divmod(self._clock_ns() // 1000, 1_000_000)
        message: dict[str, Any] = {
            "event": event.NAME,
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
        }
        data = to_json(event)
        if data:
            message["data"] = data
        limit = RATE_LIMITS.get(event.NAME)
        if limit is None:
            self._send(message)
            return
        pause, member = limit
        key = (event.NAME, None if member is None else data.get(member))
        throttled = self._throttled.get(key)
        if throttled is not None:
            throttled.held = message
            return
        self._send(message)
        self._throttled[key] = throttled = _Throttled()
        self._wait(key, throttled, pause)

    def close(self) -> None:
        """Forget what is held back."""
        for throttled in self._throttled.values():
            if throttled.timer is not None:
                throttled.timer.cancel()
        self._throttled.clear()

    def _send(self, message: dict[str, Any]) -> None:
        for listener in tuple(self._listeners):
            listener(message)

    def _wait(self, key: tuple[str, Any], throttled: _Throttled, pause: float) -> None:
        loop = asyncio.get_running_loop()
        throttled.timer = loop.call_later(pause, self._pause_over, key, throttled, pause)

    def _pause_over(self, key: tuple[str, Any], throttled: _Throttled, pause: float) -> None:
        message, throttled.held = throttled.held, None
        if message is None:
            del self._throttled[key]
            return
        self._send(message)
        self._wait(key, throttled, pause)


class _Throttled:
    """One kind of event within its pause: the latest that is held back, if any."""

    __slots__ = ("held", "timer")

    def __init__(self) -> None:
        self.held: dict[str, Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
