# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The virtio block device: records and constants.

Source: virtio 1.2, 5.2 "Block Device".  All numbers are little-endian; sectors have 512 bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from qsd.errors import PeerError
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.wire.virtio.ring import Chain

# Feature bits.
F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH = 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 9
F_TOPOLOGY, F_CONFIG_WCE, F_MQ = 1 << 10, 1 << 11, 1 << 12
F_DISCARD, F_WRITE_ZEROES = 1 << 13, 1 << 14

# Kinds of requests.
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13

# Status.
OK, IOERR, UNSUPP = 0, 1, 2

#: WRITE_ZEROES: the space may be given back.
FLAG_UNMAP: Final = 1

SECTOR: Final = 512
#: Bytes of the answer to GET_ID.
ID_LENGTH: Final = 20

HEADER = struct.Struct("<IIQ")  #: type, reserved, sector
TYPE_AND_SECTOR = struct.Struct("<I4xQ")  #: what counts of the header
SEGMENT = struct.Struct("<QII")  #: sector, sectors, flags (DISCARD and WRITE_ZEROES)

#: Descriptors of payload in one request: a ring of 128 less header and status.
SEG_MAX: Final = 126
#: Bytes in one descriptor.  Any number would do, but 0, which the C daemon says, makes Linux fall
#: back to single pages, and firmware multiplies it with `seg_max` in 32 bits.
_SIZE_MAX: Final = 4 << 20
#: Sectors; longest DISCARD and WRITE_ZEROES.
MAX_DISCARD_SECTORS: Final = 32768

#: capacity, size_max, seg_max, geometry (cylinders, heads, sectors), blk_size, topology
#: (physical_block_exp, alignment_offset, min_io_size, opt_io_size), writeback, unused, num_queues,
#: discard (max sectors, max segments, alignment in sectors), zeroes (max sectors, max segments,
#: may unmap), unused
_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
CONFIG_SIZE: Final = _CONFIG.size
#: Where in the configuration `writeback` lies: the only byte a driver may write.
WRITEBACK_OFFSET: Final = 32


def pack_config(
    length: int, block_size: int, num_queues: int, seg_max: int, *, writeback: bool
) -> bytes:
    """Return the configuration space of a disk of `length` bytes."""
    return _CONFIG.pack(
        length // SECTOR,
        _SIZE_MAX,
        seg_max,
        *(0, 0, 0),
        block_size,
        *(0, 0, 1, 1),
        writeback,
        0,
        num_queues,
        *(MAX_DISCARD_SECTORS, 1, block_size // SECTOR),
        *(MAX_DISCARD_SECTORS, 1, 1),
    )


class Request(NamedTuple):
    """A request out of a chain (virtio 1.2, 5.2.6 "Device Operation").

    Attributes:
        head: Where its chain begins.
        kind: One of the numbers above, or another.
        sector: Where it begins.
        readable: Payload that the device reads.
        writable: Payload that the device writes.
        status: The byte that takes the status.
    """

    head: int
    kind: int
    sector: int
    readable: list[memoryview]
    writable: list[memoryview]
    status: memoryview


def request(chain: Chain) -> Request:
    """Return the request that a chain is; its lists become the request's.

    Raises:
        PeerError: It is no request at all.
    """
    readable, writable, head = chain
    if not writable or not readable:
        raise PeerError("a chain that is no request")
    first = readable[0]
    if len(first) < HEADER.size:
        readable = _regroup(readable)
        first = readable[0]
    kind, sector = TYPE_AND_SECTOR.unpack_from(first)
    if len(first) == HEADER.size:
        del readable[0]
    else:
        readable[0] = first[HEADER.size :]
    status = writable[-1]
    if len(status) == 1:
        writable.pop()
    else:
        writable[-1], status = status[:-1], status[-1:]
    return Request(head, kind, sector, readable, writable, status)


def _regroup(readable: list[memoryview]) -> list[memoryview]:
    """Return the same bytes with a whole header in the first view.

    Raises:
        PeerError: There are too few for a header.
    """
    head = b""
    rest = list(readable)
    while rest and len(head) < HEADER.size:
        view = rest[0]
        need = HEADER.size - len(head)
        head += view[:need]
        if len(view) > need:
            rest[0] = view[need:]
        else:
            del rest[0]
    if len(head) < HEADER.size:
        raise PeerError("a request without a whole header")
    return [memoryview(head), *rest]
