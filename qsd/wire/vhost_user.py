# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vhost-user protocol: messages, no I/O.

Source: QEMU documentation, "Vhost-user Protocol".  A message is a header and a body; descriptors
travel with its first byte::

    request 32 | flags 32 | size 32 | size bytes of body

Flags: bits 0-1 are the version (1), bit 2 marks a reply, bit 3 asks for an acknowledgement.  Only
the last one is looked at, as by the C daemon.
"""

from __future__ import annotations

import struct
from typing import Final

from qsd.errors import PeerError
from qsd.util.namedtuple import NamedTuple

# Requests of the front end.
NONE = 0
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_LOG_BASE, SET_LOG_FD = 6, 7
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD = 31, 32
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 36, 37, 38

#: The back end's message that the configuration changed.
BACKEND_CONFIG_CHANGE: Final = 2

#: Feature bit that says that protocol features can be negotiated.
F_PROTOCOL_FEATURES: Final = 1 << 30
#: Feature bit that says that what is written to memory is logged.
F_LOG_ALL: Final = 1 << 26

# Protocol features.
P_MQ, P_LOG_SHMFD, P_REPLY_ACK, P_BACKEND_REQ, P_CONFIG = 1 << 0, 1 << 1, 1 << 3, 1 << 5, 1 << 9
P_INFLIGHT_SHMFD, P_CONFIGURE_MEM_SLOTS = 1 << 12, 1 << 15

_VERSION = 1
_FLAG_REPLY = 4
_FLAG_NEED_REPLY = 8

#: Bytes; longest body: a limit of ours, several times what the longest message needs.
MAX_BODY: Final = 4096
#: Descriptors with one message at most: one for each region of SET_MEM_TABLE.
MAX_FDS: Final = 8
#: Regions that ADD_MEM_REG may make (the C daemon's number).
MAX_MEM_SLOTS: Final = 32
#: Bytes; longest configuration space (protocol, "Virtio device config space").
MAX_CONFIG: Final = 256

_HEADER = struct.Struct("<III")
_NUMBER = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESS = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")
_INFLIGHT = struct.Struct("<QQHH")
_LOG = struct.Struct("<QQ")

#: Bits of the body of SET_VRING_KICK and _CALL.
_INDEX_MASK = 0xFF
_NO_FD = 1 << 8
#: Bit of the flags of SET_VRING_ADDR.
_RING_LOG = 1


class Message(NamedTuple):
    """A whole message of the front end.

    Attributes:
        request: One of the numbers above, or another.
        needs_reply: Whether an acknowledgement is asked for.
        body: What follows the header.
        fds: Descriptors that came along, the receiver's from now on.
    """

    request: int
    needs_reply: bool
    body: bytes
    fds: list[int]


class RegionAddress(NamedTuple):
    """Where a region of memory lies: guest, size, front end's address, offset in its file."""

    guest: int
    size: int
    user: int
    offset: int


class RingAddress(NamedTuple):
    """Where the parts of a ring lie, in the front end's addresses.

    Attributes:
        log: Where the used ring lies in the guest, if writes to it are to be logged.
    """

    queue: int
    desc: int
    used: int
    avail: int
    log: int | None


class Decoder:
    """Messages from a stream that is read in portions of the wanted size.

    Attributes:
        fds: Descriptors that came and belong to no whole message yet.
    """

    __slots__ = ("_data", "_header", "fds")

    def __init__(self) -> None:
        self._data = b""
        self._header: tuple[int, int, int] | None = None
        self.fds: list[int] = []

    def wanted(self) -> int:
        """Return how many bytes may be read now: never more than to the end of a part."""
        whole = _HEADER.size if self._header is None else self._header[2]
        return whole - len(self._data)

    def feed(self, data: bytes, fds: list[int]) -> Message | None:
        """Take what was read; return the message that it completes.

        Raises:
            PeerError: It cannot be a message.
        """
        self._data += data
        self.fds += fds
        if len(self.fds) > MAX_FDS:
            raise PeerError("too many descriptors in one message")
        if self.wanted():
            return None
        if self._header is None:
            request, flags, size = _HEADER.unpack(self._data)
            if size > MAX_BODY:
                raise PeerError(f"message of {size} bytes")
            self._header = request, flags, size
            self._data = b""
            if size:
                return None
        request, flags, _ = self._header
        message = Message(request, bool(flags & _FLAG_NEED_REPLY), self._data, self.fds)
        self._header = None
        self._data = b""
        self.fds = []
        return message


def reply(request: int, body: bytes) -> bytes:
    """Return a whole reply."""
    return _HEADER.pack(request, _VERSION | _FLAG_REPLY, len(body)) + body


def backend_request(request: int) -> bytes:
    """Return a whole message of the back end without a body."""
    return _HEADER.pack(request, _VERSION, 0)


def number(value: int) -> bytes:
    """Return the body that is one number."""
    return _NUMBER.pack(value)


def state(index: int, value: int) -> bytes:
    """Return the body that is the state of a ring."""
    return _STATE.pack(index, value)


def _unpack(form: struct.Struct, body: bytes, offset: int = 0) -> tuple[int, ...]:
    if len(body) < offset + form.size:
        raise PeerError(f"message body of {len(body)} bytes is too short")
    return form.unpack_from(body, offset)


def parse_number(body: bytes) -> int:
    """Return the number that is the body.

    Raises:
        PeerError: The body is too short; as for all functions that follow.
    """
    return _unpack(_NUMBER, body)[0]


def parse_state(body: bytes) -> tuple[int, int]:
    """Return (index, value) of a ring's state."""
    index, value = _unpack(_STATE, body)
    return index, value


def parse_ring_fd(body: bytes) -> tuple[int, bool]:
    """Return (index, whether a descriptor comes along) of SET_VRING_KICK, _CALL and _ERR."""
    value = parse_number(body)
    return value & _INDEX_MASK, not value & _NO_FD


def parse_ring_address(body: bytes) -> RingAddress:
    """Return the body of SET_VRING_ADDR."""
    index, flags, desc, used, avail, log = _unpack(_ADDRESS, body)
    return RingAddress(index, desc, used, avail, log if flags & _RING_LOG else None)


def parse_regions(body: bytes) -> list[RegionAddress]:
    """Return the body of SET_MEM_TABLE."""
    count, _ = _unpack(_STATE, body)
    if count > MAX_FDS:
        raise PeerError(f"{count} memory regions")
    return [
        RegionAddress(*_unpack(_REGION, body, _STATE.size + _REGION.size * index))
        for index in range(count)
    ]


def parse_region(body: bytes) -> RegionAddress:
    """Return the body of ADD_MEM_REG and REM_MEM_REG."""
    return RegionAddress(*_unpack(_REGION, body, _NUMBER.size))


def parse_log(body: bytes) -> tuple[int, int]:
    """Return (size, offset) of SET_LOG_BASE."""
    size, offset = _unpack(_LOG, body)
    return size, offset


def parse_config(body: bytes) -> tuple[int, int, bytes]:
    """Return (offset, size, payload) of GET_CONFIG and SET_CONFIG."""
    offset, size, _ = _unpack(_CONFIG, body)
    if offset > MAX_CONFIG or size > MAX_CONFIG - offset:
        raise PeerError(f"configuration space at {offset}, {size} bytes")
    return offset, size, body[_CONFIG.size :]


def config(offset: int, data: bytes) -> bytes:
    """Return the body of the reply to GET_CONFIG; no data says that it failed."""
    return _CONFIG.pack(offset, len(data), 0) + data


def parse_inflight(body: bytes) -> tuple[int, int, int, int]:
    """Return (size, offset, queues, queue size) of GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    size, offset, queues, queue_size = _unpack(_INFLIGHT, body)
    return size, offset, queues, queue_size


def inflight(size: int, queues: int, queue_size: int) -> bytes:
    """Return the body of the reply to GET_INFLIGHT_FD."""
    return _INFLIGHT.pack(size, 0, queues, queue_size) + bytes(4)
