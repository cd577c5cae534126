# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""QEMU's dialect of JSON, as text.

Input is a stream without framing: values follow each other, with or without white space between.
Beyond RFC 8259 the dialect has strings in single quotes and the escape ``\'``; it lacks ``\u``
escapes and raw characters that are no Unicode characters (lone surrogates, U+FDD0..U+FDEF, U+xxFFFE
and U+xxFFFF), exponents directly after a lone zero, and control characters in strings.

A complete, plain message takes a fast path through the standard library (:func:`_parse_fast`); the
state machines of :mod:`qsd.qapi.json_machine` are the slow and authoritative version.  Tests
compare the two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from qsd.qapi.json_scalars import JsonError, JsonValue, parse_integer
from qsd.qapi.json_writer import dumps

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

    from qsd.qapi.json_machine import JsonMachine

__all__ = ["JsonError", "JsonStream", "JsonValue", "dumps", "loads"]

MAX_FAST: Final = 1 << 20
"""Bytes; a longer chunk is not worth a second try."""
MAX_FAST_NESTING: Final = 1024
"""Levels; the limit of the state machines, which has to be respected here, too."""


class JsonStream:
    """Bytes in, values and errors out.

    Memory is bounded by the limits of the state machines, whatever is fed.
    """

    __slots__ = ("_machine",)

    def __init__(self) -> None:
        self._machine: JsonMachine | None = None

    def feed(self, data: bytes) -> list[JsonValue | JsonError]:
        """Take the next bytes and return what they complete, in order.

        Values and errors are told apart by ``isinstance(item, JsonError)``.
        """
        machine = self._machine
        results: list[JsonValue | JsonError] = []
        if len(data) <= MAX_FAST and (machine is None or machine.is_idle):
            results, data = _parse_fast(data)
            if not data:
                return results
        if machine is None:
            # Most clients get by without, and so does a daemon that nobody talks to.
            from qsd.qapi.json_machine import JsonMachine

            machine = self._machine = JsonMachine()
        return results + machine.feed(data)

    def finish(self) -> list[JsonValue | JsonError]:
        """Say that no more bytes will come; return what that completes or breaks."""
        return [] if self._machine is None else self._machine.finish()


def loads(text: str | bytes) -> JsonValue:
    """Parse text that holds exactly one value, for example from the command line.

    Bytes of the command line that are no UTF-8 are expected as Python's surrogate escapes.

    Raises:
        JsonError: The text is broken, or holds no value or several.
    """
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    stream = JsonStream()
    found = stream.feed(data) + stream.finish()
    if not found:
        raise JsonError("Expecting a JSON value")
    if isinstance(found[0], JsonError):
        raise found[0]
    if len(found) > 1:
        raise JsonError("Expecting at most one JSON value")
    return found[0]


class _NotPlain(Exception):
    """The fast path met something that it leaves to the slow one."""


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotPlain
    return found


def _refuse(_text: str) -> JsonValue:
    raise _NotPlain


def _float(text: str) -> float:
    if text.startswith(("0e", "0E", "-0e", "-0E")):
        raise _NotPlain
    return float(text)


@functools.cache
def _fast_scan() -> Callable[[str, int], tuple[JsonValue, int]]:
    """Make the scanner of the fast path; importing json takes 3 ms, so only when it is needed."""
    import json

    decoder = json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_int=parse_integer,
        parse_float=_float,
        parse_constant=_refuse,
    )
    scan: Callable[[str, int], tuple[JsonValue, int]]
    scan = decoder.scan_once  # type: ignore[attr-defined]
    return scan


@functools.cache
def _space() -> Callable[[str, int], re.Match[str] | None]:
    """Make what matches white space from a position on."""
    import re

    return re.compile(r"[ \t\r\n]*").match


def _parse_fast(data: bytes) -> tuple[list[JsonValue | JsonError], bytes]:
    r"""Parse the complete objects at the beginning of `data`, as far as they are plain.

    Plain is what this dialect and the standard library understand alike: ASCII without ``\u``
    escapes, unique keys, nesting that is certainly within the limit.  The state
    machines read everything else.  (A request of 80 bytes: 5 us here, 60 us there.)

    Returns:
        The values, and the bytes that are left to the slow path.
    """
    results: list[JsonValue | JsonError] = []
    if (
        not data.isascii()
        or b"\\u" in data
        or data.count(b"[") + data.count(b"{") > MAX_FAST_NESTING
    ):
        return results, data
    scan, space = _fast_scan(), _space()
    text = data.decode("ascii")
    position = space(text, 0).end()  # type: ignore[union-attr]
    # Only what begins with a brace: other values end where the next byte says so.
    while text.startswith("{", position):
        try:
            value, end = scan(text, position)
        except (ValueError, StopIteration, RecursionError, _NotPlain):
            break
        results.append(value)
        position = space(text, end).end()  # type: ignore[union-attr]
    return results, data[position:]
