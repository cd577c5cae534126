# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Handshake and frames of RFC 6455."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.chardev.websocket import MAX_FRAME, MAX_REQUEST, WebSocketFilter
from tests.chardev.support import Desk, Recorder, backend, unix, with_desk

# The key and its answer are the example of RFC 6455, 1.3.
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat, binary\r\n\r\n"
)


def masked(opcode: int, payload: bytes, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    length = len(payload)
    if length < 126:
        head = bytes([0x80 | opcode, 0x80 | length])
    elif length < 65536:
        head = bytes([0x80 | opcode, 0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + length.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def opened() -> WebSocketFilter:
    device = WebSocketFilter()
    _, answer, goes_on = device.receive(REQUEST)
    assert goes_on
    assert device.is_ready
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    return device


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"GET", b"PUT"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: chat"),
        (b"Version: 13", b"Version: 8"),
        (b"chat, binary", b"chat"),
        (b"Host: x", b"nonsense"),
        (b"dGhl", b""),
    ],
)
def test_refused_requests(old: bytes, new: bytes) -> None:
    device = WebSocketFilter()
    plain, answer, goes_on = device.receive(REQUEST.replace(old, new))
    assert (plain, goes_on, device.is_ready) == (b"", False, False)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_endless_request() -> None:
    device = WebSocketFilter()
    assert device.receive(b"x" * MAX_REQUEST)[2]
    assert not device.receive(b"x")[2]


@given(st.lists(st.binary(max_size=300)), st.integers(1, 50))
@settings(max_examples=30)
def test_frames_in_any_pieces(payloads: list[bytes], step: int) -> None:
    device = opened()
    data = b"".join(masked(2, payload) for payload in payloads)
    plain = b"".join(device.receive(data[at : at + step])[0] for at in range(0, len(data), step))
    assert plain == b"".join(payloads)


def test_long_frames() -> None:
    assert opened().receive(masked(2, b"x" * 70_000)) == (b"x" * 70_000, b"", True)
    encode = opened().encode
    assert encode(b"x" * 125)[:2].hex() == "827d"
    assert encode(b"x" * 126)[:4].hex() == "827e007e"
    assert encode(b"x" * 65536)[:10].hex() == "827f0000000000010000"


def test_control_frames() -> None:
    assert opened().receive(masked(9, b"hi")) == (b"", b"\x8a\x02hi", True)
    assert opened().receive(masked(10, b"hi")) == (b"", b"", True)
    assert opened().receive(masked(8, b"\x03\xe8bye")) == (b"", b"\x88\x02\x03\xe8", False)


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x01x",  # not masked
        b"\xc2\x81\0\0\0\0x",  # reserved bit
        b"\x81\x81\0\0\0\0x",  # text
        b"\x89\xfe\x01\x00\0\0\0\0",  # long control frame
        b"\x82\xff" + (MAX_FRAME + 1).to_bytes(8, "big"),
    ],
)
def test_broken_frames(data: bytes) -> None:
    assert not opened().receive(data)[2]


def test_on_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main(desk: Desk) -> None:
        await desk.registry.add("w", backend("socket", addr=unix(path), wait=False, websocket=True))
        user = Recorder()
        device = desk.registry.attach("w", user)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.send(REQUEST + masked(2, b"question"))
            await user.until_data(b"question")
            device.write(b"answer")
            assert b"\r\n\r\n\x82\x06answer" in client.recv(1000)
            client.send(masked(8, b""))
            await user.until_event("closed")

    with_desk(main)
