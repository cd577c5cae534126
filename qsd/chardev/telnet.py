# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The telnet protocol on a socket device, as far as a server of characters needs it.

The server states what it will do (RFC 854, "General considerations") and takes note of no answer:
commands of the client are skipped.  In the 3270 dialect (RFC 1576) the device opens only when the
client has named its terminal.
"""

from __future__ import annotations

from typing import Final

_SE, _IP, _SB, _WILL, _DONT, _IAC = 240, 244, 250, 251, 254, 255

#: WILL ECHO (RFC 857), WILL SUPPRESS-GO-AHEAD (RFC 858), WILL and DO BINARY (RFC 856).
_OPENING: Final = bytes([_IAC, 251, 1, _IAC, 251, 3, _IAC, 251, 0, _IAC, 253, 0])
#: DO and WILL END-OF-RECORD (RFC 885), DO and WILL BINARY, DO TERMINAL-TYPE (RFC 1091) and SEND it.
_OPENING_3270: Final = bytes.fromhex("fffd19 fffb19 fffd00 fffb00 fffd18 fffa1801fff0")


class TelnetFilter:
    """Takes telnet's commands out of the stream.

    Attributes:
        is_ready: Whether the device may open.
    """

    __slots__ = ("_command", "_tn3270", "is_ready")

    def __init__(self, *, tn3270: bool) -> None:
        self._tn3270 = tn3270
        self._command = bytearray()
        self.is_ready = not tn3270

    def start(self) -> bytes:
        """Return what the server offers."""
        return _OPENING_3270 if self._tn3270 else _OPENING

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Separate data from commands; see :class:`qsd.chardev.socket.Filter`."""
        if not self._command and _IAC not in data:
            return data, b"", True
        plain = bytearray()
        for byte in data:
            if self._command:
                self._continue(byte, plain)
            elif byte == _IAC:
                self._command.append(byte)
            else:
                plain.append(byte)
        return bytes(plain), b"", True

    def _continue(self, byte: int, plain: bytearray) -> None:
        """Take the next byte of a command, whose first byte is IAC."""
        command = self._command
        if len(command) == 1:
            if byte == _IAC:  # a data byte 255 (RFC 854, "Data mode")
                plain.append(byte)
                command.clear()
            elif _WILL <= byte <= _DONT or byte == _SB:
                command.append(byte)
            else:
                command.clear()
        elif command[1] != _SB:
            command.clear()  # the option of WILL, WONT, DO or DONT
        else:
            # A subnegotiation, up to IAC SE; only its end matters, so keep no more than the head.
            if byte == _SE and command[-1] == _IAC and len(command) > 2:
                self.is_ready = True
                command.clear()
            elif len(command) == 3:
                command[2] = byte
            else:
                command.append(byte)

    def encode(self, data: bytes) -> bytes:
        """Double the bytes that would begin a command."""
        return data.replace(b"\xff", b"\xff\xff")
