# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Commands that anybody might send, drawn from what `query-qmp-schema` tells.

Names come from small sets, so that commands meet what others left behind.
"""

from __future__ import annotations

import random
from typing import Any

Json = Any
Member = dict[str, Json]

#: What is not to be drawn: the end, and whatever is too long to look at.
_LEFT_OUT = frozenset({"query-commands", "query-qmp-schema", "quit"})

#: Commands that change what others find, and how many times more often they come.
_WEIGHTS = {
    "blockdev-add": 12,
    "transaction": 6,
    **dict.fromkeys(("block-export-add",), 5),
    **dict.fromkeys(("block-dirty-bitmap-add", "blockdev-backup", "blockdev-mirror"), 4),
    **dict.fromkeys(("block-commit", "block-export-del", "block-stream", "blockdev-create"), 3),
    **dict.fromkeys(("blockdev-del", "blockdev-reopen", "blockdev-snapshot"), 3),
    **dict.fromkeys(("block-job-cancel", "block_resize", "job-cancel", "job-dismiss"), 2),
}

_DRIVERS = (
    *("blkdebug", "blklogwrites", "blkverify", "compress", "copy-before-write", "copy-on-read"),
    *("file", "luks", "nbd", "null-co", "preallocate", "qcow2", "quorum", "raw"),
    *("snapshot-access", "throttle"),
)
_NODES = tuple(f"n{number}" for number in range(8))
_JOBS = ("j0", "j1", "j2")
_BITMAPS = ("bm0", "bm1")

#: Values for members of a name, wherever they are.
_POOLS: dict[str, tuple[Json, ...]] = {
    **dict.fromkeys(
        (
            *("backing", "base-node", "bottom", "device", "file", "image", "image-node-name"),
            *("log", "node", "node-name", "overlay", "parent", "raw", "replaces"),
            *("snapshot-node-name", "test", "top-node"),
        ),
        _NODES,
    ),
    "bitmap": _BITMAPS,
    "child": ("backing", "children.0", "file"),
    "filter-node-name": ("filter0", "filter1"),
    "granularity": (0, 512, 4096, 65536),
    "id": (*_JOBS, "export0", "export1", "object0"),
    **dict.fromkeys(("cbw-timeout", "open-timeout", "reconnect-delay"), (0, 1)),
    "iter-time": (10, 20),
    "job-id": _JOBS,
    "key-secret": ("secret0",),
    "mountpoint": ("mount",),
    "name": (*_BITMAPS, "snapshot0"),
    "offset": (0, 512, 4096, 65536),
    "path": ("one.sock", "two.sock"),
    "qom-type": ("authz-simple", "iothread", "secret", "throttle-group"),
    "size": (0, 123, 512, 65536, 1 << 20, 1 << 21),
    "speed": (0, 1, 100000, 1 << 40),
    "throttle-group": ("group0", "object0"),
    "wait": (False,),
    "write-threshold": (0, 1, 65536),
}

_INTEGERS = (-1, 0, 1, 2, 512, 4096, 65536, 1 << 20, 1 << 33)
_NONSENSE: tuple[Json, ...] = (None, -1, "", [], {}, True, 1.5, "x" * 300, 1 << 63, 1 << 64)


class Author:
    """Draws commands."""

    def __init__(self, schema: list[Member], files: tuple[str, ...], seed: int) -> None:
        """Start with a seed.

        Args:
            schema: What `query-qmp-schema` returned.
            files: Names of images that commands may open, make and overwrite.
            seed: Of all choices.
        """
        self._entries = {entry["name"]: entry for entry in schema}
        self._random = random.Random(seed)
        self._files = files
        names = dict.fromkeys(("backing-file", "base", "filename", "snapshot-file", "top"), files)
        self._pools = {**_POOLS, **names, "target": _NODES + files}
        self._commands = [
            name
            for name, entry in self._entries.items()
            if entry["meta-type"] == "command" and name not in _LEFT_OUT
        ]
        self._weights = [_WEIGHTS.get(name, 1) for name in self._commands]

    def command(self) -> tuple[str, dict[str, Json]]:
        """Draw a command with its arguments."""
        (name,) = self._random.choices(self._commands, self._weights)
        return name, self._object(self._entries[self._entries[name]["arg-type"]], 0)

    def _object(self, entry: Member, depth: int) -> dict[str, Json]:
        drawn = {
            member["name"]: self._value(member["type"], member["name"], depth)
            for member in entry["members"]
            if "default" not in member or self._random.random() < (0.25 if depth else 0.4)
        }
        tag = entry.get("tag")
        if tag == "driver" and self._random.random() < 0.9:
            drawn[tag] = self._random.choice(_DRIVERS)
        for variant in entry.get("variants", ()):
            if tag is not None and variant["case"] == drawn.get(tag):
                drawn.update(self._object(self._entries[variant["type"]], depth))
        return drawn

    def _value(self, type_name: str, name: str, depth: int) -> Json:
        if self._random.random() < 0.01:
            return self._random.choice(_NONSENSE)
        entry = self._entries[type_name]
        kind = entry["meta-type"]
        if name in self._pools and kind in ("alternate", "builtin"):
            # Whoever mounts over a file must not use it for logs and the like: see
            # docs/compatibility.md, "FUSE".
            if self._random.random() < 0.9 or name == "mountpoint":
                return self._random.choice(self._pools[name])
        if kind == "builtin":
            return self._builtin(entry["json-type"])
        if kind == "enum":
            return self._random.choice(entry["values"])
        if kind == "array":
            count = self._random.choice((0, 1, 1, 2, 3))
            return [self._value(entry["element-type"], name, depth + 1) for _ in range(count)]
        if kind == "alternate":
            member = self._random.choice(entry["members"])
            return self._value(member["type"], name, depth + 1)
        return self._object(entry, depth + 1)

    def _builtin(self, kind: str) -> Json:
        if kind == "string":
            return self._random.choice(("0", "n0", "off", "x", self._files[0]))
        if kind == "int":
            return self._random.choice(_INTEGERS)
        if kind == "boolean":
            return self._random.random() < 0.5
        return {"null": None, "number": 1.0}.get(kind, "x")


__all__ = ["Author"]
