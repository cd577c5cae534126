# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A small NBD client with many requests in flight, for tests that kill the server under it.

Speaks the baseline protocol (NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle, NBD_OPT_GO,
simple replies.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

READ, WRITE, FLUSH, TRIM, ZERO = 0, 1, 3, 4, 6
NO_HOLE = 2
FUA = 1

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class Gone(Exception):
    """The server went away."""


class Client:
    """One connection.

    Attributes:
        size: Length of the export.
        flags: Transmission flags.
    """

    def __init__(self, path: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(200)  # it limits tests that fail, and machines are slow
        self.size = self.flags = 0
        self._reads: dict[int, int] = {}
        try:
            self._socket.connect(str(path))
            self._go(export)
        except BaseException:
            self._socket.close()
            raise

    def _go(self, export: str) -> None:
        """Get to the transmission phase."""
        self._take(18)
        self._socket.sendall(struct.pack(">I", 3))
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(body)) + body)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            data = self._take(length)
            if kind == 1:
                break
            if kind & 0x80000000:
                raise RuntimeError(f"NBD_OPT_GO failed: {data!r}")
            if kind == 3 and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:12])

    def _take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                part = self._socket.recv(length - len(data))
            except OSError as exc:
                raise Gone from exc
            if not part:
                raise Gone
            data += part
        return bytes(data)

    def send(
        self,
        command: int,
        cookie: int,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        flags: int = 0,
    ) -> None:
        """Send a request without waiting for its reply."""
        if command == READ:
            self._reads[cookie] = length
        header = _REQUEST.pack(0x25609513, flags, command, cookie, offset, len(data) or length)
        try:
            self._socket.sendall(header + data)
        except OSError as exc:
            raise Gone from exc

    def receive(self) -> tuple[int, int, bytes]:
        """Return (cookie, error, data) of the next reply."""
        _, error, cookie = _REPLY.unpack(self._take(16))
        length = self._reads.pop(cookie, 0)
        return cookie, error, self._take(length) if not error else b""

    def call(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> bytes:
        """Send a request and wait for its reply, with nothing else in flight."""
        self.send(command, 1, offset, length, data, flags)
        _, error, result = self.receive()
        if error:
            raise OSError(error, "NBD error")
        return result

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
