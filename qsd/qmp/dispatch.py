# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From a request to the handler of its command, and from what that says to a reply.

One command runs at a time, whichever client it comes from, and clients take turns in the order of
arrival: commands see the block graph as the command before left it, as in the original.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from qsd.errors import COMMAND_NOT_FOUND, QmpError, describe
from qsd.qapi.convert import from_json, to_json
from qsd.qapi.schema import find_command
from qsd.qmp.session import NEGOTIATION_COMMAND, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from qsd.qapi.json_text import JsonError, JsonValue
    from qsd.qapi.model import CommandDecl
    from qsd.qmp.session import Request, Session

Handler: TypeAlias = "Callable[[Any], Awaitable[object]]"
"""Takes the arguments as the schema's type; returns what the schema says, or None for ``{}``."""


class Dispatcher:
    """Executes requests.

    At shutdown nothing more is begun.  The reply to the command that was being executed then,
    normally ``quit``, is held back until :meth:`release_replies`: it follows the events of the
    shutdown, as in the original.

    Attributes:
        stopped: Set at shutdown: what was not begun is not executed any more.
        turn: Held while a command runs; whoever holds it keeps all commands waiting.
    """

    __slots__ = ("_find_handler", "_held", "_on_error", "_release", "stopped", "turn")

    def __init__(
        self,
        find_handler: Callable[[str], Handler | None],
        on_error: Callable[[str, BaseException], None],
    ) -> None:
        """Make a dispatcher.

        Args:
            find_handler: From a command that the schema has to its handler, None if we lack it.
            on_error: Told about exceptions that are no QmpError or OSError, with what was going on.
        """
        self._find_handler = find_handler
        self._on_error = on_error
        self._held = 0
        self._release = asyncio.Event()
        self.turn = asyncio.Lock()
        self.stopped = False

    async def answer(self, session: Session, item: JsonValue | JsonError) -> bytes | None:
        """Execute what a client sent and return the reply to send; None after shutdown."""
        async with self.turn:
            if self.stopped:
                return None
            reply = await self._answer(session, item)
        await self._hold_back()
        return reply

    async def _hold_back(self) -> None:
        if not self.stopped:
            return
        self._held += 1
        try:
            await self._release.wait()
        finally:
            self._held -= 1

    async def release_replies(self) -> None:
        """Let the replies go that were held back since the shutdown began."""
        self._release.set()
        while self._held:  # noqa: ASYNC110 - they go in the loop's next turn
            await asyncio.sleep(0)

    async def _answer(self, session: Session, item: JsonValue | JsonError) -> bytes:
        try:
            request = session.check(item)
        except Refused as exc:
            return session.failure(exc.error, exc.id)
        try:
            value = await self._execute(session, request)
            # Formatting is part of it: an unprintable result is the command's fault.
            return session.success(value, request.id)
        except QmpError as exc:
            return session.failure(exc, request.id)
        except OSError as exc:
            return session.failure(QmpError(describe(exc)), request.id)
        except Exception as exc:
            self._on_error(f"command '{request.command}'", exc)
            return session.failure(QmpError(f"Internal error: {exc}"), request.id)

    async def call(self, command: str, arguments: Mapping[str, JsonValue]) -> JsonValue:
        """Execute a command for the program that embeds the daemon.

        Returns:
            What the reply to a client would hold under ``return``.

        Raises:
            QmpError: With class and description of the reply that a client would get.
        """
        async with self.turn:
            try:
                return to_json(await self._run(_declared(command), arguments))
            except OSError as exc:
                raise QmpError(describe(exc)) from exc

    async def _execute(self, session: Session, request: Request) -> object:
        """Run one command and return its result, structs and all.

        Raises:
            QmpError: It does not exist, cannot run now, got wrong arguments or failed.
        """
        declared = _declared(request.command)
        if request.out_of_band and not declared.allow_oob:
            raise QmpError(f"The command {declared.name} does not support OOB")
        if declared.name == NEGOTIATION_COMMAND:
            arguments: Any = from_json(declared.arguments, request.arguments)
            session.negotiated(arguments.enable or ())
            return {}
        return await self._run(declared, request.arguments)

    async def _run(self, declared: CommandDecl, arguments: Mapping[str, JsonValue]) -> object:
        """Convert the arguments and call the handler."""
        typed = from_json(declared.arguments, arguments)
        handler = self._find_handler(declared.name)
        if handler is None:
            raise QmpError(f"The command '{declared.name}' is not available in this release")
        result = await handler(typed)
        return {} if result is None else result


def _declared(command: str) -> CommandDecl:
    found = find_command(command)
    if found is None:
        raise QmpError(f"The command {command} has not been found", COMMAND_NOT_FOUND)
    return found
