# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The WebSocket protocol on a socket device, server side (RFC 6455).

The client asks for the subprotocol "binary"; every frame of data holds a piece of the byte stream.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1
from typing import Final

#: Bytes; a longer request is refused (our own limit).
MAX_REQUEST: Final = 4096
#: Bytes; a longer control frame is an error (RFC 6455, 5.5).
MAX_CONTROL: Final = 125
#: Bytes of one frame of data (our own limit: it is collected before it is unmasked).
MAX_FRAME: Final = 1 << 20
#: RFC 6455, 1.3.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class WebSocketFilter:
    """Opening handshake and framing.

    Attributes:
        is_ready: Whether the handshake succeeded.
    """

    __slots__ = ("_input", "is_ready")

    def __init__(self) -> None:
        self._input = bytearray()
        self.is_ready = False

    def start(self) -> bytes:
        """The client speaks first."""
        return b""

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Take bytes from the socket; see :class:`qsd.chardev.socket.Filter`."""
        self._input += data
        answer = b""
        if not self.is_ready:
            end = self._input.find(b"\r\n\r\n")
            if end < 0:
                return b"", b"", len(self._input) <= MAX_REQUEST
            answer, self.is_ready = _handshake(bytes(self._input[:end]))
            if not self.is_ready:
                return b"", answer, False
            del self._input[: end + 4]
        plain = bytearray()
        goes_on = True
        while goes_on:
            frame = self._take_frame()
            if frame is None:
                break
            opcode, payload = frame
            if opcode in (_BINARY, _CONTINUATION):
                plain += payload
            elif opcode == _PING:
                answer += _frame(_PONG, payload)
            elif opcode == _CLOSE:
                answer += _frame(_CLOSE, payload[:2])
                goes_on = False
            elif opcode != _PONG:
                goes_on = False
        return bytes(plain), answer, goes_on

    def _take_frame(self) -> tuple[int, bytes] | None:
        """Take a complete frame from the input (RFC 6455, 5.2).

        Returns:
            Opcode and unmasked payload, None if it is not complete.  A frame that breaks a rule
            counts as one of the opcode -1.
        """
        data = self._input
        if len(data) < 2:
            return None
        opcode = data[0] & 0x0F
        length = data[1] & 0x7F
        head = 2
        if length >= 126:
            head += 2 if length == 126 else 8
            if len(data) < head:
                return None
            length = int.from_bytes(data[2:head], "big")
        limit = MAX_CONTROL if opcode & 8 else MAX_FRAME
        # "A client MUST mask all frames that it sends" (5.1); reserved bits must be zero (5.2).
        if not data[1] & 0x80 or data[0] & 0x70 or length > limit:
            return -1, b""
        if len(data) < head + 4 + length:
            return None
        mask = bytes(data[head : head + 4])
        payload = bytes(data[head + 4 : head + 4 + length])
        del data[: head + 4 + length]
        repeated = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
        return opcode, (int.from_bytes(payload, "big") ^ repeated).to_bytes(length, "big")

    def encode(self, data: bytes) -> bytes:
        """Wrap bytes into a binary frame."""
        return _frame(_BINARY, data)


def _frame(opcode: int, payload: bytes) -> bytes:
    """Return an unmasked frame that is final (RFC 6455, 5.2)."""
    length = len(payload)
    if length < 126:
        head = bytes([0x80 | opcode, length])
    elif length < 1 << 16:
        head = bytes([0x80 | opcode, 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 127]) + length.to_bytes(8, "big")
    return head + payload


def _handshake(request: bytes) -> tuple[bytes, bool]:
    """Answer the opening request (RFC 6455, 4.2); return the answer and whether it is accepted."""
    first, *lines = request.split(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            return _refusal(), False
        headers[name.strip().lower()] = value.strip()
    method = first.split(b" ")
    protocols = [name.strip() for name in headers.get(b"sec-websocket-protocol", b"").split(b",")]
    key = headers.get(b"sec-websocket-key", b"")
    accepted = (
        len(method) == 3
        and method[0] == b"GET"
        and method[2] == b"HTTP/1.1"
        and headers.get(b"upgrade", b"").lower() == b"websocket"
        and b"upgrade" in headers.get(b"connection", b"").lower()
        and headers.get(b"sec-websocket-version") == b"13"
        and len(key) == 24
        and b"host" in headers
        and b"binary" in protocols
    )
    if not accepted:
        return _refusal(), False
    # Not a matter of security, the protocol wants this hash.
    proof = b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + proof + b"\r\nSec-WebSocket-Protocol: binary\r\n\r\n",
        True,
    )


def _refusal() -> bytes:
    return (
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    )
