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
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from queue import SimpleQueue

    from qsd.aio.linux_aio import LinuxAio
    from qsd.aio.uring import Ring

P = ParamSpec("P")
T = TypeVar("T")

#: Threads at most; count; the C daemon's thread pool has the same bound.
MAX_THREADS = 64


class _Job:
    """A call on its way.

    Attributes:
        future: What the caller waits for; another one once the first was cancelled.
        finished: Whether the call has ended and its caller was told.
    """

    __slots__ = ("args", "error", "finished", "func", "future", "result")

    def __init__(
        self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self.future = future
        self.func = func
        self.args = args
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False


class WorkerPool:
    """A bounded pool of threads that belongs to one event loop."""

    _jobs: SimpleQueue[_Job | None]  # made with the first job

    def __init__(self, max_threads: int = MAX_THREADS, *, use_ring: bool = True) -> None:
        """Make a pool.

        Args:
            max_threads: Threads at most.
            use_ring: Whether to give out an io_uring or Linux AIO, where there is one.
        """
        self._max_threads = max_threads
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._finished: deque[_Job] = deque()
        self._wakeup_pending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._ring: Ring | None = None
        self._can_ring = use_ring
        self._linux_aio: LinuxAio | None = None
        self._can_linux_aio = use_ring

    async def run(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `func` in a worker thread and return what it returns or raises.

        A cancelled caller does not stop the call: buffers it was given must stay valid until it
        ends.  Therefore the call is always waited for; cancellation takes effect afterwards.
        """
        job = self._submit(partial(func, **kwargs) if kwargs else func, args)
        try:
            result: T = await job.future
        except asyncio.CancelledError:
            await _until_finished(job)
            raise
        return result

    def submit(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue a call; the future is done when the thread has finished it.

        Cancelling the future does not stop the call, and nobody learns of its end any more.
        """
        return self._submit(partial(func, **kwargs) if kwargs else func, args).future

    def _submit(self, func: Callable[..., Any], args: tuple[Any, ...]) -> _Job:
        if self._closed:
            raise RuntimeError("worker pool is closed")
        loop = self._loop
        if loop is None:
            loop = asyncio.get_running_loop()
            self._begin(loop)
        job = _Job(loop.create_future(), func, args)
        self._jobs.put(job)
        self._busy += 1
        if self._busy > len(self._threads) and len(self._threads) < self._max_threads:
            thread = threading.Thread(
                target=self._work, name=f"qsd-worker-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return job

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for the first job."""
        from queue import SimpleQueue

        self._loop = loop
        self._jobs = SimpleQueue()

    def _begin_thread(self) -> None:
        """Prepare a thread; called in it."""

    def _wake_loop(self) -> None:
        """Let the loop call :meth:`_deliver`; called in a thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver)

    def _work(self) -> None:
        self._begin_thread()
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            try:
                job.result = job.func(*job.args)
            except BaseException as exc:
                job.error = exc
            self._finished.append(job)
            del job  # an idle thread must not keep buffers alive
            # Appending before looking at the flag, and clearing the flag before popping (below),
            # makes a lost wakeup impossible under the interpreter lock.
            if not self._wakeup_pending:
                self._wakeup_pending = True
                self._wake_loop()

    def _deliver(self) -> None:
        self._wakeup_pending = False
        finished = self._finished
        while finished:
            job = finished.popleft()
            self._busy -= 1
            job.finished = True
            future = job.future
            if future.done():
                continue
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job.result)

    def ring(self) -> Ring | None:
        """Return the io_uring of this pool's loop, or None where the kernel gives none."""
        if self._ring is None and self._can_ring and not self._closed:
            from qsd.aio.uring import Ring

            try:
                self._ring = Ring(asyncio.get_running_loop())
            except OSError:
                self._can_ring = False  # e.g. an old kernel, or a container that forbids it
        return self._ring

    def linux_aio(self) -> LinuxAio | None:
        """Return the Linux AIO context of this pool's loop, or None where the kernel gives none."""
        if self._linux_aio is None and self._can_linux_aio and not self._closed:
            from qsd.aio.linux_aio import LinuxAio

            try:
                self._linux_aio = LinuxAio(asyncio.get_running_loop())
            except OSError:
                self._can_linux_aio = False  # e.g. too many of them: fs.aio-max-nr
        return self._linux_aio

    async def close(self) -> None:
        """Finish what is queued, end all threads and wait for them.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        for queue in (self._ring, self._linux_aio):
            if queue is not None:
                await queue.close()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.001)
                await asyncio.sleep(0)
        self._threads.clear()


async def _until_finished(job: _Job) -> None:
    """Wait for the end of a call whose caller was cancelled, however often."""
    while not job.finished:
        job.future = job.future.get_loop().create_future()
        try:
            await job.future
        except asyncio.CancelledError:
            continue
        except BaseException:
            return  # the call's own failure: its caller is going away
