# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What jobs on block nodes have in common: speed, error policy, the nodes they keep busy, events.

A block job uses nodes through backends of its own (:meth:`BlockJob.use_node`).  They show up in the
graph under the job's name, pause the job while their node is drained, and make the node *busy*: as
long as the job exists, commands that would pull the node from under it are refused
(:func:`check_not_busy`).
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Final

from qsd.block.backend import Backend, BackendListener
from qsd.errors import DEVICE_NOT_ACTIVE, QmpError, describe
from qsd.jobs.job import Job
from qsd.qapi.schema.block_job import (
    BlockJobCancelled,
    BlockJobCompleted,
    BlockJobError,
    BlockJobInfo,
    BlockJobPending,
    BlockJobReady,
)

if TYPE_CHECKING:
    from typing import Any

    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.jobs.job import JobRegistry
    from qsd.jobs.txn import JobTransaction
    from qsd.qapi.schema.block_events import BlockErrorAction
    from qsd.qapi.schema.block_info import BlockDeviceIoStatus
    from qsd.qapi.schema.block_job import BlockdevOnError

#: Errors of the target that mean "no room" for the policy "enospc".
_NO_SPACE: Final = frozenset({errno.ENOSPC})


class _PausesJob(BackendListener):
    """Pauses a job while one of its nodes is drained."""

    __slots__ = ("_job",)

    def __init__(self, job: BlockJob) -> None:
        self._job = job

    def drained_begin(self) -> None:
        self._job.pause()

    def drained_end(self) -> None:
        self._job.resume()


class BlockJob(Job):
    """A job that works on nodes.

    Attributes:
        graph: The graph of the nodes.
        speed: Bytes per second at most; 0 is no limit.
        io_status: Whether an error stopped the job, and which kind.
        backends: The uses of nodes by this job, in the order in which they were added.
    """

    __slots__ = ("backends", "graph", "io_status", "speed")

    def __init__(
        self,
        registry: JobRegistry,
        graph: Graph,
        job_id: str | None,
        *,
        speed: int = 0,
        txn: JobTransaction | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        self.graph = graph
        self.speed = 0
        self.io_status: BlockDeviceIoStatus = "ok"
        self.backends: list[Backend] = []
        super().__init__(
            registry, job_id, txn=txn, auto_finalize=auto_finalize, auto_dismiss=auto_dismiss
        )
        if speed:
            try:
                self.set_speed(speed)
            except QmpError:
                self.discard()
                raise

    async def begin(self) -> None:
        """Start the work; its first step comes before any further command."""
        self.start()
        await asyncio.sleep(0)

    # Nodes

    def use_node(self, node: Node, name: str, perm: int, shared: int) -> Backend:
        """Attach the job to a node and keep that busy until the job ends.

        Args:
            node: The node.
            name: What the job uses it as, e.g. "main node" or "target".
            perm: Permissions to take.
            shared: Permissions to share.

        Raises:
            QmpError: Permission conflict.
        """
        description = f"{self.TYPE} job '{self.id}'"
        backend = Backend(self.graph, self.id or "", description, _PausesJob(self))
        backend.attach(node, perm, shared, name)
        self.backends.append(backend)
        return backend

    def keeps_busy(self, node: Node) -> str | None:
        """Say how the job uses a node, None if it does not."""
        for backend in self.backends:
            if backend.edge is not None and backend.edge.node is node:
                return f"block device is in use by block job: {self.TYPE}"
        return None

    def cancel_in_flight(self) -> None:
        """Give up what waits for the target: what is written there is of no use any more."""
        for backend in self.backends:
            if backend.edge is not None and backend.edge.name == "target":
                backend.node.driver.cancel_in_flight()

    async def release_nodes(self) -> None:
        """Detach the job from all its nodes."""
        while self.backends:
            await self.backends.pop().detach()

    async def clean(self) -> None:
        """Let go of all nodes."""
        await self.release_nodes()

    # Speed and errors

    def set_speed(self, speed: int) -> None:
        """Change the speed limit.

        Raises:
            QmpError: It is negative.
        """
        if speed < 0:
            raise QmpError("Parameter 'speed' expects a non-negative value")
        self.speed = speed
        self.wake()

    def user_set_speed(self, speed: int) -> None:
        """Change the speed limit on behalf of the user.

        Raises:
            QmpError: The job is past that, or the value is negative.
        """
        self.check_verb("set-speed")
        self.set_speed(speed)

    def user_resumed(self) -> None:
        """Forget the error that had stopped the job."""
        self.io_status = "ok"

    def handle_error(
        self, policy: BlockdevOnError, is_read: bool, exc: OSError
    ) -> BlockErrorAction:
        """Decide by the user's policy what an I/O error means, and announce it.

        With "stop" the job is paused as if by the user.

        Args:
            policy: What the user asked for.
            is_read: Whether reading failed, as opposed to writing.
            exc: The error.

        Returns:
            "report": the work should fail; "ignore": it should go on; "stop": it should try again
            after its next pause point.
        """
        no_space = exc.errno in _NO_SPACE
        action: BlockErrorAction
        if policy == "ignore":
            action = "ignore"
        elif policy == "stop" or (policy in ("enospc", "auto") and no_space):
            action = "stop"
        else:
            action = "report"
        if self.id is not None:
            self.registry.events.emit(
                BlockJobError(
                    device=self.id, operation="read" if is_read else "write", action=action
                )
            )
        if action == "stop":
            if not self.user_paused:
                self.user_paused = True
                self.pause()
            if self.io_status == "ok":
                self.io_status = "nospace" if no_space else "failed"
        return action

    # Events

    def becomes_ready(self) -> None:
        """Go to "ready" and announce it."""
        super().becomes_ready()
        if self.id is not None:
            self.registry.events.emit(BlockJobReady(**self._figures(self.id)))

    def announce_pending(self) -> None:
        """Announce that the job waits for being finalized."""
        if self.id is not None:
            self.registry.events.emit(BlockJobPending(type=self.TYPE, id=self.id))

    def announce_end(self) -> None:
        """Announce the result."""
        if self.id is None:
            return
        figures = self._figures(self.id)
        if self.error is not None and self.cancelled:
            self.registry.events.emit(BlockJobCancelled(**figures))
        else:
            error = describe(self.error) if self.error is not None else None
            self.registry.events.emit(BlockJobCompleted(**figures, error=error))

    def _figures(self, job_id: str) -> dict[str, Any]:
        return {
            "type": self.TYPE,
            "device": job_id,
            "len": self.progress_total,
            "offset": self.progress_current,
            "speed": self.speed,
        }

    def block_info(self) -> BlockJobInfo:
        """Describe the job as query-block-jobs does."""
        assert self.id is not None
        return BlockJobInfo(
            **self._figures(self.id),
            busy=self.busy,
            paused=self.pause_count > 0,
            io_status=self.io_status,
            ready=self.is_ready,
            status=self.status,
            auto_finalize=self.auto_finalize,
            auto_dismiss=self.auto_dismiss,
            error=describe(self.error) if self.error is not None else None,
        )


def get_block_job(registry: JobRegistry, job_id: str) -> BlockJob:
    """Return the block job with this identifier.

    Raises:
        QmpError: DeviceNotActive if there is none.
    """
    job = registry.find(job_id)
    if not isinstance(job, BlockJob):
        raise QmpError(f"Block job '{job_id}' not found", DEVICE_NOT_ACTIVE)
    return job


def reason_busy(registry: JobRegistry, node: Node) -> str | None:
    """Say which block job keeps `node` busy and how, None if none does."""
    for job in registry:
        if isinstance(job, BlockJob):
            reason = job.keeps_busy(node)
            if reason is not None:
                return reason
    return None


def check_not_busy(registry: JobRegistry, node: Node) -> None:
    """Refuse to touch a node that a block job keeps busy.

    Raises:
        QmpError: One does.
    """
    reason = reason_busy(registry, node)
    if reason is not None:
        raise QmpError(f"Node '{node.name}' is busy: {reason}")
