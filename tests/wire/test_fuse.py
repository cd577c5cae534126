# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The FUSE codec against hand-made records of linux/fuse.h."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from qsd.wire import fuse

PARSERS: dict[str, tuple[Callable[[memoryview], Any], bytes, Any]] = {
    "init": (fuse.parse_init, struct.pack("=IIII", 7, 38, 131072, 0xFFFF), (7, 38, 131072, 0xFFFF)),
    "io": (fuse.parse_io, struct.pack("=QQIIQII", 1, 4096, 512, 0, 0, 0, 0), (4096, 512)),
    "fallocate": (fuse.parse_fallocate, struct.pack("=QQQII", 1, 10, 20, 3, 0), (10, 20, 3)),
    "lseek": (fuse.parse_lseek, struct.pack("=QQII", 1, 77, 4, 0), (77, 4)),
    "setattr": (
        fuse.parse_setattr,
        struct.pack("=IIQQQQQQIIIIIIII", 9, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 1, 2, 0),
        fuse.SetAttributes(valid=9, size=5, mode=0o600, uid=1, gid=2),
    ),
}


@pytest.mark.parametrize("name", PARSERS)
def test_arguments(name: str) -> None:
    parse, body, result = PARSERS[name]
    assert parse(memoryview(body)) == result
    assert parse(memoryview(body + b"more")) == result


@pytest.mark.parametrize("name", PARSERS)
def test_every_truncation_is_refused(name: str) -> None:
    parse, body, _ = PARSERS[name]
    for length in range(len(body)):
        with pytest.raises(fuse.ProtocolError, match="short"):
            parse(memoryview(body)[:length])


def test_reply() -> None:
    assert fuse.reply(7, b"abc") == struct.pack("=IiQ", 19, 0, 7) + b"abc"
    assert fuse.reply(8, error=5) == struct.pack("=IiQ", 16, -5, 8)


def test_init_reply_offers_no_more_than_both_can() -> None:
    body = fuse.init_reply(26, 4096, fuse.BIG_WRITES | 1 << 30)
    assert len(body) == 64
    major, minor, readahead, flags = struct.unpack_from("=IIII", body)
    assert (major, minor, readahead, flags) == (7, 26, 4096, fuse.BIG_WRITES)
    _, minor, _, flags = struct.unpack_from("=IIII", fuse.init_reply(99, 0, 0xFFFFFFFF))
    assert (minor, flags) == (31, fuse.WANTED)


def test_attributes() -> None:
    attributes = fuse.Attributes(1000, 8192, 0o100644, 3, 4, 2_000_000_005, 6, 7, 512)
    body = fuse.attributes_reply(attributes, 1)
    assert len(body) == 104
    assert struct.unpack_from("=QII", body) == (1, 0, 0)
    inode, size, blocks, _, mtime, _, _, mtime_ns, _, mode, links, uid, gid, _, blksize, _ = (
        struct.unpack_from("=QQQQQQIIIIIIIIII", body, 16)
    )
    assert (inode, size, blocks, links, blksize) == (1, 1000, 16, 1, 512)
    assert (mtime, mtime_ns, mode, uid, gid) == (2, 5, 0o100644, 3, 4)


def test_small_results() -> None:
    assert struct.unpack("=II", fuse.write_reply(9)) == (9, 0)
    assert fuse.written(7, 9) == fuse.reply(7, fuse.write_reply(9))
    assert struct.unpack("=Q", fuse.lseek_reply(9)) == (9,)
    assert fuse.open_reply() == bytes(16)
    assert len(fuse.statfs_reply(512)) == 80


def test_notification() -> None:
    length, code, unique = struct.unpack_from("=IiQ", fuse.invalidate_attributes())
    assert (length, code, unique) == (40, 2, 0)


def test_the_head_of_a_request_is_what_the_records_say() -> None:
    """Opcode, number, offset and size in one go, for the hot path."""
    header = fuse.IN_HEADER.pack(80, fuse.READ, 7, fuse.ROOT_ID, 1, 2, 3, 4)
    request = header + fuse.READ_IN.pack(5, 4096, 512, 6, 7, 8, 9)
    assert len(request) == fuse.WRITE_DATA
    assert fuse.HEAD.unpack_from(request) == (80, fuse.READ, 7, fuse.ROOT_ID, 4096, 512)
