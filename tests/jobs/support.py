# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Jobs to experiment with, and a loop whose clock only moves when nothing else is to be done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from qsd.aio.tasks import TaskOwner
from qsd.jobs.job import Job, JobRegistry
from qsd.qapi.schema.job import JobStatusChange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from qsd.qapi.model import Event
    from qsd.qapi.schema.job import JobType

T = TypeVar("T")


class _JumpingSelector:
    """Wraps a selector: instead of waiting for a time-out, it moves the clock on."""

    def __init__(self, loop: VirtualLoop, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def select(self, timeout: float | None = None) -> Any:
        found = self._inner.select(0)
        if not found and timeout is None:
            raise RuntimeError("the test waits for something that will never happen")
        if not found and timeout:
            self._loop.now += timeout
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits for time to pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._selector = _JumpingSelector(self, self._selector)  # type: ignore[has-type]

    def time(self) -> float:
        return self.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in a loop with a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Recorder:
    """An event sink that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def take(self) -> list[str]:
        """Return what happened since the last call, as "id status" or the event's name."""
        lines = [
            f"{event.id} {event.status}" if isinstance(event, JobStatusChange) else event.NAME
            for event in self.events
        ]
        self.events.clear()
        return lines


class World:
    """A registry and what it needs."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.errors: list[tuple[str, BaseException]] = []
        self.tasks = TaskOwner("test", lambda name, exc: self.errors.append((name, exc)))
        self.registry = JobRegistry(self.recorder, self.tasks)

    def take(self) -> list[str]:
        return self.recorder.take()

    async def close(self) -> None:
        await self.registry.close()
        await self.tasks.join()
        assert not list(self.registry)


def in_world(story: Callable[[World], Awaitable[None]]) -> None:
    """Tell a story in a world with a virtual clock."""

    async def main() -> None:
        world = World()
        await story(world)
        await world.close()
        assert not world.errors

    run_virtual(main())


async def turns(count: int = 5) -> None:
    """Let the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


class ScriptedJob(Job):
    """A job whose work is a function and which remembers its hooks."""

    TYPE: ClassVar[JobType] = "create"

    def __init__(
        self,
        world: World,
        job_id: str | None,
        work: Callable[[ScriptedJob], Awaitable[None]],
        **options: Any,
    ) -> None:
        self.work = work
        self.hooks: list[str] = []
        self.prepare_error: Exception | None = None
        super().__init__(world.registry, job_id, **options)

    async def run(self) -> None:
        await self.work(self)

    async def prepare(self) -> None:
        self.hooks.append("prepare")
        if self.prepare_error is not None:
            raise self.prepare_error

    async def commit(self) -> None:
        self.hooks.append("commit")

    async def abort(self) -> None:
        self.hooks.append("abort")

    async def clean(self) -> None:
        self.hooks.append("clean")


async def succeed(job: Job) -> None:
    """Work that is done at once."""
    job.set_remaining(1)
    job.progress(1)


async def sleep_long(job: Job) -> None:
    """Work that mostly waits."""
    job.set_remaining(10)
    for _ in range(10):
        await job.sleep(1.0)
        job.progress(1)


async def get_ready(job: Job) -> None:
    """Work that waits to be completed."""
    job.becomes_ready()
    await job.sleep()
