# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The kernel's FUSE protocol, as far as one regular file needs it: records and constants, no I/O.

Source: linux/fuse.h (the kernel's user-space interface, protocol 7.31) and
Documentation/filesystems/fuse.  All numbers are in host byte order.  Every request is
``fuse_in_header`` + arguments, read with one read(2) from /dev/fuse; every reply is
``fuse_out_header`` + result, written with one writev(2).
"""

from __future__ import annotations

import struct
from typing import Final

from qsd.util.namedtuple import NamedTuple

# Opcodes.
LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
OPEN, READ, WRITE, STATFS = 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT = 18, 20, 25, 26
ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 34, 36, 38, 42
FALLOCATE, LSEEK = 43, 46
SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 21, 22, 23, 24

#: Requests that get no reply.
SILENT: Final = frozenset({FORGET, BATCH_FORGET, INTERRUPT})

#: The version we speak.
MAJOR, MINOR = 7, 31

# Flags of INIT.
ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES = 1 << 0, 1 << 3, 1 << 5
AUTO_INVAL_DATA, ASYNC_DIO, PARALLEL_DIROPS = 1 << 12, 1 << 15, 1 << 18
MAX_PAGES = 1 << 22
WANTED: Final = ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | AUTO_INVAL_DATA | ASYNC_DIO | MAX_PAGES

# Flags of SETATTR.
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1, 2, 4, 8
FATTR_ATIME, FATTR_MTIME = 1 << 4, 1 << 5
FATTR_FH, FATTR_LOCKOWNER = 1 << 6, 1 << 9
FATTR_KNOWN: Final = (
    FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_FH | FATTR_LOCKOWNER | 1 << 10 | 1 << 11
)

#: Flag of OPEN's reply: close(2) need not ask for a FLUSH (protocol 7.35; earlier it is ignored).
FOPEN_NOFLUSH: Final = 1 << 5

#: Code of the notification that attributes are stale.
NOTIFY_INVAL_INODE = 2

#: Inode number of the root, here a regular file.
ROOT_ID = 1

#: Bytes; payload of one request at most: 256 pages, the kernel's own limit.
MAX_PAYLOAD: Final = 1 << 20

IN_HEADER = struct.Struct("=IIQQIIII")  #: len, opcode, unique, nodeid, uid, gid, pid, padding
OUT_HEADER = struct.Struct("=IiQ")  #: len, error, unique
#: len, opcode, unique, nodeid of any request; behind them offset and size of READ and WRITE.
HEAD = struct.Struct("=IIQQ24xQI")
_INIT_IN = struct.Struct("=IIII")  #: major, minor, max_readahead, flags
_INIT_OUT = struct.Struct("=IIIIHHIIHH8I")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_ATTR_OUT = struct.Struct("=QII")
_OPEN_OUT = struct.Struct("=QII")
READ_IN = struct.Struct("=QQIIQII")  #: fh, offset, size, flags, lock owner, open flags, padding
_SETATTR_IN = struct.Struct("=IIQQQQQQIIIIIIII")
_FALLOCATE_IN = struct.Struct("=QQQII")  #: fh, offset, length, mode, padding
_LSEEK_IN = struct.Struct("=QQII")  #: fh, offset, whence, padding
_LSEEK_OUT = struct.Struct("=Q")
_WRITE_OUT = struct.Struct("=II")
_WRITTEN = struct.Struct("=IiQII")  #: OUT_HEADER and _WRITE_OUT
_STATFS_OUT = struct.Struct("=QQQQQIIII6I")
_INVAL_OUT = struct.Struct("=Qqq")

#: Bytes; where the payload of a WRITE begins.
WRITE_DATA: Final = IN_HEADER.size + READ_IN.size


class ProtocolError(Exception):
    """The kernel sent what it cannot have meant."""


class Attributes(NamedTuple):
    """What stat(2) shows; sizes in bytes, times in nanoseconds."""

    size: int
    allocated: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    blksize: int


class SetAttributes(NamedTuple):
    """The arguments of SETATTR; `valid` says which count."""

    valid: int
    size: int
    mode: int
    uid: int
    gid: int


def parse_init(arguments: memoryview) -> tuple[int, int, int, int]:
    """Return (major, minor, max_readahead, flags) of INIT."""
    try:
        major, minor, readahead, flags = _INIT_IN.unpack_from(arguments)
    except struct.error as exc:
        raise ProtocolError("short INIT") from exc
    return major, minor, readahead, flags


def init_reply(minor: int, readahead: int, flags: int) -> bytes:
    """Return the result of INIT: what both sides can do."""
    return _INIT_OUT.pack(
        MAJOR,
        min(minor, MINOR),
        readahead,
        flags & WANTED,
        64,  # max_background: requests the kernel keeps in flight on its own account
        48,  # congestion_threshold
        MAX_PAYLOAD,
        1,  # time_gran, ns
        MAX_PAYLOAD // 4096,
        0,
        *(0,) * 8,
    )


def attributes_reply(attributes: Attributes, valid_seconds: int) -> bytes:
    """Return the result of GETATTR and SETATTR."""
    second = 1_000_000_000
    return _ATTR_OUT.pack(valid_seconds, 0, 0) + _ATTR.pack(
        ROOT_ID,
        attributes.size,
        attributes.allocated // 512,
        attributes.atime_ns // second,
        attributes.mtime_ns // second,
        attributes.ctime_ns // second,
        attributes.atime_ns % second,
        attributes.mtime_ns % second,
        attributes.ctime_ns % second,
        attributes.mode,
        1,
        attributes.uid,
        attributes.gid,
        0,
        attributes.blksize,
        0,
    )


def parse_setattr(arguments: memoryview) -> SetAttributes:
    """Return the arguments of SETATTR."""
    try:
        fields = _SETATTR_IN.unpack_from(arguments)
    except struct.error as exc:
        raise ProtocolError("short SETATTR") from exc
    return SetAttributes(fields[0], fields[3], fields[11], fields[13], fields[14])


def parse_io(arguments: memoryview) -> tuple[int, int]:
    """Return (offset, length) of READ and WRITE; what is written follows the arguments."""
    try:
        fields = READ_IN.unpack_from(arguments)
    except struct.error as exc:
        raise ProtocolError("short READ or WRITE") from exc
    return fields[1], fields[2]


def parse_fallocate(arguments: memoryview) -> tuple[int, int, int]:
    """Return (offset, length, mode) of FALLOCATE."""
    try:
        _, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(arguments)
    except struct.error as exc:
        raise ProtocolError("short FALLOCATE") from exc
    return offset, length, mode


def parse_lseek(arguments: memoryview) -> tuple[int, int]:
    """Return (offset, whence) of LSEEK."""
    try:
        _, offset, whence, _ = _LSEEK_IN.unpack_from(arguments)
    except struct.error as exc:
        raise ProtocolError("short LSEEK") from exc
    return offset, whence


def caller(request: memoryview) -> int:
    """Return the thread that makes a request, given whole: 0 for the kernel itself."""
    thread: int = IN_HEADER.unpack_from(request)[6]
    return thread


def open_reply(flags: int = 0) -> bytes:
    """Return the result of OPEN: no handle of ours, the page cache as the kernel likes it."""
    return _OPEN_OUT.pack(0, flags, 0)


def write_reply(count: int) -> bytes:
    """Return the result of WRITE."""
    return _WRITE_OUT.pack(count, 0)


def written(unique: int, count: int) -> bytes:
    """Return a whole reply to WRITE: the same as by :func:`reply`, in one go."""
    return _WRITTEN.pack(_WRITTEN.size, 0, unique, count, 0)


def lseek_reply(offset: int) -> bytes:
    """Return the result of LSEEK."""
    return _LSEEK_OUT.pack(offset)


def statfs_reply(blksize: int) -> bytes:
    """Return the result of STATFS: a file system without room, as there is only the file."""
    return _STATFS_OUT.pack(0, 0, 0, 0, 0, blksize, 255, blksize, 0, *(0,) * 6)


def invalidate_attributes() -> bytes:
    """Return a whole notification that attributes are stale; cached pages stay."""
    body = _INVAL_OUT.pack(ROOT_ID, -1, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_INODE, 0) + body


def reply(unique: int, result: bytes = b"", error: int = 0) -> bytes:
    """Return a whole reply; `error` is a positive errno."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(result), -error, unique) + result
