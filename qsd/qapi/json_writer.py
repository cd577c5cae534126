# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Writing JSON as QEMU does."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

from qsd.qapi.json_scalars import NO_CHARACTER, JsonValue, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def dumps(value: JsonValue, *, pretty: bool = False) -> str:
    """Write a value as QEMU does: ASCII only, doubles with 17 digits, members in given order.

    Args:
        value: Plain dicts, lists and scalars.
        pretty: One member to a line, four blanks to a level.
    """
    if not pretty and not isinstance(value, float):
        try:
            text = dumps_usual(value)
        except RecursionError:
            return dumps_slow(value, None)
        if text is not None and not re.search(_DOUBLE, text):
            return text
    return dumps_slow(value, "\n" if pretty else None)


def dumps_usual(value: JsonValue) -> str | None:
    """Write a value without doubles on one line, if that can be done the fast way.

    Returns:
        The text, or None where it has escapes that the standard library writes in another way.

    Raises:
        RecursionError: The value is nested too deep.
    """
    text = "".join(_fast_encode()(value, 0))
    return None if "\\u" in text or "\x7f" in text else text


#: Where the standard library may have written a double, in its own way.
_DOUBLE: Final = r"[\[ ]-?(?:[0-9]+[.e]|Infinity|NaN)"
_ESCAPED: Final = r"[^ !#-\[\]-~]"
_ESCAPES: Final = {
    '"': '\\"', "\\": "\\\\",
    "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
}  # fmt: skip


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code >= 0x10000:
        code -= 0x10000
        return f"\\u{0xD800 | code >> 10:04X}\\u{0xDC00 | code & 0x3FF:04X}"
    return f"\\u{code:04X}"


def _scalar(value: JsonValue) -> str:
    if isinstance(value, str):
        if re.search(NO_CHARACTER, value):
            # Surrogate escapes: bytes that were no text, such as a file's name.
            value = shown(value.encode("utf-8", "surrogateescape").replace(b"\0", b"\xc0\x80"))
        return f'"{re.sub(_ESCAPED, _escape, value)}"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.17g}"
    raise TypeError(f"{value!r} is no JSON value")


def dumps_slow(value: JsonValue, newline: str | None) -> str:
    """Write without recursion, so that values nested as deep as allowed can be echoed.

    Args:
        value: As for :func:`dumps`.
        newline: What separates lines, None for a single line.
    """
    out: list[str] = []
    # Each level: what is left of its members, and its closing bracket.
    levels: list[tuple[Iterator[Any], str]] = []
    first = True
    while True:
        if isinstance(value, dict):
            out.append("{")
            levels.append((iter(value.items()), "}"))
            first = True
        elif isinstance(value, (list, tuple)):
            out.append("[")
            levels.append((iter(value), "]"))
            first = True
        else:
            out.append(_scalar(value))
        while True:
            if not levels:
                return "".join(out)
            items, bracket = levels[-1]
            item: Any = next(items, items)
            if item is not items:
                break
            levels.pop()
            if newline is not None:
                out.append(newline + "    " * len(levels))
            out.append(bracket)
            first = False
        if newline is not None:
            out.append(("" if first else ",") + newline + "    " * len(levels))
        elif not first:
            out.append(", ")
        first = False
        if bracket == "}":
            out.append(f"{_scalar(item[0])}: ")
            value = item[1]
        else:
            value = item


@functools.cache
def _fast_encode() -> Callable[[JsonValue, int], tuple[str, ...]]:
    """Make the encoder of the fast path: json.dumps() without the set-up it does for each call."""
    try:
        # The module json would bring its decoder, which a daemon without clients does not need.
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:  # an interpreter without the accelerator
        from json import JSONEncoder

        whole = JSONEncoder(check_circular=False, default=_scalar).encode
        return lambda value, _indent: (whole(value),)
    encode: Callable[[JsonValue, int], tuple[str, ...]]
    encode = make_encoder(
        None, _scalar, encode_basestring_ascii, None, ": ", ", ", False, False, True
    )
    return encode
