# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The numbers and records of the NBD protocol (NBD specification, ``doc/proto.md``).

All integers on the wire are big-endian.  Every structure is declared here once, as a compiled
:class:`struct.Struct` whose comment lists the fields in order; nobody else writes a format string.
"""

from __future__ import annotations

import errno
import sys
from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from array import array

# "Newstyle negotiation"

GREETING: Final = Struct(">8s8sH")
"""NBDMAGIC, IHAVEOPT, handshake flags."""

CLIENT_FLAGS: Final = Struct(">I")
"""Client flags."""

OPTION: Final = Struct(">8sII")
"""IHAVEOPT, option, length of the data that follows."""

OPTION_REPLY: Final = Struct(">QIII")
"""OPTION_REPLY_MAGIC, option answered, reply type, length of the data that follows."""

EXPORT_NAME_REPLY: Final = Struct(">QH")
"""Size of the export, transmission flags; 124 zeroes follow unless NO_ZEROES was agreed."""

EXPORT_NAME_PADDING: Final = bytes(124)

OLDSTYLE_REPLY: Final = Struct(">QI124x")
"""What follows the magic of an oldstyle server: size of the export, flags, 124 zeroes."""

U16: Final = Struct(">H")
U32: Final = Struct(">I")
U64: Final = Struct(">Q")

INFO_EXPORT_REPLY: Final = Struct(">HQH")
"""INFO_EXPORT, size of the export, transmission flags."""

INFO_BLOCK_SIZE_REPLY: Final = Struct(">HIII")
"""INFO_BLOCK_SIZE, minimum, preferred and maximum block size in bytes."""

NBDMAGIC: Final = b"NBDMAGIC"
IHAVEOPT: Final = b"IHAVEOPT"
OLDSTYLE_MAGIC: Final = (0x420281861253).to_bytes(8, "big")
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9

# "Handshake flags" and "Client flags" share their bits.
FLAG_FIXED_NEWSTYLE: Final = 1
FLAG_NO_ZEROES: Final = 2
KNOWN_CLIENT_FLAGS: Final = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES

# "Option types"
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

#: How messages to the client call an option.
OPTION_NAMES: Final = {
    OPT_EXPORT_NAME: "export name",
    OPT_ABORT: "abort",
    OPT_LIST: "list",
    OPT_STARTTLS: "starttls",
    OPT_INFO: "info",
    OPT_GO: "go",
    OPT_STRUCTURED_REPLY: "structured reply",
    OPT_LIST_META_CONTEXT: "list meta context",
    OPT_SET_META_CONTEXT: "set meta context",
}

# "Option reply types"
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_FLAG_ERROR: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_FLAG_ERROR | 1
REP_ERR_POLICY: Final = REP_FLAG_ERROR | 2
REP_ERR_INVALID: Final = REP_FLAG_ERROR | 3
REP_ERR_PLATFORM: Final = REP_FLAG_ERROR | 4
REP_ERR_TLS_REQD: Final = REP_FLAG_ERROR | 5
REP_ERR_UNKNOWN: Final = REP_FLAG_ERROR | 6
REP_ERR_SHUTDOWN: Final = REP_FLAG_ERROR | 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_FLAG_ERROR | 8
REP_ERR_TOO_BIG: Final = REP_FLAG_ERROR | 9

#: How messages call a reply to an option.
REPLY_NAMES: Final = {
    REP_ACK: "ack",
    REP_SERVER: "server",
    REP_INFO: "info",
    REP_META_CONTEXT: "meta context",
    REP_ERR_UNSUP: "unsupported",
    REP_ERR_POLICY: "denied by policy",
    REP_ERR_INVALID: "invalid",
    REP_ERR_PLATFORM: "platform lacks support",
    REP_ERR_TLS_REQD: "TLS required",
    REP_ERR_UNKNOWN: "export unknown",
    REP_ERR_SHUTDOWN: "server shutting down",
    REP_ERR_BLOCK_SIZE_REQD: "block size required",
}

# Information types of NBD_OPT_INFO and NBD_OPT_GO
INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# "Transmission flags"
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11

#: What every export offers; DF is added once structured replies were negotiated.
FLAGS_COMMON: Final = (
    FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN | FLAG_SEND_CACHE
)
FLAGS_READ_ONLY: Final = FLAGS_COMMON | FLAG_READ_ONLY
FLAGS_WRITABLE: Final = FLAGS_COMMON | FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO

# "Transmission phase"

REQUEST: Final = Struct(">IHHQQI")
"""REQUEST_MAGIC, command flags, type, cookie, offset, length; a write's payload follows."""

SIMPLE_REPLY: Final = Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, error, cookie; a successful read's payload follows."""

CHUNK: Final = Struct(">IHHQI")
"""STRUCTURED_REPLY_MAGIC, reply flags, chunk type, cookie, length of the data that follows."""

DATA_CHUNK: Final = Struct(">IHHQIQ")
"""The header of an OFFSET_DATA chunk with its offset; the payload follows."""

OFFSET_AND_HOLE: Final = Struct(">QI")
"""What follows the header of an OFFSET_HOLE chunk: offset, length of the hole."""

ERROR_TEXT: Final = Struct(">IH")
"""What follows the header of an ERROR chunk: error, message length; the message follows."""

HOLE_CHUNK: Final = Struct(">IHHQIQI")
"""A whole OFFSET_HOLE chunk: header, offset, length of the hole."""

ERROR_CHUNK: Final = Struct(">IHHQIIH")
"""The header of an ERROR chunk with error and message length; the message follows."""

EXTENT: Final = Struct(">II")
"""One extent of a block status chunk: length, flags."""

# The same layouts with the fields that are constants in usual messages as one number.

KEYED_EXTENT_CHUNK: Final = Struct(">QQIIII")
"""STRUCTURED_REPLY_MAGIC, reply flags and chunk type as one number; cookie, length of what follows;
context, and one extent."""

KEYED_REQUEST: Final = Struct(">QQQI")
"""REQUEST_MAGIC, command flags and type as one number; cookie, offset, length."""

KEYED_SIMPLE_REPLY: Final = Struct(">QQ")
"""SIMPLE_REPLY_MAGIC and error as one number; cookie."""

KEYED_DATA_CHUNK: Final = Struct(">QQIQ")
"""STRUCTURED_REPLY_MAGIC, flags and chunk type as one number; cookie, length, offset."""

OPAQUE_REQUEST: Final = Struct(">Q8sQI")
"""The same as KEYED_REQUEST, with the cookie as bytes."""

OPAQUE_DATA_CHUNK: Final = Struct(">8s8sIQ")
"""The same as KEYED_DATA_CHUNK, with what comes before the length as bytes."""

REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

# "Request types"
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

#: How messages to the client call a command.
COMMAND_NAMES: Final = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_DISC: "disconnect",
    CMD_FLUSH: "flush",
    CMD_TRIM: "trim",
    CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "write zeroes",
    CMD_BLOCK_STATUS: "block status",
}

# "Command flags"
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

# "Structured reply flags" and "Structured reply types"
REPLY_FLAG_DONE: Final = 1
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR: Final = 0x8001
REPLY_ERROR_OFFSET: Final = 0x8002
REPLY_IS_ERROR: Final = 1 << 15

# Keys: magic number, flags and type as one number, as in the layouts called KEYED.
KEY_PLAIN_READ: Final = REQUEST_MAGIC << 32 | CMD_READ
"""The key of a read without flags; the next one is that of such a write."""
KEY_PLAIN_WRITE: Final = REQUEST_MAGIC << 32 | CMD_WRITE
KEY_SIMPLE: Final = SIMPLE_REPLY_MAGIC << 32
"""The key of a simple reply without an error."""
KEY_WHOLE_CHUNK: Final = STRUCTURED_REPLY_MAGIC << 32 | REPLY_FLAG_DONE << 16 | REPLY_OFFSET_DATA
"""The key of a structured reply that is one chunk of data."""

# States of "base:allocation" and "qemu:dirty-bitmap"
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
STATE_DIRTY: Final = 1

# Limits

#: Bytes; longest payload of a request or reply, announced as the maximum block size.
MAX_REQUEST: Final = 32 << 20
#: Bytes; the block sizes announced for every export.
MIN_BLOCK: Final = 1
PREFERRED_BLOCK: Final = 4096
#: Bytes; longest string (name, description, query) (NBD specification, "Values").
MAX_STRING: Final = 4096
#: Bytes; longest option data that is taken in.  It holds a name and 65535 information requests, the
#: most NBD_OPT_GO can ask; the original accepts anything up to MAX_REQUEST.
MAX_OPTION_DATA: Final = 256 << 10
#: Extents in one block status chunk; 1 MiB of reply.
MAX_EXTENTS: Final = (1 << 20) // 8

_ERRNO_TO_NBD: Final = {
    0: 0,
    errno.EPERM: 1,
    errno.EROFS: 1,
    errno.EIO: 5,
    errno.ENOMEM: 12,
    errno.ENOSPC: 28,
    errno.EDQUOT: 28,
    errno.EFBIG: 28,
    errno.EOVERFLOW: 75,
    errno.EOPNOTSUPP: 95,
    errno.ESHUTDOWN: 108,
}
EINVAL: Final = 22


def error_code(system_errno: int | None) -> int:
    """Return the wire's error number for an errno ("Error values"); EINVAL where there is none."""
    return _ERRNO_TO_NBD.get(system_errno or 0, EINVAL) if system_errno else EINVAL


def option_name(option: int) -> str:
    """Return how messages call an option."""
    return OPTION_NAMES.get(option, "<unknown>")


def reply_name(kind: int) -> str:
    """Return how messages call a reply to an option."""
    return REPLY_NAMES.get(kind, "<unknown>")


def command_name(command: int) -> str:
    """Return how messages call a command."""
    return COMMAND_NAMES.get(command, "<unknown>")


def option_reply(option: int, reply_type: int, data: bytes = b"") -> bytes:
    """Build one reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply_type, len(data)) + data


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """Build a simple reply without payload."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def error_reply(cookie: int, error: int, message: str, structured: bool) -> bytes:
    """Build the reply that ends a request with an error."""
    if not structured:
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)
    text = message.encode("utf-8", "surrogateescape")[:MAX_STRING]
    return (
        ERROR_CHUNK.pack(
            STRUCTURED_REPLY_MAGIC,
            REPLY_FLAG_DONE,
            REPLY_ERROR,
            cookie,
            6 + len(text),
            error,
            len(text),
        )
        + text
    )


def none_chunk(cookie: int) -> bytes:
    """Build the chunk that ends a structured reply with nothing more to say."""
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, REPLY_FLAG_DONE, REPLY_NONE, cookie, 0)


def data_header(cookie: int, offset: int, length: int, final: bool) -> bytes:
    """Build the header of an OFFSET_DATA chunk."""
    return DATA_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, int(final), REPLY_OFFSET_DATA, cookie, 8 + length, offset
    )


def hole_chunk(cookie: int, offset: int, length: int, final: bool) -> bytes:
    """Build an OFFSET_HOLE chunk."""
    return HOLE_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, int(final), REPLY_OFFSET_HOLE, cookie, 12, offset, length
    )


def status_chunk(
    cookie: int, context_id: int, extents: list[tuple[int, int]], final: bool
) -> bytes:
    """Build a BLOCK_STATUS chunk from (length, flags) extents."""
    pack = EXTENT.pack
    head = CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, int(final), REPLY_BLOCK_STATUS, cookie, 4 + 8 * len(extents)
    )
    return b"".join((head, U32.pack(context_id), *(pack(*extent) for extent in extents)))


def packed_status_chunk(
    cookie: int, context_id: int, lengths: array[int], states: bytes | bytearray, final: bool
) -> memoryview:
    """Fast: build what `status_chunk` does; 2 ns for each extent where that takes 300.

    Args:
        cookie: Of the request.
        context_id: Of the context.
        lengths: Bytes of each extent, as 64-bit integers of which 32 bits are used.
        states: One byte of flags for each.
        final: Whether this is the last chunk.
    """
    count = len(states)
    wide = lengths[:]
    if sys.byteorder == "little":
        wide.byteswap()
    start = CHUNK.size + U32.size
    chunk = bytearray(start + 8 * count)
    CHUNK.pack_into(
        chunk, 0, STRUCTURED_REPLY_MAGIC, int(final), REPLY_BLOCK_STATUS, cookie, 4 + 8 * count
    )
    U32.pack_into(chunk, CHUNK.size, context_id)
    # Big-endian, the upper half of each number is zero and the lower half is a length.  Without the
    # first half, a length stands before four bytes for its state, of which one is used.
    chunk[start : len(chunk) - 4] = memoryview(wide).cast("B")[4:]
    chunk[start + 7 :: 8] = states
    return memoryview(chunk)
