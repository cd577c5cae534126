# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Filters over memory, and a format to be filtered."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.block.mapping import COMPRESSED
from qsd.block.node import Node
from qsd.catalog import DRIVERS, find_driver
from qsd.errors import QmpError
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import from_json
from qsd.qapi.schema.qom import ObjectOptions
from tests.support.memory import MemoryDriver, Rig
from tests.support.toyformat import ToyFormat

LENGTH = 1 << 20


class Compressing(MemoryDriver):
    """Memory with clusters of 64 KiB that notes which writes were compressed; "null-aio"."""

    name = "null-aio"
    supports_compressed = True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        kind = "compressed" if flags & COMPRESSED else "plain"
        self.log.append((kind, offset, len(view)))
        self._put(offset, view)

    def image_info(self) -> dict[str, Any]:
        return {"cluster-size": 65536}


class Growing(MemoryDriver):
    """A file of 1 KiB that grows; "file"."""

    name = "file"
    grows = True

    async def open(self, options: Any, opener: Any) -> None:
        self.data = bytearray(b"\x01" * 1024)


def filter_rig() -> Rig:
    """A graph with all filters and "raw"; "null-co" is memory."""
    rig = Rig(null_aio=Compressing)
    table = {
        "null-co": MemoryDriver, "null-aio": Compressing, "qcow2": ToyFormat, "file": Growing
    }  # fmt: skip

    def find(name: str) -> Any:
        place = DRIVERS.get(name, "")
        ours = place.startswith("filters.") or name == "raw"
        return find_driver(name) if ours else table.get(name)

    rig.graph.find_driver = find
    rig.graph.objects = ObjectTree()
    return rig


async def group(rig: Rig, name: str = "tg", /, **limits: int) -> None:
    """Make a throttle group."""
    values = {key.replace("_", "-"): value for key, value in limits.items()}
    options = from_json(ObjectOptions, {"qom-type": "throttle-group", "id": name, "limits": values})
    await rig.graph.objects.add(options)


async def refuse(rig: Rig, text: str, **options: Any) -> None:
    """Check that a node cannot be added, and why."""
    with pytest.raises(QmpError) as info:
        await rig.add(**options)
    assert info.value.desc == text


async def read(node: Node, offset: int, length: int) -> bytes:
    """Read into a fresh buffer."""
    view = memoryview(bytearray(b"\xa5" * length))
    await node.read(offset, view)
    return bytes(view)


def data(fill: int, length: int) -> memoryview:
    """Return a buffer full of one byte."""
    return memoryview(bytes([fill]) * length)


def edges(node: Node) -> dict[str, tuple[int, int]]:
    """Return what a node takes and shares on its children."""
    return {name: (edge.perm, edge.shared) for name, edge in node.children.items()}


def driver_of(rig: Rig, name: str) -> Any:
    """Return the driver of a node, whatever it is."""
    return rig.graph.nodes[name].driver
