# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Monitors: QMP sessions on character devices.

A monitor lives as long as the daemon; its clients come and go, each with a session of its own.

**Order.**  Requests are executed and answered in the order in which they came.  While one is being
executed nothing more is read, so a client that leaves after its last request still has it executed.

**Bounds.**  A client that sends but does not read costs bounded memory: while a reply is pending no
further request is executed, so none is read; events are kept up to :data:`MAX_UNREAD_EVENTS` bytes
and dropped beyond.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from qsd.aio.eager import start
from qsd.qmp.session import COMMANDS, Session, format_message

if TYPE_CHECKING:
    from qsd.aio.tasks import TaskOwner
    from qsd.chardev.base import Chardev
    from qsd.qapi.json_text import JsonError, JsonValue
    from qsd.qmp.dispatch import Dispatcher
    from qsd.qmp.events import EventFanout

#: Bytes of pending output beyond which a client loses events.
MAX_UNREAD_EVENTS: Final = 4 << 20


class Monitor:
    """A QMP server on one character device.

    Attributes:
        chardev: The device.
        pretty: Whether replies are written over several lines.
        lost_events: How many events the present client did not get because it does not read.
    """

    def __init__(
        self,
        chardev: Chardev,
        dispatcher: Dispatcher,
        events: EventFanout,
        tasks: TaskOwner,
        version: JsonValue,
        *,
        pretty: bool = False,
    ) -> None:
        """Start to serve; a client that is there already is greeted at once.

        Raises:
            QmpError: The device is in use.
        """
        self.chardev = chardev
        self.pretty = pretty
        self.lost_events = 0
        self._dispatcher = dispatcher
        self._events = events
        self._tasks = tasks
        self._version = version
        self._session: Session | None = None
        self._waiting: deque[JsonValue | JsonError] = deque()
        self._is_busy = False
        chardev.attach(self)
        events.add_listener(self._event)

    def close(self) -> None:
        """Let go of the device.  Idempotent; what is being executed goes on unanswered."""
        if self.chardev.frontend is self:
            self.chardev.detach()
            self._events.remove_listener(self._event)
        self._session = None
        self._waiting.clear()

    # ---------------------------------------------------------------------------- Frontend

    @property
    def is_ready(self) -> bool:
        """A monitor always listens."""
        return True

    def chardev_opened(self) -> None:
        """Greet a client."""
        self._session = session = Session(pretty=self.pretty)
        self._waiting.clear()
        self.lost_events = 0
        self.chardev.write(session.greeting(self._version, with_oob=self.chardev.OFFERS_OOB))

    def chardev_closed(self) -> None:
        """Forget the client."""
        self._session = None
        self._waiting.clear()

    def chardev_data(self, data: bytes) -> None:
        """Take what a client sends and execute it."""
        if self._session is not None and not self._dispatcher.stopped:
            self._waiting.extend(self._session.receive(data))
            self._go_on()

    def chardev_drained(self) -> None:
        """Execute what waited for the client to read."""
        self._go_on()

    # --------------------------------------------------------------------------- execution

    def _go_on(self) -> None:
        if self._is_busy or not self._waiting:
            return
        if self.chardev.pending:
            self.chardev.pause()
            return
        self._is_busy = True
        # Most commands never wait; only one that does costs a task.
        if start(self._execute(), self._tasks, f"monitor {self.chardev.label}") is not None:
            self.chardev.pause()

    async def _execute(self) -> None:
        """Answer the requests that wait, until there is none or the client does not read."""
        try:
            while self._waiting and not self.chardev.pending:
                session = self._session
                if session is None:
                    break
                reply = await self._dispatcher.answer(session, self._waiting.popleft())
                # By now the client may be gone and another may be there, with another session.
                if reply is not None and session is self._session:
                    self.chardev.write(reply)
        finally:
            self._is_busy = False
        if self._waiting:
            self.chardev.pause()  # chardev_drained() goes on
        else:
            self.chardev.resume()

    def _event(self, message: dict[str, Any]) -> None:
        """Send an event if there is a client that finished its negotiation."""
        session = self._session
        if session is None or session.state != COMMANDS:
            return
        if self.chardev.pending > MAX_UNREAD_EVENTS:
            self.lost_events += 1
            return
        self.chardev.write(format_message(message, pretty=self.pretty))
