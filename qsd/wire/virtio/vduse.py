# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""VDUSE, virtio devices of the host in user space: records and ioctl numbers, no I/O.

Source: Linux Documentation/userspace-api/vduse.rst and include/uapi/linux/vduse.h.  All numbers
have the machine's byte order.
"""

from __future__ import annotations

import struct
from typing import Final

from qsd.errors import PeerError
from qsd.util.namedtuple import NamedTuple
from qsd.wire.virtio.ring import F_ACCESS_PLATFORM

API_VERSION: Final = 0
#: Bytes of a device's name, with its end.
NAME_MAX: Final = 256
#: Device id of block devices (virtio 1.2, 5 "Device Types").
ID_BLOCK: Final = 2
#: A device must reach its memory by I/O addresses.
REQUIRED_FEATURES: Final = F_ACCESS_PLATFORM

# Types of requests.
GET_VQ_STATE, SET_STATUS, UPDATE_IOTLB = 0, 1, 2
#: Bit of the device's status (virtio 1.2, 2.1 "Device Status Field").
STATUS_DRIVER_OK: Final = 4
# Access to memory.
ACCESS_RO, ACCESS_WO = 1, 2

_BASE = 0x81
_READ, _WRITE = 2, 1

NUMBER = struct.Struct("=Q")
INDEX = struct.Struct("=I")
#: struct vduse_dev_config: name, vendor, device, features, queues, alignment, -, config size.
DEV_CONFIG = struct.Struct("=256sIIQII52xI")
#: struct vduse_config_data: offset, length.
CONFIG_DATA = struct.Struct("=II")
#: struct vduse_vq_config: index, largest size.
VQ_CONFIG = struct.Struct("=IH26x")
#: struct vduse_vq_info: index, size, descriptors, driver's and device's area, index to go on at,
#: ready.
VQ_INFO = struct.Struct("=IIQQQH6xB7x")
#: struct vduse_vq_eventfd: index, descriptor.
VQ_EVENTFD = struct.Struct("=Ii")
#: struct vduse_iotlb_entry: offset in the file, first and last address, access.
IOTLB_ENTRY = struct.Struct("=QQQB7x")
_REQUEST = struct.Struct("=II16x")
_RANGE = struct.Struct("=QQ")
_VQ_STATE = struct.Struct("=IH")
#: struct vduse_dev_request and struct vduse_dev_response.
MESSAGE_SIZE: Final = 152


def _number(direction: int, number: int, size: int) -> int:
    """Return an ioctl number (asm-generic/ioctl.h)."""
    return direction << 30 | size << 16 | _BASE << 8 | number


# On the control device.
GET_API_VERSION: Final = _number(_READ, 0x00, NUMBER.size)
SET_API_VERSION: Final = _number(_WRITE, 0x01, NUMBER.size)
CREATE_DEV: Final = _number(_WRITE, 0x02, DEV_CONFIG.size)
DESTROY_DEV: Final = _number(_WRITE, 0x03, NAME_MAX)
# On a device.
IOTLB_GET_FD: Final = _number(_READ | _WRITE, 0x10, IOTLB_ENTRY.size)
DEV_GET_FEATURES: Final = _number(_READ, 0x11, NUMBER.size)
DEV_SET_CONFIG: Final = _number(_WRITE, 0x12, CONFIG_DATA.size)
DEV_INJECT_CONFIG_IRQ: Final = _number(0, 0x13, 0)
VQ_SETUP: Final = _number(_WRITE, 0x14, VQ_CONFIG.size)
VQ_GET_INFO: Final = _number(_READ | _WRITE, 0x15, VQ_INFO.size)
VQ_SETUP_KICKFD: Final = _number(_WRITE, 0x16, VQ_EVENTFD.size)
VQ_INJECT_IRQ: Final = _number(_WRITE, 0x17, INDEX.size)


class QueueInfo(NamedTuple):
    """What the driver has set for a queue.

    Attributes:
        size: Number of descriptors.
        desc: Address of the descriptors.
        avail: Address of the available ring.
        used: Address of the used ring.
        base: Where to go on.
        ready: Whether the queue is to run.
    """

    size: int
    desc: int
    avail: int
    used: int
    base: int
    ready: bool


class Mapping(NamedTuple):
    """Where memory is to be mapped from: addresses `first` to `last` at `offset` of a file."""

    offset: int
    first: int
    last: int
    access: int


class Request(NamedTuple):
    """A request of the kernel.

    Attributes:
        kind: One of the types above, or another.
        number: Whose response it gets.
        queue: GET_VQ_STATE: which queue.
        status: SET_STATUS: the device's status.
        first: UPDATE_IOTLB: first address.
        last: UPDATE_IOTLB: last address.
    """

    kind: int
    number: int
    queue: int
    status: int
    first: int
    last: int


def name(text: str) -> bytes:
    """Return a device's name as the kernel wants it.

    Raises:
        ValueError: It cannot be one.
    """
    data = text.encode()
    if len(data) >= NAME_MAX or b".." in data or b"\0" in data:
        raise ValueError(f"'{text}' cannot be the name of a device")
    return data.ljust(NAME_MAX, b"\0")


def device(named: bytes, features: int, queues: int, align: int, config: bytes) -> bytes:
    """Return the argument of CREATE_DEV."""
    return DEV_CONFIG.pack(named, 0, ID_BLOCK, features, queues, align, len(config)) + config


def parse_queue_info(data: bytes | bytearray) -> QueueInfo:
    """Return the result of VQ_GET_INFO."""
    _, size, desc, avail, used, base, ready = VQ_INFO.unpack(data)
    return QueueInfo(size, desc, avail, used, base, bool(ready))


def parse_request(data: bytes) -> Request:
    """Return what was read from a device.

    Raises:
        PeerError: It is too short.
    """
    if len(data) < MESSAGE_SIZE:
        raise PeerError(f"a request of {len(data)} bytes")
    kind, number = _REQUEST.unpack_from(data)
    first, last = _RANGE.unpack_from(data, _REQUEST.size)
    (queue,) = INDEX.unpack_from(data, _REQUEST.size)
    return Request(kind, number, queue, data[_REQUEST.size], first, last)


def response(number: int, *, ok: bool) -> bytes:
    """Return what is to be written to a device."""
    return _REQUEST.pack(number, not ok).ljust(MESSAGE_SIZE, b"\0")


def state_response(number: int, queue: int, base: int) -> bytes:
    """Return the response to GET_VQ_STATE."""
    body = _REQUEST.pack(number, 0) + _VQ_STATE.pack(queue, base)
    return body.ljust(MESSAGE_SIZE, b"\0")
