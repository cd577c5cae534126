# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Graphs with real drivers and secrets, for encrypted formats."""

from __future__ import annotations

from typing import Any, Self

from qsd.catalog import find_creator, find_driver
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_create import BlockdevAmendOptions, BlockdevCreateOptions
from qsd.qapi.schema.qom import ObjectOptions
from tests.support.memory import Rig


class SecretRig(Rig):
    """A rig with all drivers of the catalog, and secrets ``s`` ("one"), ``t`` ("two")."""

    def __init__(self) -> None:
        super().__init__()
        in_memory = self.graph.find_driver
        self.graph.find_driver = lambda name: (
            in_memory(name) if name == "null-co" else find_driver(name)
        )
        self.objects = ObjectTree(workers=self.pool)
        self.graph.objects = self.objects

    async def __aenter__(self) -> Self:
        await self.add_secret("s", data="one")
        await self.add_secret("t", data="two")
        await self.add_secret("raw", data="//8=", format="base64")
        return self

    async def add_secret(self, name: str, **more: Any) -> None:
        options: Any = from_json(ObjectOptions, {"qom-type": "secret", "id": name, **more})
        await self.objects.add(options)

    async def create(self, driver: str, **options: Any) -> None:
        """Do a blockdev-create with plain values."""
        creator = find_creator(driver)
        assert creator is not None
        tree = {key.replace("_", "-"): value for key, value in options.items()}
        typed: Any = from_json(BlockdevCreateOptions, {"driver": driver, **tree})
        await creator(self.graph, typed.branch)

    async def amend(self, name: str, *, force: bool = False, **options: Any) -> None:
        """Do an x-blockdev-amend with plain values."""
        node = self.graph.nodes[name]
        tree = {key.replace("_", "-"): value for key, value in options.items()}
        typed: Any = from_json(BlockdevAmendOptions, {"driver": node.driver.name, **tree})
        node.driver.begin_amend()
        try:
            await node.amend(typed.branch, force=force)
        finally:
            node.driver.end_amend()

    async def remove(self, name: str) -> None:
        """Do a blockdev-del."""
        await self.graph.release(self.graph.nodes[name])
