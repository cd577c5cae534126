# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Commands run as a monitor would run them, without one."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Self

from qsd.commands import HANDLERS
from qsd.commands.context import Context
from qsd.jobs.job import JobRegistry
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import from_json, to_json
from qsd.qapi.schema import find_command
from tests.support.memory import Rig
from tests.support.named import named_rig


class Daemon:
    """A graph, jobs and objects; ``async with Daemon() as daemon``.

    Attributes:
        creators: What makes images, by driver.
    """

    def __init__(self, rig: Rig | None = None) -> None:
        self.rig = rig or named_rig()
        self.creators: dict[str, Any] = {}
        nothing: Any = None
        self.context = Context(
            graph=self.rig.graph,
            jobs=JobRegistry(self.rig.events, self.rig.tasks),
            exports=nothing,
            objects=ObjectTree(events=self.rig.events, workers=self.rig.pool),
            chardevs=nothing,
            events=self.rig.events,
            workers=self.rig.pool,
            tasks=self.rig.tasks,
            find_creator=self.creators.get,
            shutdown=lambda: None,
        )

    async def __aenter__(self) -> Self:
        await self.rig.__aenter__()
        return self

    async def __aexit__(self, exc_type: object, *more: object) -> None:
        await self.context.jobs.close()
        for node in reversed(list(self.rig.graph.nodes.values())):
            if node.monitor_owned:
                await self.rig.graph.release(node)
        await self.rig.__aexit__(exc_type, *more)

    async def qmp(self, name: str, /, **arguments: Any) -> Any:
        """Run a command with JSON arguments (``_`` for ``-`` in their names)."""
        declared = find_command(name)
        assert declared is not None
        module, _, function = HANDLERS[name].partition(":")
        handler = getattr(import_module(f"qsd.commands.{module}"), function)
        tree = {key.replace("_", "-"): value for key, value in arguments.items()}
        return to_json(await handler(self.context, from_json(declared.arguments, tree)))
