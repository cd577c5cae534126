# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The state machines that read QEMU's dialect of JSON, byte by byte and token by token.

**From bytes to tokens.**  A byte that can continue no token is an error: all tokens that wait are
dropped, the broken token is reported as "stray", and the lexer skips to the next structural
character or control character, which it then reads as usual.

**From tokens to values.**  Tokens are judged as they come, but the verdict is announced only when
brackets and braces, counted separately, are balanced again or one of them closes too often.  So a
broken line yields one error unless it holds several broken values.

**Limits** bound what a peer can make us keep: :data:`MAX_NESTING`, :data:`MAX_TOKENS`,
:data:`MAX_TEXT`.  Past one of them everything that waits is dropped, an error is reported, and the
next byte begins a new value.
"""

from __future__ import annotations

import re
from typing import Any, Final

from qsd.qapi.json_scalars import (
    JsonError,
    JsonValue,
    broken,
    parse_integer,
    parse_string,
    parse_word,
    shown,
)

MAX_NESTING: Final = 1024
"""Levels of brackets and braces; as QEMU."""
MAX_TOKENS: Final = 2 << 20
"""Tokens in one value; as QEMU."""
MAX_TEXT: Final = 64 << 20
"""Bytes of all tokens of one value; as QEMU."""


_START, _STRING, _ESCAPE, _WORD, _SKIP = range(5)
_NEG, _ZERO, _INT, _DOT, _FRAC, _EXP, _EXP_SIGN, _EXP_INT = range(5, 13)

# What keeps the lexer in its state.  0xFE and 0xFF never occur in UTF-8 and end every token.
_NOTHING: Final = re.compile(rb"")
_DIGITS: Final = re.compile(rb"[0-9]*")
_RUNS: Final = {
    _START: re.compile(rb"[ \t\r\n]*"),
    _ESCAPE: _NOTHING,
    _WORD: re.compile(rb"[a-z]*"),
    _SKIP: re.compile(rb"[^\x00-\x08\x0a-\x1f{}\[\]:,\xfe\xff]*"),
    _NEG: _NOTHING,
    _ZERO: _NOTHING,
    _INT: _DIGITS,
    _DOT: _NOTHING,
    _FRAC: _DIGITS,
    _EXP: _NOTHING,
    _EXP_SIGN: _NOTHING,
    _EXP_INT: _DIGITS,
}
_STRING_RUNS: Final = {
    0x22: re.compile(rb'[^"\\\x00-\x1f\xfe\xff]*'),
    0x27: re.compile(rb"[^'\\\x00-\x1f\xfe\xff]*"),
}


def _moves() -> list[dict[int, int]]:
    """Make the transition table: state and byte to the next state, for bytes that go on."""
    digits = range(0x30, 0x3A)
    to: list[dict[int, int]] = [{} for _ in range(13)]
    to[_START] = {0x22: _STRING, 0x27: _STRING, 0x2D: _NEG, 0x30: _ZERO}
    to[_START].update(dict.fromkeys(range(0x31, 0x3A), _INT))
    to[_START].update(dict.fromkeys(range(0x61, 0x7B), _WORD))
    to[_STRING] = {0x5C: _ESCAPE}
    to[_ESCAPE] = dict.fromkeys(range(0x20, 0xFE), _STRING)
    to[_NEG] = {0x30: _ZERO, **dict.fromkeys(range(0x31, 0x3A), _INT)}
    to[_ZERO] = {0x2E: _DOT}
    to[_INT] = {0x2E: _DOT, 0x45: _EXP, 0x65: _EXP}
    to[_DOT] = dict.fromkeys(digits, _FRAC)
    to[_FRAC] = {0x45: _EXP, 0x65: _EXP}
    to[_EXP] = {0x2B: _EXP_SIGN, 0x2D: _EXP_SIGN, **dict.fromkeys(digits, _EXP_INT)}
    to[_EXP_SIGN] = dict.fromkeys(digits, _EXP_INT)
    return to


_MOVES: Final = _moves()
_STRUCTURAL: Final = frozenset(b"{}[]:,")
_DIGIT_BYTES: Final = frozenset(b"0123456789")

# Kinds of tokens besides the structural ones, which are their own byte.
_T_STRING, _T_INT, _T_FLOAT, _T_WORD = 1, 2, 3, 4
#: States in which a token may end before a byte that does not belong to it.
_ENDINGS: Final = {_ZERO: _T_INT, _INT: _T_INT, _FRAC: _T_FLOAT, _EXP_INT: _T_FLOAT, _WORD: _T_WORD}


class JsonMachine:
    """Bytes in, values and errors out.

    Memory is bounded by the limits above, whatever is fed.
    """

    __slots__ = ("_builder", "_lexer")

    def __init__(self) -> None:
        self._builder = _Builder()
        self._lexer = _Lexer(self._builder)

    @property
    def is_idle(self) -> bool:
        """Whether what was fed ended with a value or with white space behind it."""
        return self._lexer.is_idle and self._builder.is_idle

    def feed(self, data: bytes) -> list[JsonValue | JsonError]:
        """Take the next bytes and return what they complete, in order."""
        self._lexer.feed(data)
        return self._builder.take()

    def finish(self) -> list[JsonValue | JsonError]:
        """Say that no more bytes will come; return what that completes or breaks."""
        self._lexer.finish()
        self._builder.finish()
        return self._builder.take()


class _Lexer:
    """The state machine from bytes to tokens."""

    __slots__ = ("_builder", "_carry", "_quote", "_state")

    def __init__(self, builder: _Builder) -> None:
        self._builder = builder
        self._state = _START
        self._quote = 0
        self._carry: list[bytes] = []  # the current token's beginning, from earlier chunks

    @property
    def is_idle(self) -> bool:
        """Whether no token is begun and nothing is being skipped."""
        return self._state == _START

    def feed(self, data: bytes) -> None:
        """Give every token that `data` completes to the builder."""
        state = self._state
        builder = self._builder
        position = start = 0
        length = len(data)
        while True:
            run = _STRING_RUNS[self._quote] if state == _STRING else _RUNS[state]
            position = run.match(data, position).end()  # type: ignore[union-attr]
            if state == _START:
                start = position
            if position >= length:
                break
            byte = data[position]
            following = _MOVES[state].get(byte)
            if following is not None:
                if state == _START:
                    self._quote = byte
                state = following
                position += 1
            elif state == _START:
                position += 1
                if byte in _STRUCTURAL:
                    builder.token(byte, b"")
                else:
                    state = self._stray(data[start:position])
            elif state == _STRING and byte == self._quote:
                position += 1
                builder.token(_T_STRING, self._text(data[start:position]))
                state = _START
            elif state == _SKIP:
                state = _START
            elif state in _ENDINGS and not (state == _ZERO and byte in _DIGIT_BYTES):
                builder.token(_ENDINGS[state], self._text(data[start:position]))
                state = _START
            else:
                position += 1
                state = self._stray(self._text(data[start:position]))
        if state not in (_START, _SKIP):
            if builder.would_overflow(length - start):
                self._carry.clear()
                builder.overflow()
                state = _START
            else:
                self._carry.append(data[start:])
        self._state = state

    def finish(self) -> None:
        """Take the end of input for the end of the current token."""
        if self._state in _ENDINGS:
            self._builder.token(_ENDINGS[self._state], self._text(b""))
        elif self._state not in (_START, _SKIP):
            self._stray(self._text(b""))
        self._state = _START

    def _text(self, tail: bytes) -> bytes:
        if not self._carry:
            return tail
        self._carry.append(tail)
        text = b"".join(self._carry)
        self._carry.clear()
        return text

    def _stray(self, text: bytes) -> int:
        self._builder.fail(f"JSON parse error, stray '{shown(text)}'")
        return _SKIP


# What may come next in an open container.
_LIST_FIRST, _LIST_ITEM, _LIST_COMMA = range(3)
_KEY_FIRST, _KEY, _COLON, _VALUE, _DICT_COMMA = range(3, 8)


class _Builder:
    """From tokens to values."""

    __slots__ = (
        "_braces", "_brackets", "_count", "_error", "_pending", "_size", "_stack", "_value",
        "results",
    )  # fmt: skip

    def __init__(self) -> None:
        self.results: list[JsonValue | JsonError] = []
        self._pending = 0
        self._reset()

    def _reset(self) -> None:
        self._stack: list[tuple[Any, list[Any]]] = []  # container, [what may come next, key]
        self._braces = self._brackets = 0
        self._count = self._size = 0
        self._pending = 0
        self._error: str | None = None
        self._value: JsonValue = None

    @property
    def is_idle(self) -> bool:
        """Whether no token is waiting."""
        return not self._count

    def take(self) -> list[JsonValue | JsonError]:
        """Return what was completed since the last call."""
        results, self.results = self.results, []
        return results

    def fail(self, text: str) -> None:
        """Drop what waits and report `text`."""
        self.results.append(JsonError(text))
        self._reset()

    def would_overflow(self, more: int) -> bool:
        """Count `more` bytes of an unfinished token; tell whether it grew too long."""
        self._pending += more
        return self._size + self._pending > MAX_TEXT

    def overflow(self) -> None:
        """Drop what waits because of its size."""
        self.fail("JSON token size limit exceeded")

    def token(self, kind: int, text: bytes) -> None:
        """Take the next token and announce the value or error that it completes."""
        if kind == 0x7B:
            self._braces += 1
        elif kind == 0x5B:
            self._brackets += 1
        elif kind == 0x7D:
            self._braces -= 1
        elif kind == 0x5D:
            self._brackets -= 1
        self._size += len(text) or 1
        self._count += 1
        self._pending = 0
        if self._size > MAX_TEXT:
            self.overflow()
        elif self._count > MAX_TOKENS:
            self.fail("JSON token count limit exceeded")
        elif self._braces + self._brackets > MAX_NESTING:
            self.fail("JSON nesting depth limit exceeded")
        else:
            if self._error is None:
                try:
                    self._step(kind, text)
                except JsonError as exc:
                    self._error = exc.desc
                    self._stack.clear()  # its memory is of no more use
            if self._braces < 0 or self._brackets < 0 or not (self._braces or self._brackets):
                self._announce()

    def finish(self) -> None:
        """Report a value that the end of input cut off."""
        if self._count:
            if self._error is None:
                self._error = "JSON parse error, premature EOI"
            self._announce()

    def _announce(self) -> None:
        self.results.append(self._value if self._error is None else JsonError(self._error))
        self._reset()

    def _step(self, kind: int, text: bytes) -> None:
        """Put one token in its place.

        Raises:
            JsonError: It has none.
        """
        if not self._stack:
            self._begin(kind, text)
            return
        container, frame = self._stack[-1]
        expected = frame[0]
        if expected == _LIST_COMMA:
            if kind == 0x2C:
                frame[0] = _LIST_ITEM
            elif kind == 0x5D:
                self._close(container)
            else:
                raise broken("expected separator in list")
        elif expected == _DICT_COMMA:
            if kind == 0x2C:
                frame[0] = _KEY
            elif kind == 0x7D:
                self._close(container)
            else:
                raise broken("expected separator in dict")
        elif expected == _COLON:
            if kind != 0x3A:
                raise broken("missing : in object pair")
            frame[0] = _VALUE
        elif (expected == _LIST_FIRST and kind == 0x5D) or (
            expected == _KEY_FIRST and kind == 0x7D
        ):
            self._close(container)
        else:
            self._begin(kind, text)

    def _begin(self, kind: int, text: bytes) -> None:
        if kind == 0x7B:
            self._stack.append(({}, [_KEY_FIRST, None]))
        elif kind == 0x5B:
            self._stack.append(([], [_LIST_FIRST, None]))
        elif kind == _T_STRING:
            self._complete(parse_string(text))
        elif kind == _T_INT:
            self._complete(parse_integer(text))
        elif kind == _T_FLOAT:
            self._complete(float(text))
        elif kind == _T_WORD:
            self._complete(parse_word(text))
        else:
            raise broken("expecting value")

    def _close(self, value: JsonValue) -> None:
        self._stack.pop()
        self._complete(value)

    def _complete(self, value: JsonValue) -> None:
        if not self._stack:
            self._value = value
            return
        container, frame = self._stack[-1]
        expected = frame[0]
        if expected <= _LIST_ITEM:
            container.append(value)
            frame[0] = _LIST_COMMA
        elif expected == _VALUE:
            if frame[1] in container:
                raise broken("duplicate key")
            container[frame[1]] = value
            frame[0] = _DICT_COMMA
        else:
            if not isinstance(value, str):
                raise broken("key is not a string in object")
            frame[0] = _COLON
            frame[1] = value
