# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Scripts of raw NBD bytes: made at random, replayed at a server, its answers written down.

A script is played in lockstep, each step waiting for its answers, so that two servers in the same
state must give the same transcript.  Several requests may be in flight together; their replies are
then sorted by cookie, since servers may finish them in any order.

NBD specification (NetworkBlockDevice/nbd, doc/proto.md).
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

OPTION = struct.Struct(">8sII")
REQUEST = struct.Struct(">IHHQQI")
IHAVEOPT = b"IHAVEOPT"
REQUEST_MAGIC = 0x25609513

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    10,
)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)

#: Option replies that are followed by others.
_GOES_ON = (2, 3, 4)
_ACK = 1
#: Seconds; a server that says nothing for so long has nothing to say.
PATIENCE = 5.0


class Option(NamedTuple):
    """An option of the handshake; `length` is what its header claims, None for the truth."""

    number: int
    data: bytes = b""
    magic: bytes = IHAVEOPT
    length: int | None = None

    def encode(self) -> bytes:
        length = len(self.data) if self.length is None else self.length
        return OPTION.pack(self.magic, self.number, length) + self.data


class Request(NamedTuple):
    """A request; `length` is what its header claims."""

    flags: int
    command: int
    offset: int
    length: int
    payload: bytes = b""
    magic: int = REQUEST_MAGIC

    def encode(self, cookie: int) -> bytes:
        header = REQUEST.pack(
            self.magic, self.flags, self.command, cookie, self.offset, self.length
        )
        return header + self.payload


class Script(NamedTuple):
    """What one client says.

    Attributes:
        flags: Client flags.
        options: One after the other; if one begins transmission, those behind it are not sent.
        batches: Requests that are sent together.
    """

    flags: int
    options: list[Option]
    batches: list[list[Request]]


class _End(Exception):
    """The server has closed the connection, or says nothing."""


class _Line:
    """A connection whose answers are taken in pieces."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what was answered before that is still there to be read

    def finish(self) -> None:
        """Say that nothing more will come."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                part = self._socket.recv(length - len(data))
            except ConnectionResetError:
                part = b""
            except TimeoutError:
                raise _End(f"silence after {bytes(data)!r}") from None
            if not part:
                raise _End(f"closed after {bytes(data)!r}")
            data += part
        return bytes(data)

    def close(self) -> None:
        self._socket.close()


def play(path: Path, script: Script) -> list[str]:
    """Play a script at the server on a unix socket and return what it answered, line by line."""
    transcript: list[str] = []
    line = _Line(path)
    try:
        if _handshake(line, script, transcript.append):
            _transmit(line, script, transcript.append)
        transcript.append(f"rest {line.take(1)!r}")
    except _End as end:
        transcript.append(str(end))
    finally:
        line.close()
    return transcript


def _handshake(line: _Line, script: Script, note: Callable[[str], None]) -> bool:
    """Negotiate; return whether transmission has begun, and with structured replies or not."""
    note(f"greeting {line.take(18).hex()}")
    line.send(struct.pack(">I", script.flags))
    for option in script.options:
        line.send(option.encode())
        if option.length is not None:
            line.finish()
        if option.number == EXPORT_NAME and option.magic == IHAVEOPT:
            note(f"export {line.take(10).hex()}")
            if not script.flags & 2:
                note(f"padding {line.take(124).hex()}")
            return True
        if _option_replies(line, note) == _ACK and option.number == GO:
            return True
    line.send(Option(ABORT).encode())
    _option_replies(line, note)
    return False


def _option_replies(line: _Line, note: Callable[[str], None]) -> int:
    """Take all replies to an option and return the type of the last one."""
    while True:
        magic, option, kind, length = struct.unpack(">QIII", line.take(20))
        note(f"option {magic:#x} {option} {kind:#x} {line.take(length)!r}")
        if kind not in _GOES_ON:
            return int(kind)


def _transmit(line: _Line, script: Script, note: Callable[[str], None]) -> None:
    cookie = 0
    for batch in script.batches:
        expected: dict[int, Request] = {}
        out = b""
        for request in batch:
            cookie += 1
            out += request.encode(cookie)
            if request.command != DISC:
                expected[cookie] = request
        line.send(out)
        if not expected:
            return
        answers: dict[int, list[str]] = {}
        pieces: dict[int, list[tuple[int, bytes]]] = {}
        ended: _End | None = None
        try:
            while expected:
                _reply(line, expected, answers, pieces)
        except _End as end:
            ended = end
        for number, found in pieces.items():
            found.sort()
            data = b"".join(piece for _, piece in found)
            answers.setdefault(number, []).insert(0, f"data at {found[0][0]}: {_digest(data)}")
        for number in sorted(answers):
            for text in answers[number]:
                note(f"{number}: {text}")
        if ended is not None:
            raise ended
    line.send(Request(0, DISC, 0, 0).encode(0))


def _reply(
    line: _Line,
    expected: dict[int, Request],
    answers: dict[int, list[str]],
    pieces: dict[int, list[tuple[int, bytes]]],
) -> None:
    """Take one simple reply or one chunk."""
    (magic,) = struct.unpack(">I", line.take(4))
    if magic == 0x67446698:
        error, cookie = struct.unpack(">IQ", line.take(12))
        text = f"simple {error}"
        request = expected.pop(cookie, None)
        if not error and request is not None and request.command == READ:
            text += " " + _digest(line.take(request.length))
        answers.setdefault(cookie, []).append(text)
        return
    flags, kind, cookie, length = struct.unpack(">HHQI", line.take(16))
    data = line.take(length)
    request = expected.get(cookie)
    if kind in (1, 2) and request is not None and len(data) >= 8:
        # How data is cut into chunks, and which zeroes are sent as holes, is the server's choice.
        (offset,) = struct.unpack_from(">Q", data)
        piece = data[8:] if kind == 1 else bytes(struct.unpack_from(">I", data, 8)[0])
        pieces.setdefault(cookie, []).append((offset, piece))
    elif kind == 5:
        answers.setdefault(cookie, []).append(f"status {_extents(data)}")
    else:
        text = repr(data) if kind & 0x8000 else data.hex()
        answers.setdefault(cookie, []).append(f"chunk {kind:#x} {length} {text}")
    if flags & 1:
        answers.setdefault(cookie, []).append("done")
        expected.pop(cookie, None)


def _extents(data: bytes) -> str:
    """Return what a status chunk says; which zeroes are known as such is the server's choice.

    Whether a cluster's data is a hole in the file below depends on how it was written.
    """
    (context,) = struct.unpack_from(">I", data)
    extents: list[list[int]] = []
    for length, flags in struct.iter_unpack(">II", data[4:]):
        if not context and flags == 2:
            flags = 0
        if extents and extents[-1][1] == flags:
            extents[-1][0] += length
        else:
            extents.append([length, flags])
    return f"{context}: {extents}"


def _digest(data: bytes) -> str:
    """Return short data as such, the rest by its length, ends and check sum."""
    if len(data) <= 16:
        return data.hex()
    import zlib

    return f"{len(data)} {data[:4].hex()}..{data[-4:].hex()} {zlib.crc32(data):#x}"


class Export(NamedTuple):
    """An export that scripts may use.

    Attributes:
        name: Its name.
        size: Bytes.
        block: Requests are mostly multiples of it.
        contexts: Names of metadata contexts to ask for.
        alone: Whether requests are never in flight together, because one may end the connection.
    """

    name: str
    size: int
    block: int = 1
    contexts: tuple[str, ...] = ("base:allocation",)
    alone: bool = False


class Maker:
    """Makes scripts at random."""

    def __init__(self, chance: random.Random, exports: list[Export]) -> None:
        self._chance = chance
        self._exports = exports

    def script(self) -> Script:
        """Return the next script: mostly a plausible handshake, sometimes a bold one."""
        chance = self._chance
        export = chance.choice(self._exports)
        flags = chance.choices([3, 1, 2, 0, 4, 7, 1 << 31], [20, 4, 1, 1, 1, 1, 1])[0]
        options = []
        if chance.random() < 0.4:
            options = [self._any_option(export) for _ in range(chance.randrange(1, 6))]
        if chance.random() < 0.75:
            options.append(Option(STRUCTURED))
            if chance.random() < 0.7:
                options.append(self._meta(SET_META, export))
        options.append(self._enter(export))
        return Script(flags, options, [self._batch(export) for _ in range(chance.randrange(12))])

    # Options

    def _enter(self, export: Export) -> Option:
        if self._chance.random() < 0.15:
            return Option(EXPORT_NAME, export.name.encode())
        asked = [3] if self._chance.random() < 0.8 else self._infos()
        return self._info(GO, export.name.encode(), asked)

    def _infos(self) -> list[int]:
        return [self._chance.choice([0, 1, 2, 3, 4, 77]) for _ in range(self._chance.randrange(5))]

    @staticmethod
    def _info(option: int, name: bytes, asked: list[int]) -> Option:
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", len(asked))
        return Option(option, data + b"".join(struct.pack(">H", kind) for kind in asked))

    def _any_option(self, export: Export) -> Option:
        chance = self._chance
        number = chance.choice(
            [
                LIST,
                STARTTLS,
                INFO,
                GO,
                STRUCTURED,
                LIST_META,
                SET_META,
                4,
                11,
                12,
                99,
                ABORT,
                EXPORT_NAME,
            ]
        )
        if number in (INFO, GO):
            option = self._info(number, self._name(export), self._infos())
        elif number in (LIST_META, SET_META):
            option = self._meta(number, export)
        elif number == EXPORT_NAME:
            option = Option(number, self._name(export))
        else:
            option = Option(number, chance.choice([b"", b"", b"", b"x", b"\0" * 5000]))
        if chance.random() < 0.7:
            return option
        spoilt = self._spoil(option)
        if number in (LIST_META, SET_META) and len(spoilt.data) >= len(option.data):
            # The C daemon takes what is behind the last query for the next option's header.
            return spoilt._replace(data=option.data[: chance.randrange(len(option.data))])
        return spoilt

    def _name(self, export: Export) -> bytes:
        chance = self._chance
        return chance.choice(
            [
                *(export.name.encode(), chance.choice(self._exports).name.encode(), b"", b"none"),
                *(b"a\0b", b"x" * 90, b"x" * 79, b"x" * 80, "ä€".encode(), b"\xff\xfe"),
                *(b"x" * 4096, b"x" * 4097, b"%s%n", b"\n\x1b[1m"),
            ]
        )

    def _meta(self, number: int, export: Export) -> Option:
        chance = self._chance
        name = export.name.encode() if chance.random() < 0.85 else self._name(export)
        queries = [self._query(export) for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 8]))]
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query
        return Option(number, data)

    def _query(self, export: Export) -> bytes:
        chance = self._chance
        if chance.random() < 0.7:
            return chance.choice(export.contexts).encode()
        return chance.choice(
            [
                *(
                    b"base:",
                    b"qemu:",
                    b"qemu:dirty-bitmap:",
                    b"qemu:allocation-depth",
                    b"base",
                    b"",
                ),
                *(b"base:allocationx", b"base:alloc", b"x:y", b"qemu:dirty-bitmap:none", b":"),
                *(
                    b"qemu:allocation-depth:",
                    b"qemu:dirty-bitmap",
                    b"q" * 5000,
                    b"base:\0allocation",
                ),
                *(b"BASE:ALLOCATION", b"\xff", b"qemu", b"q" * 4096),
            ]
        )

    def _spoil(self, option: Option) -> Option:
        """Make something wrong of an option."""
        chance = self._chance
        data = bytearray(option.data)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[chance.randrange(len(data))] = chance.choice([0, 1, 255, chance.randrange(256)])
        elif kind == 1:
            del data[chance.randrange(len(data) + 1) :]
        elif kind == 2:
            data += bytes(chance.randrange(1, 9))
        elif kind == 3:
            return option._replace(magic=b"IHAVEOPX")
        elif kind == 4 and len(data) >= 4:
            data[:4] = struct.pack(">I", chance.choice([0, 1, 4096, 4097, 1 << 31, (1 << 32) - 1]))
        else:
            claimed = chance.choice([(32 << 20) + 1, 1 << 31, (1 << 32) - 1])
            return option._replace(length=claimed)
        return option._replace(data=bytes(data))

    # Requests

    def _batch(self, export: Export) -> list[Request]:
        """Return requests whose order does not matter: one that changes something goes alone."""
        chance = self._chance
        first = self._request(export)
        if export.alone or not self._is_harmless(first) or chance.random() < 0.6:
            return [first]
        more = [self._request(export) for _ in range(chance.randrange(1, 20))]
        return [first, *(other for other in more if self._is_harmless(other))]

    @staticmethod
    def _is_harmless(request: Request) -> bool:
        return request.magic == REQUEST_MAGIC and request.command in (READ, CACHE, STATUS)

    def _range(self, export: Export) -> tuple[int, int]:
        chance = self._chance
        size, block = export.size, export.block
        if chance.random() < 0.15:
            return chance.choice(
                [
                    *(
                        (size, 0),
                        (size, block),
                        (size - block, 2 * block),
                        (0, 0),
                        (size + block, 0),
                    ),
                    *(
                        (1 << 63, block),
                        ((1 << 64) - 1, 1),
                        (0, min(size + 1, 1 << 31)),
                        (block, min(size, 1 << 31)),
                        (0, 1 << 31),
                    ),
                    *((0, (1 << 32) - 1), (size - 1, 1), (1, 1), (0, (32 << 20) + 1), (block, 0)),
                ]
            )
        offset = chance.randrange(size) // block * block
        if chance.random() < 0.3:
            offset = offset // 65536 * 65536
        length = chance.choice(
            [block, 512, 4096, 65536, chance.randrange(1, 200000), min(size, 4 << 20)]
        )
        length = min(length, size - offset) // block * block or block
        if block > 1 and chance.random() < 0.1:
            length += 1
        return offset, length

    def _request(self, export: Export) -> Request:
        chance = self._chance
        command = chance.choices(
            [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS, DISC, 8, 9, 65535],
            [24, 12, 4, 6, 4, 8, 14, 0.3, 1, 1, 1],
        )[0]
        flags = chance.choices(
            [0, 1, 2, 4, 8, 16, 32, 3, 18, 0x8000, 5, 9, 17],
            [30, 5, 4, 4, 4, 4, 1, 2, 2, 1, 1, 1, 1],
        )[0]
        offset, length = self._range(export)
        if command == CACHE and (offset | length) % 4096 and offset + length <= export.size:
            # The C daemon dies of a request that is not aligned as the image demands.
            offset, length = offset // 4096 * 4096, 4096
        if command == FLUSH and chance.random() < 0.7:
            offset = length = 0
        magic = 0x25609512 if chance.random() < 0.005 else REQUEST_MAGIC
        payload = b""
        if command == WRITE:
            length = min(length, 1 << 21)
            payload = self._payload(length)
        elif command == DISC and chance.random() < 0.5:
            offset = length = 0
        return Request(flags, command, offset, length, payload, magic)

    def _payload(self, length: int) -> bytes:
        if self._chance.random() < 0.3:
            return bytes(length)
        return bytes([self._chance.randrange(1, 256)]) * length
