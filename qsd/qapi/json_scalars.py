# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The scalars of QEMU's JSON dialect: from the bytes of one token to a value."""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

from qsd.errors import QmpError

JsonValue: TypeAlias = Any
"""dict, list, str, int, float, bool or None."""


class JsonError(QmpError):
    """Text that is not JSON; the description is the one that QMP clients see."""


def broken(text: str) -> JsonError:
    """Make the error for text that does not parse."""
    return JsonError(f"JSON parse error, {text}")


_WORDS: Final[dict[bytes, JsonValue]] = {b"true": True, b"false": False, b"null": None}


def parse_word(text: bytes) -> JsonValue:
    """Return the value of a keyword."""
    try:
        return _WORDS[text]
    except KeyError:
        raise broken(f"invalid keyword '{shown(text)}'") from None


def parse_integer(text: bytes | str) -> int | float:
    """Return an int if it fits int64 or uint64, else the nearest double.  "-0" is an integer."""
    if len(text) < 19:
        return int(text)
    if len(text) <= 20:
        number = int(text)
        if -(1 << 63) <= number < 1 << 64:
            return number
    return float(text)


_SIMPLE_ESCAPES: Final = {
    '"': '"', "'": "'", "\\": "\\", "/": "/",
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip
# Patterns as text: hardly a daemon ever needs them, and re keeps what it compiled.
_HEX4: Final = rb"[0-9A-Fa-f]{4}"
_LOW_SURROGATE: Final = rb"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})"
#: Surrogates, and code points that are no characters (Unicode standard, "Noncharacters").
NO_CHARACTER: Final = (
    "[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
)
#: One character, or as much of a broken one as is replaced as a whole.
_SEQUENCE: Final = (
    rb"[\x00-\x7f]+|[\xc0-\xdf][\x80-\xbf]?|[\xe0-\xef][\x80-\xbf]{0,2}|[\xf0-\xf7][\x80-\xbf]{0,3}"
    rb"|[\xf8-\xfb][\x80-\xbf]{0,4}|[\xfc\xfd][\x80-\xbf]{0,5}|[\x80-\xbf\xfe\xff]"
)


def _decoded(data: bytes) -> str:
    """Decode part of a string; U+0000 comes as the two bytes C0 80."""
    if data.isascii():
        return data.decode("ascii")
    try:
        text = data.replace(b"\xc0\x80", b"\0").decode("utf-8")
    except UnicodeDecodeError:
        text = "\uffff"
    if re.search(NO_CHARACTER, text):
        raise broken("invalid UTF-8 sequence in string")
    return text


def shown(data: bytes) -> str:
    """Decode text for a message, up to the first NUL; what is broken becomes U+FFFD."""

    def replaced(match: re.Match[bytes]) -> str:
        try:
            return _decoded(match[0])
        except JsonError:
            return "\ufffd"

    return "".join(map(replaced, re.finditer(_SEQUENCE, data.partition(b"\0")[0])))


def parse_string(token: bytes) -> str:
    """Return the value of a string token, which still has its quotes."""
    body = token[1:-1]
    if b"\\" not in body:
        return _decoded(body)
    pieces: list[str] = []
    position = 0
    # Escapes are ASCII, and UTF-8 keeps ASCII bytes out of longer sequences: split first, decode
    # the parts one by one, so that the first fault in the text is the one that is reported.
    while (backslash := body.find(b"\\", position)) >= 0:
        pieces.append(_decoded(body[position:backslash]))
        letter = chr(body[backslash + 1])
        position = backslash + 2
        if letter == "u":
            character, position = _unicode_escape(token, position + 1)
            pieces.append(character)
            position -= 1
        elif letter in _SIMPLE_ESCAPES:
            pieces.append(_SIMPLE_ESCAPES[letter])
        else:
            raise broken("invalid escape sequence in string")
    pieces.append(_decoded(body[position:]))
    return "".join(pieces)


def _unicode_escape(token: bytes, position: int) -> tuple[str, int]:
    r"""Read the digits at `position`, behind ``\u``; return the character and where it ends."""
    start = position - 2
    digits = re.match(_HEX4, token[position : position + 4])
    code = int(digits[0], 16) if digits else 0xD800
    position += 4
    if 0xD800 <= code < 0xDC00 and (
        low := re.match(_LOW_SURROGATE, token[position : position + 6])
    ):
        code = 0x10000 + ((code & 0x3FF) << 10 | int(low[1], 16) & 0x3FF)
        position += 6
    character = chr(code)
    if re.match(NO_CHARACTER, character):
        raise broken(f"{shown(token[start:position])} is not a valid Unicode character")
    return character, position
