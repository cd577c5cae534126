# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The snapshot table ("Snapshots"): reading it, and describing it for queries."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError
from qsd.formats.qcow2 import layout

if TYPE_CHECKING:
    from qsd.block.node import Node
    from qsd.formats.qcow2.layout import Header

_FIXED: Final = struct.Struct(">QIHHIIQII")
#: Bytes of the snapshot table, and of one entry's extra data; the C daemon's limits.
_MAX_TABLE: Final = 1024 * layout.MAX_SNAPSHOTS
_MAX_EXTRA: Final = 1024


class Snapshot:
    """One entry of the snapshot table, field names as in the specification.

    Attributes:
        disk_size: Virtual size when the snapshot was taken, None where not recorded.
        icount: Instruction counter, None where not recorded.
        length: Bytes that the entry takes in the table.
        unknown_extra: Extra data behind the known fields, kept.
    """

    __slots__ = (
        "date_nsec",
        "date_sec",
        "disk_size",
        "icount",
        "id_str",
        "l1_size",
        "l1_table_offset",
        "length",
        "name",
        "unknown_extra",
        "vm_clock_nsec",
        "vm_state_size",
    )

    def __init__(self, id_str: str, name: str) -> None:
        self.id_str = id_str
        self.name = name
        self.l1_table_offset = 0
        self.l1_size = 0
        self.date_sec = 0
        self.date_nsec = 0
        self.vm_clock_nsec = 0
        self.vm_state_size = 0
        self.disk_size: int | None = None
        self.icount: int | None = None
        self.unknown_extra = b""
        self.length = 0

    @classmethod
    def parse(cls, data: bytes, offset: int) -> tuple[Snapshot, int] | None:
        """Read the entry at `offset`; return it and where the next one starts.

        None if `data` ends inside the entry.

        Raises:
            QmpError: The entry is longer than any real one.
        """
        if offset + _FIXED.size > len(data):
            return None
        fields = _FIXED.unpack_from(data, offset)
        id_size, name_size, extra_size = fields[2], fields[3], fields[8]
        if extra_size > _MAX_EXTRA:
            raise QmpError("Too much extra metadata in snapshot table entry 0")
        at = offset + _FIXED.size
        end = at + extra_size + id_size + name_size
        if end > len(data):
            return None
        extra = data[at : at + extra_size]
        at += extra_size
        id_str = data[at : at + id_size].decode(errors="replace")
        name = data[at + id_size : end].decode(errors="replace")
        snapshot = cls(id_str, name)
        snapshot.l1_table_offset, snapshot.l1_size = fields[0], fields[1]
        snapshot.date_sec, snapshot.date_nsec = fields[4], fields[5]
        snapshot.vm_clock_nsec, snapshot.vm_state_size = fields[6], fields[7]
        if extra_size >= 8:
            snapshot.vm_state_size = layout.U64.unpack_from(extra)[0]
        if extra_size >= 16:
            snapshot.disk_size = layout.U64.unpack_from(extra, 8)[0]
        if extra_size >= 24:
            icount = layout.U64.unpack_from(extra, 16)[0]
            snapshot.icount = None if icount == (1 << 64) - 1 else icount
        snapshot.unknown_extra = extra[24:]
        snapshot.length = end - offset + -(end - offset) % 8
        return snapshot, offset + snapshot.length

    def info(self) -> dict[str, Any]:
        """Return the snapshot as query-named-block-nodes shows it (SnapshotInfo)."""
        seconds, nanoseconds = divmod(self.vm_clock_nsec, 1_000_000_000)
        result: dict[str, Any] = {}
        if self.icount is not None:
            result["icount"] = self.icount
        result.update(
            {
                "vm-clock-nsec": nanoseconds,
                "name": self.name,
                "date-sec": self.date_sec,
                "date-nsec": self.date_nsec,
                "vm-clock-sec": seconds,
                "id": self.id_str,
                "vm-state-size": self.vm_state_size,
            }
        )
        return result


async def read_snapshots(file: Node, header: Header) -> list[Snapshot]:
    """Read the snapshot table.

    Raises:
        QmpError: It is malformed.
        OSError: It could not be read.
    """
    found: list[Snapshot] = []
    # The table's length is nowhere recorded: read on while entries are incomplete.
    length = min(header.nb_snapshots * 256, _MAX_TABLE)
    while header.nb_snapshots:
        data = bytearray(length)
        await file.read_or_zero(header.snapshots_offset, memoryview(data))
        found, complete = _parse_all(bytes(data), header.nb_snapshots)
        if complete:
            break
        if length >= _MAX_TABLE:
            raise QmpError("Snapshot table is too big")
        length = min(length * 4, _MAX_TABLE)
    return found


def _parse_all(data: bytes, count: int) -> tuple[list[Snapshot], bool]:
    found: list[Snapshot] = []
    at = 0
    for _ in range(count):
        entry = Snapshot.parse(data, at)
        if entry is None:
            return found, False
        found.append(entry[0])
        at = entry[1]
    return found, True
