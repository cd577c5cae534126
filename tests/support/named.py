# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Drivers that have names, records and figures to show, without any file behind them."""

from __future__ import annotations

from typing import Any

from qsd.block import perms
from qsd.block.driver import Driver
from qsd.block.node import Node
from tests.support.memory import MemoryDriver, PassFilter, Rig
from tests.support.toyformat import ToyFormat


class Null(MemoryDriver):
    """Serves as "null-co" and says how big it is on disk: nothing."""

    def filename(self) -> str | None:
        return "null-co://"

    def image_info(self) -> dict[str, Any]:
        return {"actual-size": 0}


class Disk(MemoryDriver):
    """Serves as "file"; every file is 1 MiB and takes 4 KiB on disk."""

    name = "file"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.path = ""

    async def open(self, options: Any, opener: Any) -> None:
        self.path = options.filename
        self.data = bytearray(1 << 20)

    def filename(self) -> str | None:
        return self.path

    def image_info(self) -> dict[str, Any]:
        return {"actual-size": 4096, "dirty-flag": False}

    def driver_stats(self) -> dict[str, Any] | None:
        return {"driver": "file", "discard-nb-ok": 1, "discard-nb-failed": 0, "discard-bytes-ok": 2}


class Window(PassFilter):
    """Serves as "raw"."""

    name = "raw"
    family = "format"


class Throttle(PassFilter):
    """Serves as "throttle"."""

    name = "throttle"


class Recorded(ToyFormat):
    """Serves as "qcow2"; images called ``over-X`` record the backing file ``X``, format "raw"."""

    async def open(self, options: Any, opener: Any) -> None:
        self.limits.zero_alignment = self.granularity = 4096
        recorded = self.backing_file()
        if options.data_file is not None:
            await opener.child("data-file", options.data_file, perms.ROLE_DATA)
        await opener.backing(options.backing, *(recorded or (None, None)))

    def backing_file(self) -> tuple[str, str | None] | None:
        node = self.node.children["file"].node
        while "file" in node.children:
            node = node.children["file"].node
        leaf = (node.driver.filename() or "over-f").rpartition("/")[2]
        return (leaf.removeprefix("over-"), "raw") if leaf.startswith("over-") else None

    def image_info(self) -> dict[str, Any]:
        return {
            "cluster-size": 4096,
            "dirty-flag": False,
            "snapshots": [{"id": "1", "name": "s"}],
            "encrypted": "secret" in (self.node.children["file"].node.driver.filename() or ""),
            "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}},
        }


def named_rig(**drivers: type[Driver]) -> Rig:
    """Make a rig with the drivers of this module."""
    table: dict[str, type[Driver]] = {
        "null_co": Null, "file": Disk, "raw": Window, "throttle": Throttle, "qcow2": Recorded,
    }  # fmt: skip
    return Rig(**{**table, **drivers})


def disk(name: str) -> dict[str, Any]:
    """Return the options of a file."""
    return {"driver": "file", "filename": name}
