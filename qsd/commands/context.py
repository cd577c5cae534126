# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What the commands may use of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.aio.workers import WorkerPool
    from qsd.block.create import Creator
    from qsd.block.graph import Graph
    from qsd.chardev.registry import ChardevRegistry
    from qsd.jobs.job import JobRegistry
    from qsd.objects.tree import ObjectTree
    from qsd.qapi.events import EventSink


class Context:
    """The registries of one daemon, for the handlers of commands.

    Attributes:
        graph: The block graph.
        jobs: The background jobs.
        exports: The block exports and the NBD server.
        objects: The objects of ``object-add``.
        chardevs: The character devices.
        events: Where events go.
        workers: Threads for calls that block.
        tasks: Owner of tasks that outlive a command.
        find_creator: Returns what makes images of a driver, None if it cannot make any.
        shutdown: Asks the daemon to end; returns at once.
    """

    __slots__ = (
        "chardevs", "events", "exports", "find_creator", "graph", "jobs", "objects", "shutdown",
        "tasks", "workers",
    )  # fmt: skip

    def __init__(
        self,
        *,
        graph: Graph,
        jobs: JobRegistry,
        exports: Any,
        objects: ObjectTree,
        chardevs: ChardevRegistry,
        events: EventSink,
        workers: WorkerPool,
        tasks: TaskOwner,
        find_creator: Callable[[str], Creator | None],
        shutdown: Callable[[], None],
    ) -> None:
        self.graph = graph
        self.jobs = jobs
        self.exports = exports
        self.objects = objects
        self.chardevs = chardevs
        self.events = events
        self.workers = workers
        self.tasks = tasks
        self.find_creator = find_creator
        self.shutdown = shutdown
