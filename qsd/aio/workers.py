# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Worker threads for calls that may block.

Completions of several threads are carried to the loop in one wakeup: a thread that finds a wakeup
already on its way only appends its result.  The pool grows on demand up to its bound and its idle
threads end by themselves when the pool is closed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Threads at most; count; the C daemon's thread pool has the same bound.
MAX_THREADS = 64

_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class WorkerPool:
    """A bounded pool of threads that belongs to one event loop."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._finished: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._wakeup_pending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def run(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `func` in a worker thread and return what it returns or raises.

        A cancelled caller does not stop the call: buffers it was given must stay valid until it
        ends.  Therefore the call is always waited for; cancellation takes effect afterwards.
        """
        future = self.submit(func, *args, **kwargs)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # read it: the caller is going away
            raise

    def submit(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue a call; the future is done when the thread has finished it."""
        if self._closed:
            raise RuntimeError("worker pool is closed")
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if kwargs:
            inner = func
            keywords = kwargs

            def call(*positional: Any) -> T:
                return inner(*positional, **keywords)

            self._jobs.put((future, call, args))
        else:
            self._jobs.put((future, func, args))
        self._busy += 1
        if self._busy > len(self._threads) and len(self._threads) < self._max_threads:
            thread = threading.Thread(
                target=self._work, name=f"qsd-worker-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            future, func, args = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = func(*args)
            except BaseException as exc:
                error = exc
            self._finished.append((future, result, error))
            del job, future, func, args, result, error
            # Appending before looking at the flag, and clearing the flag before popping (below),
            # makes a lost wakeup impossible under the interpreter lock.
            if not self._wakeup_pending:
                self._wakeup_pending = True
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._wakeup_pending = False
        finished = self._finished
        while finished:
            future, result, error = finished.popleft()
            self._busy -= 1
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

    async def close(self) -> None:
        """Finish what is queued, end all threads and wait for them.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.001)
                await asyncio.sleep(0)
        self._threads.clear()
