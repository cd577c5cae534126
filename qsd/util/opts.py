# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The older option syntax, ``value,key=value,flag``, of ``--chardev`` and ``--trace``.

Unlike keyval syntax (:mod:`qsd.qapi.keyval`) it is flat, knows the type of each value by its name,
and still takes flags: ``server`` means ``server=on`` and ``nowait`` means ``wait=off``, both with a
warning.  A comma in a value is written twice.  qemu(1), "-chardev", shows it in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qsd.errors import QmpError
from qsd.util.ids import check_id
from qsd.util.namedtuple import NamedTuple

STRING: Final = "str"
BOOL: Final = "bool (on/off)"
NUMBER: Final = "num"
SIZE: Final = "size"

Value = str | bool | int

_U64: Final = 1 << 64
_SIZE_HINT: Final = (
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)


class HelpRequest(Exception):
    """An option asks for help instead of setting something; its user gets `text` and exits.

    Attributes:
        text: The help, whole lines.
        status: The exit status of the program.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class OptsSyntax(NamedTuple):
    """The parameters of one option.

    Attributes:
        name: What its help text calls it.
        implied_key: The parameter that a first word without ``=`` stands for.
        types: The type of each parameter; others are refused.
    """

    name: str
    implied_key: str
    types: Mapping[str, str]

    def help_text(self) -> str:
        """Return the list of parameters that the ``help`` flag asks for."""
        lines = [f"  {name}=<{self.types[name]}>\n" for name in sorted(self.types)]
        return f"{self.name} options:\n" + "".join(lines)


class Opts(NamedTuple):
    """A parsed option.

    Attributes:
        id: The value of ``id``, or None.
        values: All other parameters; the last of several with the same name counts.
        wants_help: Whether the flag ``help`` or ``?`` stands among them.
    """

    id: str | None
    values: dict[str, Value]
    wants_help: bool


class _Word(NamedTuple):
    key: str
    text: str
    #: What the user typed where that was a flag, "" where it was key=value.
    flag: str


def _split(text: str, implied_key: str) -> list[_Word]:
    words: list[_Word] = []
    position = 0
    while position < len(text):
        end = position
        while end < len(text) and text[end] not in ",=":
            end += 1
        if end < len(text) and text[end] == "=":
            key = text[position:end]
            value, position = _read_value(text, end + 1)
            words.append(_Word(key, value, ""))
        elif not words and implied_key:
            value, position = _read_value(text, position)
            words.append(_Word(implied_key, value, ""))
        else:
            flag, position = _read_value(text, position)
            if flag.startswith("no"):
                words.append(_Word(flag[2:], "off", flag))
            else:
                words.append(_Word(flag, "on", flag))
    return words


def _read_value(text: str, position: int) -> tuple[str, int]:
    """Read up to the next single comma; return the value and the position behind that comma."""
    parts: list[str] = []
    while True:
        comma = text.find(",", position)
        if comma < 0:
            parts.append(text[position:])
            return "".join(parts), len(text)
        parts.append(text[position:comma])
        position = comma + 1
        if text[position : position + 1] != ",":
            return "".join(parts), position
        parts.append(",")
        position += 1


def parse_opts(syntax: OptsSyntax, text: str, warn: Callable[[str], None]) -> Opts:
    """Parse and check one option.

    Args:
        syntax: The parameters that exist.
        text: What the user gave.
        warn: Told about deprecated spellings, possibly before an error is raised.

    Raises:
        QmpError: The first thing that is wrong: the id, then each parameter in turn.
    """
    words = _split(text, syntax.implied_key)
    identifier = next((word.text for word in words if word.key == "id" and not word.flag), None)
    if identifier is not None:
        check_id(identifier)
    values: dict[str, Value] = {}
    wants_help = False
    for word in words:
        if word.flag in ("help", "?"):
            wants_help = True
            continue
        if word.flag:
            warn(
                f"short-form boolean option '{word.flag}' deprecated\n"
                f"Please use {word.key}={word.text} instead"
            )
        if word.key == "id":
            continue
        if word.key not in syntax.types:
            raise QmpError(f"Invalid parameter '{word.key}'")
        values[word.key] = _convert(word.key, syntax.types[word.key], word.text)
    return Opts(identifier, values, wants_help)


def _convert(key: str, wanted: str, text: str) -> Value:
    if wanted == BOOL:
        if text in ("on", "yes", "true", "y"):
            return True
        if text in ("off", "no", "false", "n"):
            return False
        raise QmpError(f"Parameter '{key}' expects 'on' or 'off'")
    if wanted == NUMBER:
        return _number(key, text)
    if wanted == SIZE:
        return _size(key, text)
    return text


def _number(key: str, text: str) -> int:
    """Read a 64-bit number in C notation; a minus sign wraps, as strtoull(3) does."""
    digits = text.lstrip()
    try:
        number = int(digits, 8 if digits.lstrip("+-")[:1] == "0" and digits.isdigit() else 0)
    except ValueError:
        raise QmpError(f"Parameter '{key}' expects a number") from None
    if "_" in digits or digits != digits.rstrip():
        raise QmpError(f"Parameter '{key}' expects a number")
    if abs(number) >= _U64:
        raise QmpError(f"Value '{text}' is too large for parameter '{key}'")
    return number % _U64


def _size(key: str, text: str) -> int:
    from qsd.util.units import SizeRangeError, parse_size

    try:
        return parse_size(text)
    except SizeRangeError:
        raise QmpError(f"Value '{text}' is out of range for parameter '{key}'") from None
    except ValueError:
        raise QmpError(
            f"Parameter '{key}' expects a non-negative number below 2^64", hint=_SIZE_HINT
        ) from None
