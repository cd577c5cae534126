# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vocabulary between formats and the engine: mappings, allocations, block status.

A format driver does not move data.  It tells the engine where a guest range lives::

    guest:   |----DATA----|--ZERO--|---HOLE---|-COMPRESSED-|
                  |                      |          |
    host:     edge + offset          backing     format's own entry point

and the engine reads, zero-fills, asks the backing child, or calls the format for special ranges.
A mapping holds from the offset that was asked for over `length` bytes, and stays true as long as
the asker holds that range (see ``mapped.py``) or does not await.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.block.graph import Edge

#: Bytes; the longest image that the C daemon can address (2^63 less the coarsest alignment).
MAX_LENGTH = (1 << 63) - (1 << 30)

# Kinds of mappings.
DATA = 0  #: plain bytes in a child at a host offset
ZERO = 1  #: reads as zeroes, whatever the backing child holds
HOLE = 2  #: not allocated here: the backing child decides, zeroes where there is none
SPECIAL = 3  #: only the format can read it (compressed, encrypted)


class Mapping(NamedTuple):
    """Where a guest range lives.

    Attributes:
        kind: DATA, ZERO, HOLE or SPECIAL.
        length: Bytes for which the answer holds, from the offset asked for; > 0.
        edge: For DATA, the child that holds the bytes.
        host_offset: For DATA, where in that child; for a ZERO range with an allocated cluster
            behind it, that cluster's place, else -1.
        writable: Whether the range can be overwritten in place (allocated once, not shared with a
            snapshot, not compressed).
        special: For SPECIAL, the format's own descriptor.
    """

    kind: int
    length: int
    edge: Edge | None = None
    host_offset: int = -1
    writable: bool = False
    special: Any = None


class Allocation(NamedTuple):
    """Space that a format reserved for a guest range, not yet visible to readers.

    The guest range ``[offset, offset + length)`` goes to ``host_offset`` of ``edge``.  The engine
    must also store the old content of `head` bytes before and `tail` bytes behind it (copy on
    write), so that ``[host_offset - head, host_offset + length + tail)`` is complete when the
    format makes the allocation visible.

    Attributes:
        zeroed: The host range reads as zeroes now, so parts that are zero need no write.
        token: The format's own data.
    """

    offset: int
    length: int
    edge: Edge
    host_offset: int
    head: int
    tail: int
    zeroed: bool
    token: Any


class Patch(NamedTuple):
    """A piece of a range whose bytes are in a file.

    Attributes:
        offset: Where it belongs.
        length: Bytes.
        descriptor: The file.
        host_offset: Where in the file.
    """

    offset: int
    length: int
    descriptor: int
    host_offset: int


# Request flags.
FUA = 1  #: durable when the request completes
MAY_UNMAP = 2  #: a zero request may deallocate
NO_FALLBACK = 4  #: a zero request must fail rather than write zeroes (fast zero)
COMPRESSED = 8  #: store compressed
UNCHANGED = 16  #: the write does not change what a guest would read (copy-on-read and the like)

ZERO_NEW = 32  #: for truncate: what is added must read as zeroes, whatever a backing file holds

# Block status flags (what `qemu-img map` and NBD block status are made of).
ST_DATA = 1  #: there is something to read
ST_ZERO = 2  #: reads as zeroes
ST_OFFSET = 4  #: host_offset is meaningful
ST_ALLOCATED = 8  #: this layer decides the content, not its backing child
ST_RECURSE = 16  #: the protocol layer below may know of further zeroes
ST_COMPRESSED = 32  #: the range is stored compressed


class Status(NamedTuple):
    """Block status of a range of one layer.

    Attributes:
        length: Bytes for which the answer holds; > 0 and never past what was asked for.
        flags: ST_* flags.
        host_offset: Offset in `edge`'s node, or in the file itself for protocol drivers.
        edge: The child that holds the data, None where the node itself does.
    """

    length: int
    flags: int
    host_offset: int = 0
    edge: Edge | None = None
