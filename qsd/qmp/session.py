# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""One client's session, without I/O (QMP specification, "Protocol Specification").

A session begins when a client connects and ends when it leaves::

    NEGOTIATING --qmp_capabilities--> COMMANDS

* The server greets with its version and the capabilities it offers.
* While NEGOTIATING every command but ``qmp_capabilities`` is refused; in COMMANDS that one is, once
  its arguments have been checked.  Both are ``CommandNotFound``.
* A request is judged when its turn comes, not when it arrives: a client may send
  ``qmp_capabilities`` and the first commands in one go.
* Each request gets one reply, in the order of requests.  The reply carries the request's ``id``, of
  whatever type, if the request was an object at all.
* Out-of-band execution must be asked for in the negotiation.  No command of a storage daemon can be
  executed so; ``exec-oob`` is understood and refused.

The caller feeds bytes to :meth:`Session.receive`, gives each result to :meth:`Session.check`,
executes the request and formats what comes of it.  A result that cannot be executed makes ``check``
raise :class:`Refused`, which is answered like a failed command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.errors import COMMAND_NOT_FOUND, QmpError
from qsd.qapi.json_text import JsonError, JsonStream
from qsd.qapi.member_order import ordered_names
from qsd.qapi.message_text import message_text
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qsd.qapi.json_text import JsonValue

NEGOTIATING: Final = "negotiating"
COMMANDS: Final = "commands"

_MOVES: Final[Mapping[str, str]] = {NEGOTIATING: COMMANDS}

NEGOTIATION_COMMAND: Final = "qmp_capabilities"
CAPABILITIES: Final = ("oob",)


class _Absent:
    """The type of :data:`NO_ID`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_ID"


NO_ID: Final = _Absent()
"""Stands for the id of a request that has none; null is an id."""


class Request(NamedTuple):
    """A request that is well-formed and allowed now.

    Attributes:
        command: The command's name; whether it exists is not known yet.
        arguments: Its arguments, {} if none were given.
        id: What to echo, or NO_ID.
        out_of_band: Whether the client used ``exec-oob``.
    """

    command: str
    arguments: dict[str, JsonValue]
    id: JsonValue
    out_of_band: bool


class Refused(Exception):
    """A request cannot be executed.

    Attributes:
        error: Why.
        id: What to echo, or NO_ID.
    """

    def __init__(self, error: QmpError, request_id: JsonValue = NO_ID) -> None:
        super().__init__(error.desc)
        self.error = error
        self.id = request_id


class Session:
    """The state of one client.

    Attributes:
        state: NEGOTIATING or COMMANDS.
        capabilities: What the client enabled.
    """

    __slots__ = ("_pretty", "_stream", "capabilities", "state")

    def __init__(self, *, pretty: bool = False) -> None:
        self.state = NEGOTIATING
        self.capabilities: frozenset[str] = frozenset()
        self._pretty = pretty
        self._stream = JsonStream()

    def greeting(self, version: JsonValue, *, with_oob: bool = True) -> bytes:
        """Return the first thing that a client is sent.

        Args:
            version: What ``query-version`` returns.
            with_oob: Whether the transport is fit for out-of-band commands.
        """
        offered = list(CAPABILITIES) if with_oob else []
        return self.format({"QMP": {"version": version, "capabilities": offered}})

    def receive(self, data: bytes) -> list[JsonValue | JsonError]:
        """Take bytes from the client; return what they complete, each for :meth:`check`."""
        return self._stream.feed(data)

    def check(self, item: JsonValue | JsonError) -> Request:
        """Judge what :meth:`receive` returned.

        Raises:
            Refused: It is no request, or none that is allowed in this state.
        """
        if isinstance(item, JsonError):
            raise Refused(item)
        if not isinstance(item, dict):
            raise Refused(QmpError("QMP input must be a JSON object"))
        request_id = item.get("id", NO_ID)
        try:
            command, out_of_band = self._command(item)
        except QmpError as exc:
            raise Refused(exc, request_id) from None
        if self.state == NEGOTIATING and command != NEGOTIATION_COMMAND:
            raise Refused(
                QmpError(
                    f"Expecting capabilities negotiation with '{NEGOTIATION_COMMAND}'",
                    COMMAND_NOT_FOUND,
                ),
                request_id,
            )
        return Request(command, item.get("arguments", {}), request_id, out_of_band)

    def _command(self, item: dict[str, JsonValue]) -> tuple[str, bool]:
        """Check the members of a request; return the command and whether it is out of band.

        Raises:
            QmpError: A member has a wrong type, is one too many, or is missing.
        """
        command = None
        out_of_band = False
        for name in ordered_names(list(item)):
            value = item[name]
            if name == "execute" or (name == "exec-oob" and "oob" in self.capabilities):
                if not isinstance(value, str):
                    raise QmpError(f"QMP input member '{name}' must be a string")
                if command is not None:
                    raise QmpError(
                        f"QMP input member '{name}' clashes with "
                        f"'{'exec-oob' if out_of_band else 'execute'}'"
                    )
                command = value
                out_of_band = name == "exec-oob"
            elif name == "arguments":
                if not isinstance(value, dict):
                    raise QmpError(f"QMP input member '{name}' must be an object")
            elif name != "id":
                raise QmpError(f"QMP input member '{name}' is unexpected")
        if command is None:
            raise QmpError("QMP input lacks member 'execute'")
        return command, out_of_band

    def negotiated(self, enable: Iterable[str]) -> None:
        """Note that the client finished the negotiation and which capabilities it wants.

        Raises:
            QmpError: It had done so before; nothing changed.
        """
        if self.state not in _MOVES:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND
            )
        self.state = _MOVES[self.state]
        self.capabilities = frozenset(enable)

    def success(self, value: object, request_id: JsonValue) -> bytes:
        """Format the reply to a command that returned `value`, which may hold structs."""
        return self._reply({"return": value}, request_id)

    def failure(self, error: QmpError, request_id: JsonValue) -> bytes:
        """Format the reply to a command that failed or was refused."""
        return self._reply({"error": {"class": error.error_class, "desc": error.desc}}, request_id)

    def _reply(self, message: dict[str, Any], request_id: JsonValue) -> bytes:
        if request_id is not NO_ID:
            message["id"] = request_id
        return self.format(message)

    def format(self, message: Mapping[str, Any]) -> bytes:
        """Return a message as it is sent: QEMU's member order, lines that end in CR LF."""
        return format_message(message, pretty=self._pretty)


def format_message(message: Mapping[str, Any], *, pretty: bool) -> bytes:
    """Return a message as it is sent."""
    text = message_text(message, pretty=pretty)
    if pretty:
        # The text has no other newlines: those in strings are escaped.
        text = text.replace("\n", "\r\n")
    return f"{text}\r\n".encode("ascii")
