# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The bitmap directory ("Bitmap directory"): reading it, and marking bitmaps as not up to date.

Persistent bitmaps that this daemon does not keep up to date must say so before the first change of
the image, else a later reader trusts them: the in_use flag in their directory entries marks them as
inconsistent, and it is durable before the first write.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError
from qsd.formats.qcow2 import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qsd.block.node import Node
    from qsd.formats.qcow2.layout import Header

_ENTRY: Final = struct.Struct(">QIIBBHI")
FLAG_IN_USE: Final = 1
FLAG_AUTO: Final = 2
_FLAGS_AT: Final = 12
#: Bytes of a bitmap's name, and clusters of its table; the C daemon's limits.
_MAX_NAME: Final = 1023
_MAX_TABLE: Final = 0x8000000


class BitmapEntry:
    """One entry of the bitmap directory, field names as in the specification.

    Attributes:
        position: Byte offset of the entry in the directory.
    """

    __slots__ = (
        "bitmap_table_offset",
        "bitmap_table_size",
        "extra_data",
        "flags",
        "granularity_bits",
        "kind",
        "name",
        "position",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.bitmap_table_offset = 0
        self.bitmap_table_size = 0
        self.flags = 0
        self.kind = 1
        self.granularity_bits = 16
        self.extra_data = b""
        self.position = 0

    def info(self) -> dict[str, Any]:
        """Return the bitmap as Qcow2BitmapInfo."""
        flags = []
        if self.flags & FLAG_IN_USE:
            flags.append("in-use")
        if self.flags & FLAG_AUTO:
            flags.append("auto")
        return {"flags": flags, "name": self.name, "granularity": 1 << self.granularity_bits}


def parse_directory(data: bytes, count: int) -> list[BitmapEntry]:
    """Read all entries.

    Raises:
        QmpError: The directory is damaged.
    """
    entries: list[BitmapEntry] = []
    at = 0
    while at < len(data):
        if at + _ENTRY.size > len(data) or len(entries) == count:
            raise QmpError("Broken bitmap directory")
        offset, size, flags, kind, granularity, name_size, extra_size = _ENTRY.unpack_from(data, at)
        name_at = at + _ENTRY.size + extra_size
        end = name_at + name_size
        if (
            end > len(data)
            or not 0 < name_size <= _MAX_NAME
            or size > _MAX_TABLE
            or granularity > 31
            or kind != 1
        ):
            raise QmpError("Broken bitmap directory")
        entry = BitmapEntry(data[name_at:end].decode(errors="replace"))
        entry.bitmap_table_offset, entry.bitmap_table_size = offset, size
        entry.flags, entry.kind, entry.granularity_bits = flags, kind, granularity
        entry.extra_data = data[at + _ENTRY.size : name_at]
        entry.position = at
        entries.append(entry)
        at = end + -(end - at) % 8
    if len(entries) != count:
        raise QmpError("Broken bitmap directory")
    return entries


def pack_directory(entries: Iterable[BitmapEntry]) -> bytes:
    """Return the directory with the given entries, and note their positions."""
    data = bytearray()
    for entry in entries:
        entry.position = len(data)
        name = entry.name.encode(errors="replace")
        data += _ENTRY.pack(
            entry.bitmap_table_offset,
            entry.bitmap_table_size,
            entry.flags,
            entry.kind,
            entry.granularity_bits,
            len(name),
            len(entry.extra_data),
        )
        data += entry.extra_data + name
        data += bytes(-len(data) % 8)
    return bytes(data)


def active_extension(header: Header) -> layout.BitmapsExtension | None:
    """Return the bitmaps extension if the image has a consistent one."""
    if not header.autoclear_features & layout.AUTOCLEAR_BITMAPS:
        return None
    body = header.extension(layout.EXT_BITMAPS)
    return None if body is None else layout.BitmapsExtension.parse(body)


async def read_bitmaps(file: Node, header: Header) -> list[BitmapEntry]:
    """Read the bitmap directory of an image, empty if it has none.

    Raises:
        QmpError: It is damaged.
        OSError: It could not be read.
    """
    extension = active_extension(header)
    if extension is None:
        return []
    data = bytearray(extension.directory_size)
    await file.read_or_zero(extension.directory_offset, memoryview(data))
    return parse_directory(bytes(data), extension.bitmap_count)


async def mark_in_use(file: Node, header: Header, entries: list[BitmapEntry]) -> None:
    """Mark all bitmaps as not up to date and make that durable."""
    extension = active_extension(header)
    if extension is None:
        return
    changed = False
    for entry in entries:
        if not entry.flags & FLAG_IN_USE:
            flags = entry.flags | FLAG_IN_USE
            at = extension.directory_offset + entry.position + _FLAGS_AT
            await file.write(at, memoryview(layout.U32.pack(flags)))
            entry.flags = flags
            changed = True
    if changed:
        await file.flush()
