# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The job behind x-blockdev-amend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qsd.jobs.job import Job

if TYPE_CHECKING:
    from qsd.block.node import Node
    from qsd.jobs.job import JobRegistry
    from qsd.qapi.schema.job import JobType


class AmendJob(Job):
    """Changes the options of one image.

    Like a job that makes an image, it has one unit of work, which counts as done even if it
    failed, and stays until it is dismissed.
    """

    TYPE: ClassVar[JobType] = "amend"

    __slots__ = ("_force", "_node", "_options")

    def __init__(
        self, registry: JobRegistry, node: Node, job_id: str, options: Any, *, force: bool
    ) -> None:
        """Make a job.

        Args:
            registry: The jobs.
            node: The image.
            job_id: The identifier.
            options: The driver's branch of BlockdevAmendOptions.
            force: Whether to do what may make the image's content unreachable.
        """
        self._node = node
        self._options = options
        self._force = force
        super().__init__(registry, job_id, auto_dismiss=False)

    async def run(self) -> None:
        """Change the options; `begin_amend` was called before."""
        self.set_remaining(1)
        try:
            await self._node.amend(self._options, force=self._force)
        finally:
            self.progress(1)

    async def clean(self) -> None:
        """Give back what was taken, even if the job was cancelled before it did anything."""
        self._node.driver.end_amend()
