# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The virtio block device: records and constants.

Source: virtio 1.2, 5.2 "Block Device".  All numbers are little-endian; sectors have 512 bytes.
"""

from __future__ import annotations

import struct
from typing import Final

# Feature bits.
F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9
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
SEGMENT = struct.Struct("<QII")  #: sector, sectors, flags (DISCARD and WRITE_ZEROES)

#: Descriptors of payload in one request: ring size of 128 less header and status.
_SEG_MAX: Final = 126
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


def pack_config(length: int, block_size: int, num_queues: int, *, writeback: bool) -> bytes:
    """Return the configuration space of a disk of `length` bytes."""
    return _CONFIG.pack(
        length // SECTOR,
        0,
        _SEG_MAX,
        *(0, 0, 0),
        block_size,
        *(0, 0, 1, 1),
        writeback,
        0,
        num_queues,
        *(MAX_DISCARD_SECTORS, 1, block_size // SECTOR),
        *(MAX_DISCARD_SECTORS, 1, 1),
    )
