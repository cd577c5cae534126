# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Records of VDUSE: sizes and numbers are those of a program compiled with the kernel's header."""

from __future__ import annotations

import struct

import pytest

from qsd.errors import PeerError
from qsd.wire.virtio import vduse

NUMBERS = {
    "GET_API_VERSION": 0x80088100,
    "SET_API_VERSION": 0x40088101,
    "CREATE_DEV": 0x41508102,
    "DESTROY_DEV": 0x41008103,
    "IOTLB_GET_FD": 0xC0208110,
    "DEV_GET_FEATURES": 0x80088111,
    "DEV_SET_CONFIG": 0x40088112,
    "DEV_INJECT_CONFIG_IRQ": 0x8113,
    "VQ_SETUP": 0x40208114,
    "VQ_GET_INFO": 0xC0308115,
    "VQ_SETUP_KICKFD": 0x40088116,
    "VQ_INJECT_IRQ": 0x40048117,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    assert getattr(vduse, name) == NUMBERS[name]


def test_a_device() -> None:
    made = vduse.device(vduse.name("disk"), 1 << 33, 4, 4096, b"config")
    assert len(made) == 0x150 + 6
    assert made[:5] == b"disk\0"
    assert struct.unpack_from("=IIQII", made, 256) == (0, 2, 1 << 33, 4, 4096)
    assert not any(made[280:332])
    assert made[332:] == b"\6\0\0\0config"


@pytest.mark.parametrize("name", ["..", "a..b", "x\0", "x" * 256])
def test_names(name: str) -> None:
    with pytest.raises(ValueError, match="name of a device"):
        vduse.name(name)
    assert len(vduse.name("x" * 255)) == 256


def test_requests() -> None:
    def message(kind: int, body: bytes) -> vduse.Request:
        data = struct.pack("=II16x", kind, 7) + body
        return vduse.parse_request(data.ljust(152, b"\0"))

    assert message(vduse.GET_VQ_STATE, struct.pack("=I", 3)).queue == 3
    assert message(vduse.SET_STATUS, b"\x0f").status == 15
    update = message(vduse.UPDATE_IOTLB, struct.pack("=QQ", 4096, 8191))
    assert (update.number, update.first, update.last) == (7, 4096, 8191)
    for length in (0, 24, 151):
        with pytest.raises(PeerError, match="bytes"):
            vduse.parse_request(bytes(length))


def test_responses() -> None:
    assert vduse.response(7, ok=True) == struct.pack("=II", 7, 0).ljust(152, b"\0")
    assert vduse.response(7, ok=False) == struct.pack("=II", 7, 1).ljust(152, b"\0")
    expected = struct.pack("=II16xIH", 7, 0, 3, 99).ljust(152, b"\0")
    assert vduse.state_response(7, 3, 99) == expected
