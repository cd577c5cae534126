# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Supervised tasks: every task has an owner, every exception a reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

ErrorHandler = Callable[[str, BaseException], None]


class TaskOwner:
    """A group of tasks that start, fail and end under one responsible object.

    An exception that escapes a task is given to `on_error` (task name, exception), or to the loop's
    exception handler where there is none; it never vanishes.  Cancellation is not an error.
    """

    __slots__ = ("_on_error", "_tasks", "closing", "name")

    def __init__(self, name: str, on_error: ErrorHandler | None = None) -> None:
        self.name = name
        self.closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_error = on_error

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self,
        coro: Coroutine[Any, Any, T],
        name: str,
        done: Callable[[asyncio.Task[T]], None] | None = None,
        *,
        awaited: bool = False,
    ) -> asyncio.Task[T]:
        """Start a task that this owner keeps, watches and joins.

        With `awaited` the caller takes the result; then a failure is the caller's to handle.
        """
        task: asyncio.Task[T] = asyncio.get_running_loop().create_task(
            coro,
            name=f"{self.name}: {name}",
        )
        self._tasks.add(task)
        if done is not None:
            task.add_done_callback(done)
        task.add_done_callback(self._tasks.discard if awaited else self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        exc = task.exception()
        if exc is None:
            return
        if self._on_error is not None:
            self._on_error(task.get_name(), exc)
        else:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"unhandled error in {task.get_name()}", "exception": exc, "task": task}
            )

    async def join(self) -> None:
        """Wait until no other task is left; tasks spawned meanwhile are waited for too."""
        me = asyncio.current_task()
        while others := [task for task in self._tasks if task is not me]:
            await asyncio.wait(others)

    async def close(self) -> None:
        """Cancel all tasks and wait for their end.  Idempotent."""
        self.closing = True
        me = asyncio.current_task()
        while others := [task for task in self._tasks if task is not me]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
