# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd import server
from qsd.wire.nbd.server import Session, refuse, refuse_header

MIB = 1 << 20
RW = Session(MIB, read_only=False, structured=True, contexts=(0,))
RO = Session(MIB, read_only=True, structured=True)
SIMPLE = Session(MIB, read_only=False, structured=False)
READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS = 0, 1, 3, 4, 5, 6, 7


@pytest.mark.parametrize(
    ("session", "flags", "command", "offset", "length"),
    [
        (RW, 0, READ, 0, MIB),
        (RW, 0, READ, MIB, 0),
        (RW, 4, READ, 0, 1),
        (RW, 1, READ, 0, 1),
        (RW, 0, FLUSH, 100, 100),
        (RW, 0x13, ZEROES, 0, MIB),
        (RW, 9, STATUS, 0, 1),
        (RO, 0, CACHE, 0, 1),
        (SIMPLE, 1, TRIM, 0, MIB),
        (RW, 0, 2, 5, 0),
    ],
)
def test_good_requests(
    session: Session, flags: int, command: int, offset: int, length: int
) -> None:
    assert refuse_header(nbd.REQUEST_MAGIC, command, length) is None
    assert refuse(session, flags, command, offset, length) is None


@pytest.mark.parametrize(
    ("session", "flags", "command", "offset", "length", "message"),
    [
        (RO, 0x8000, READ, MIB + 1, 33 * MIB, "len (34603008 ) is larger than max len (33554432)"),
        (RO, 0, CACHE, 0, 33 * MIB, "len (34603008 ) is larger than max len (33554432)"),
        (RO, 0x8000, WRITE, MIB, 1, "Export is read-only"),
        (RO, 0, TRIM, 0, 33 * MIB, "Export is read-only"),
        (RO, 0, ZEROES, 0, 1, "Export is read-only"),
        (RW, 0x8000, READ, MIB, 1, "operation past EOF; From: 1048576, Len: 1, Size: 1048576"),
        (
            RW,
            0,
            99,
            2**64 - 1,
            1,
            "operation past EOF; From: 18446744073709551615, Len: 1, Size: 1048576",
        ),
        (RW, 0x8000, 99, 0, 0, "unsupported flags for command <unknown> (got 0x8000)"),
        (RW, 2, READ, 0, 0, "unsupported flags for command read (got 0x2)"),
        (SIMPLE, 4, READ, 0, 1, "unsupported flags for command read (got 0x4)"),
        (RW, 4, ZEROES, 0, 1, "unsupported flags for command write zeroes (got 0x4)"),
        (RW, 3, STATUS, 0, 1, "unsupported flags for command block status (got 0x3)"),
        (RW, 0, STATUS, 0, 0, "need non-zero length"),
        (RO, 0, STATUS, 0, 1, "CMD_BLOCK_STATUS not negotiated"),
        (RW, 1, 8, 0, 0, "invalid request type (8) received"),
    ],
)
def test_refusals(
    session: Session, flags: int, command: int, offset: int, length: int, message: str
) -> None:
    refusal = refuse(session, flags, command, offset, length)
    assert refusal == (22, message, False)


def test_refused_headers_are_fatal() -> None:
    assert refuse_header(0x12345678, READ, 0) == (22, "invalid magic (got 0x12345678)", True)
    refusal = refuse_header(nbd.REQUEST_MAGIC, WRITE, 33 * MIB)
    assert refusal == (22, "len (34603008 ) is larger than max len (33554432)", True)
    assert refuse_header(nbd.REQUEST_MAGIC, READ, 33 * MIB) is None


def test_moves() -> None:
    for phase, targets in server.MOVES.items():
        for target in server.MOVES:
            if target in targets:
                assert server.move(phase, target) == target
            else:
                with pytest.raises(RuntimeError, match="cannot go"):
                    server.move(phase, target)
