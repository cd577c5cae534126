# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Several actions that happen together or not at all (QMP reference, "Transactions").

Every action is prepared in turn.  If all could be, all are committed, in the same order; after the
first that could not, those before it are undone, the latest first.  In both cases each prepared
action gets to clean up at the end::

    prepare a, b, c   ->   commit a, b, c   ->   clean a, b, c
    prepare a, b, c!  ->   abort  b, a      ->   clean b, a

Commit and abort must not fail: whatever can go wrong belongs into prepare.  With the completion
mode "grouped" the jobs that actions start share one :class:`~qsd.jobs.txn.JobTransaction`.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from qsd.block.drain import Drained
from qsd.errors import QmpError
from qsd.jobs.block_job import BlockJob
from qsd.jobs.txn import JobTransaction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.commands.context import Context
    from qsd.qapi.schema.transaction import TransactionArguments


class Action:
    """One part of a transaction.

    Attributes:
        ctx: What commands may use.
        data: The action's own arguments.
        txn: Where its jobs belong, or None if they are on their own.
    """

    __slots__ = ("ctx", "data", "txn")

    def __init__(self, ctx: Context, data: Any, txn: JobTransaction | None) -> None:
        self.ctx = ctx
        self.data = data
        self.txn = txn

    async def prepare(self) -> None:
        """Do all that may fail; a failure must leave nothing behind.

        Raises:
            QmpError: The transaction is off.
        """

    async def commit(self) -> None:
        """Make it effective."""

    async def abort(self) -> None:
        """Undo what was prepared."""

    async def clean(self) -> None:
        """Release what the preparation took."""


class DrainedAction(Action):
    """An action that keeps nodes drained from its preparation to its end."""

    __slots__ = ("_sections",)

    def __init__(self, ctx: Context, data: Any, txn: JobTransaction | None) -> None:
        super().__init__(ctx, data, txn)
        self._sections: list[Drained] = []

    async def drain(self, node: Node) -> None:
        """Keep a node drained until `clean`."""
        section = Drained([node])
        await section.__aenter__()
        self._sections.append(section)

    async def prepare(self) -> None:
        """Prepare; end the drained sections if that fails."""
        try:
            await self.prepare_drained()
        except BaseException:
            await self.clean()
            raise

    async def prepare_drained(self) -> None:
        """Do all that may fail; calls `drain` when the node is known."""

    async def clean(self) -> None:
        """End the drained sections."""
        while self._sections:
            await self._sections.pop().__aexit__(None, None, None)


class Abort(Action):
    """Makes the transaction fail, for tests (QMP reference, "Abort")."""

    __slots__ = ()

    async def prepare(self) -> None:
        """Fail.

        Raises:
            QmpError: Always.
        """
        raise QmpError("Transaction aborted using Abort action")


ACTIONS: Final[Mapping[str, str]] = {
    "abort": "transaction:Abort",
    "block-dirty-bitmap-add": "bitmap:Add",
    "block-dirty-bitmap-clear": "bitmap:Clear",
    "block-dirty-bitmap-disable": "bitmap:Disable",
    "block-dirty-bitmap-enable": "bitmap:Enable",
    "block-dirty-bitmap-merge": "bitmap:Merge",
    "block-dirty-bitmap-remove": "bitmap:Remove",
    "blockdev-backup": "actions_backup:BlockdevBackup",
    "blockdev-snapshot": "actions_snapshot:ExternalSnapshot",
    "blockdev-snapshot-internal-sync": "actions_snapshot:InternalSnapshot",
    "blockdev-snapshot-sync": "actions_snapshot:SyncSnapshot",
    "drive-backup": "actions_backup:DriveBackup",
}
"""From an action's kind to "module:class" in this package; keep it sorted by kind."""

GROUPED: Final = frozenset({"abort", "blockdev-backup", "drive-backup"})
"""The kinds that may be part of a transaction with the completion mode "grouped"."""


def find_action(kind: str) -> type[Action]:
    """Return the class of an action."""
    module, _, name = ACTIONS[kind].partition(":")
    found: type[Action] = getattr(import_module(f"qsd.commands.{module}"), name)
    return found


async def run_alone(action: Action) -> None:
    """Carry out one action, for a command that does the same.

    Raises:
        QmpError: It failed.
    """
    await _stand_still(action.ctx)
    await action.prepare()
    await action.commit()
    await action.clean()


async def _stand_still(ctx: Context) -> None:
    """Let all jobs come to a pause point once, before anything is looked at.

    The C daemon does so, which can be seen in the events of jobs.
    """
    await asyncio.sleep(0)  # jobs that were just resumed get to where they can be paused
    jobs = [job for job in ctx.jobs if isinstance(job, BlockJob) and job.backends]
    jobs.reverse()
    for job in jobs:
        job.pause()
    if not _is_idle(ctx.graph):
        async with Drained(ctx.graph.nodes.values()):
            pass
    for job in jobs:
        job.resume()
    await asyncio.sleep(0)


def _is_idle(graph: Graph) -> bool:
    """Tell whether there is nothing that draining the whole graph would wait for.

    With 1200 nodes a drained section that waits for nothing takes 1.5 ms, and this takes 0.1.
    """
    return not (
        any(node.in_flight for node in graph.nodes.values())
        or any(user.in_flight or user.listener.drained_poll() for user in graph.backends)
    )


async def transaction(ctx: Context, args: TransactionArguments) -> None:
    """Carry out a transaction (QMP reference, "transaction")."""
    mode = args.properties.completion_mode if args.properties is not None else None
    txn = JobTransaction() if mode == "grouped" else None
    await _stand_still(ctx)
    done: list[Action] = []
    try:
        for item in args.actions:
            if txn is not None and item.type not in GROUPED:
                raise QmpError(
                    f"Action '{item.type}' does not support Transaction property "
                    "completion-mode = grouped"
                )
            action = find_action(item.type)(ctx, getattr(item.branch, "data", None), txn)
            await action.prepare()
            done.append(action)
    except BaseException:
        done.reverse()
        for action in done:
            await action.abort()
        for action in done:
            await action.clean()
        raise
    for action in done:
        await action.commit()
    for action in done:
        await action.clean()
