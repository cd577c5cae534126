# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vhost-user codec."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from qsd.errors import PeerError
from qsd.wire import vhost_user as vhost


def encoded(request: int, body: bytes = b"", flags: int = 1) -> bytes:
    return struct.pack("<III", request, flags, len(body)) + body


def decoded(data: bytes, fds: list[int], *, step: int = 1 << 20) -> list[vhost.Message]:
    """Feed a stream in the portions that the decoder asks for, or smaller ones."""
    decoder = vhost.Decoder()
    messages = []
    while data:
        count = min(decoder.wanted(), step)
        assert count > 0
        message = decoder.feed(data[:count], fds)
        fds = []
        data = data[count:]
        if message is not None:
            messages.append(message)
    return messages


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
def test_messages(step: int) -> None:
    stream = encoded(1) + encoded(2, b"12345678", 9) + encoded(3)
    assert decoded(stream, [5, 6], step=step) == [
        vhost.Message(1, False, b"", [5, 6]),
        vhost.Message(2, True, b"12345678", []),
        vhost.Message(3, False, b"", []),
    ]


@pytest.mark.parametrize("flags", [0, 2, 5, 0xFFFFFFF7])
def test_of_the_flags_only_one_counts(flags: int) -> None:
    assert decoded(encoded(1, flags=flags), []) == [vhost.Message(1, False, b"", [])]


def test_a_message_that_is_too_long() -> None:
    with pytest.raises(PeerError):
        decoded(struct.pack("<III", 1, 1, vhost.MAX_BODY + 1), [])


def test_descriptors_have_a_limit() -> None:
    decoder = vhost.Decoder()
    with pytest.raises(PeerError, match="descriptors"):
        decoder.feed(b"\1", list(range(100, 100 + vhost.MAX_FDS + 1)))
    assert len(decoder.fds) == vhost.MAX_FDS + 1  # still there to be closed


def test_random_bytes_give_messages_or_errors() -> None:
    source = random.Random(1)
    for _ in range(300):
        try:
            for message in decoded(source.randbytes(64), [], step=source.randrange(1, 20)):
                assert len(message.body) <= vhost.MAX_BODY
        except PeerError:
            pass


REGION = struct.pack("<QQQQ", 1, 2, 3, 4)
PARSERS: dict[str, tuple[Callable[[bytes], Any], bytes, Any]] = {
    "number": (vhost.parse_number, struct.pack("<Q", 9), 9),
    "state": (vhost.parse_state, struct.pack("<II", 3, 4), (3, 4)),
    "ring fd": (vhost.parse_ring_fd, struct.pack("<Q", 3), (3, True)),
    "no ring fd": (vhost.parse_ring_fd, struct.pack("<Q", 0x103), (3, False)),
    "ring address": (
        vhost.parse_ring_address,
        struct.pack("<IIQQQQ", 1, 0, 2, 3, 4, 5),
        vhost.RingAddress(1, desc=2, used=3, avail=4, log=None),
    ),
    "ring address with log": (
        vhost.parse_ring_address,
        struct.pack("<IIQQQQ", 1, 1, 2, 3, 4, 5),
        vhost.RingAddress(1, desc=2, used=3, avail=4, log=5),
    ),
    "log": (vhost.parse_log, struct.pack("<QQ", 1, 2), (1, 2)),
    "regions": (
        vhost.parse_regions,
        struct.pack("<II", 2, 0) + REGION + REGION,
        [vhost.RegionAddress(1, 2, 3, 4)] * 2,
    ),
    "region": (vhost.parse_region, bytes(8) + REGION, vhost.RegionAddress(1, 2, 3, 4)),
    "config": (vhost.parse_config, struct.pack("<III", 32, 1, 0), (32, 1, b"")),
    "inflight": (vhost.parse_inflight, struct.pack("<QQHH", 1, 2, 3, 4), (1, 2, 3, 4)),
}


@pytest.mark.parametrize("name", PARSERS)
def test_bodies(name: str) -> None:
    parse, body, result = PARSERS[name]
    assert parse(body) == result
    for length in range(len(body)):
        with pytest.raises(PeerError, match="short"):
            parse(body[:length])


def test_limits() -> None:
    with pytest.raises(PeerError, match="9 memory regions"):
        vhost.parse_regions(struct.pack("<II", 9, 0) + REGION * 9)
    with pytest.raises(PeerError, match="configuration"):
        vhost.parse_config(struct.pack("<III", 200, 57, 0))
    with pytest.raises(PeerError, match="configuration"):
        vhost.parse_config(struct.pack("<III", 0xFFFFFFFF, 1, 0))


def test_replies() -> None:
    assert vhost.reply(1, vhost.number(5)) == struct.pack("<IIIQ", 1, 5, 8, 5)
    assert vhost.reply(11, vhost.state(1, 2)) == struct.pack("<IIIII", 11, 5, 8, 1, 2)
    assert vhost.config(8, b"ab") == struct.pack("<III", 8, 2, 0) + b"ab"
    assert vhost.backend_request(vhost.BACKEND_CONFIG_CHANGE) == struct.pack("<III", 2, 1, 0)
    assert vhost.parse_inflight(vhost.inflight(4096, 2, 64)) == (4096, 0, 2, 64)
