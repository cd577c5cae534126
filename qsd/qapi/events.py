# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The event sink that lower layers are handed, so that none of them needs to know a monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qsd.qapi.model import Event


class EventSink(Protocol):
    """Whoever takes events; in a daemon, the monitors' fan-out."""

    def emit(self, event: Event) -> None:
        """Take one event.  Never blocks and never raises.

        Args:
            event: The event; it must not be changed afterwards.
        """
