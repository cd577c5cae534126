# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The job behind blockdev-create."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qsd.jobs.job import Job

if TYPE_CHECKING:
    from qsd.block.create import Creator
    from qsd.block.graph import Graph
    from qsd.jobs.job import JobRegistry
    from qsd.qapi.schema.job import JobType


class CreateJob(Job):
    """Makes one image.

    It has one unit of work, which counts as done even if it failed.  The job stays until it is
    dismissed, so that the user can see how it ended.
    """

    TYPE: ClassVar[JobType] = "create"

    __slots__ = ("_creator", "_graph", "_options")

    def __init__(
        self, registry: JobRegistry, graph: Graph, job_id: str, creator: Creator, options: Any
    ) -> None:
        self._graph = graph
        self._creator = creator
        self._options = options
        super().__init__(registry, job_id, auto_dismiss=False)

    async def run(self) -> None:
        """Make the image."""
        self.set_remaining(1)
        try:
            await self._creator(self._graph, self._options)
        finally:
            self.progress(1)
