# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Eager execution of I/O coroutines.

Most requests are answered from memory: their coroutine never suspends.  Creating a task for such a
request costs more than the request itself.  :func:`start` therefore steps the coroutine at once, in
the caller's frame.  If it finishes, there was no task, no future and no scheduling.  If it
suspends, it is handed, half-way through, to a real asyncio task of the given owner, which makes
cancellation, time-outs and ``current_task`` work as usual from there on.

Until its first suspension the coroutine runs as part of its caller, so it must not use
``asyncio.timeout`` or ``current_task`` before it has awaited something else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

    from qsd.aio.tasks import TaskOwner

T = TypeVar("T")


class _Resumed(Coroutine[Any, Any, T]):
    """A coroutine that has already yielded `waiting_for`, as a coroutine that has not started.

    A generator around it would not do: cancelled before its first turn, it would end without ever
    telling the inner coroutine, whose clean-up would not run.
    """

    __slots__ = ("_coro", "_waiting_for")

    def __init__(self, coro: Coroutine[Any, Any, T], waiting_for: Any) -> None:
        self._coro = coro
        self._waiting_for: tuple[Any] | None = (waiting_for,)

    def send(self, value: Any) -> Any:
        """Repeat what was yielded, then pass on."""
        if self._waiting_for is not None:
            waiting_for, self._waiting_for = self._waiting_for[0], None
            return waiting_for
        return self._coro.send(value)

    def throw(self, *exc: Any) -> Any:
        """Pass on."""
        self._waiting_for = None
        return self._coro.throw(*exc)

    def close(self) -> None:
        """Pass on."""
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, T]:
        """Never used: the loop drives this object itself."""
        raise TypeError("only a task can go on with this coroutine")


def start(
    coro: Coroutine[Any, Any, T],
    owner: TaskOwner,
    name: str,
    done: Callable[[asyncio.Task[T]], None] | None = None,
    *,
    awaited: bool = False,
) -> asyncio.Task[T] | None:
    """Step `coro`; give it to `owner` only if it suspends.

    Args:
        coro: A coroutine that was not started yet.  It should report its result by itself (write
            the reply, set the status): a result that comes without suspension is dropped.
        owner: Who joins and cancels the task, should there be one.
        name: Name of that task.
        done: Called with the finished task, only if there was one.
        awaited: Whether the caller awaits the task and handles its failure.

    Returns:
        None if the coroutine finished, else its task.

    Raises:
        Whatever the coroutine raises before its first suspension.
    """
    try:
        waiting_for = coro.send(None)
    except StopIteration:
        return None
    return owner.spawn(_Resumed(coro, waiting_for), name, done, awaited=awaited)
