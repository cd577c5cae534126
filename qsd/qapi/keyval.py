# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""QEMU's keyval syntax: ``driver=qcow2,file.driver=file,children.0=a`` to a tree of strings.

The grammar, as the manual (qemu(1), "-blockdev") and QEMU 7.2 have it::

    options   = [ implied ] { "," option } [ "," ]
    implied   = value without commas and "="; stands for the implied key
    option    = key "=" value  |  "help"  |  "?"
    key       = name { "." ( name | number ) }
    name      = letter { letter | digit | "-" | "_" }
              | "__" [ domain ] "_" letter { letter | digit | "-" | "_" }        vendor extensions
    value     = { any character but ","  |  ",," }                    ",," is one comma

A part of a key has at most 127 characters.  Parts between dots make nested objects; where all parts
of one object are numbers, it is a list.  The last value of a key that is given twice counts.
"""

from __future__ import annotations

import re
from typing import Final

from qsd.errors import QmpError

__all__ = ["Tree", "parse_keyval", "parse_keyval_help"]

Tree = dict[str, object]
"""Nested dicts and lists whose leaves are strings."""

MAX_PART: Final = 127
# Patterns as text: the keys of most options are plain words.
_NAME: Final = r"(?:__[A-Za-z0-9.-]*_)?[A-Za-z][A-Za-z0-9_-]*"
_NUMBER: Final = r"[0-9]+"


def parse_keyval(text: str, implied_key: str | None = None) -> Tree:
    """Return the tree that an option's argument describes.

    Args:
        text: The argument.
        implied_key: What a first word without ``=`` is the value of.

    Raises:
        QmpError: It is malformed, or it asks for help and there is none.
    """
    tree, wants_help = parse_keyval_help(text, implied_key)
    if wants_help:
        raise QmpError("Help is not available for this option")
    return tree


def parse_keyval_help(text: str, implied_key: str | None = None) -> tuple[Tree, bool]:
    """Like :func:`parse_keyval`, for options that have help.

    Returns:
        The tree and whether ``help`` or ``?`` is among the options.  They count only where no ``=``
        follows, in any place, the first one included.
    """
    tree: Tree = {}
    wants_help = False
    position = 0
    first = True
    while position < len(text):
        end = _end_of_key(text, position)
        key = text[position:end]
        has_value = text[end : end + 1] == "="
        if not has_value and key in ("help", "?"):
            wants_help = True
            position = end + 1
        elif first and implied_key is not None and not has_value and key:
            _put(tree, [implied_key], key)
            position = end + 1
        else:
            place, path = _descend(tree, key)
            if not has_value:
                raise QmpError(f"Expected '=' after parameter '{key}'")
            value, position = _read_value(text, end + 1)
            _put(place, path, value)
        first = False
    return _with_lists(tree), wants_help


def _end_of_key(text: str, start: int) -> int:
    """Return where the key that starts at `start` ends: at a comma, an equals sign or the end."""
    end = start
    while end < len(text) and text[end] not in ",=":
        end += 1
    return end


def _descend(tree: Tree, key: str) -> tuple[Tree, list[str]]:
    """Walk down to where the value of `key` belongs, creating the dicts on the way.

    Returns:
        The dict that the value belongs in, and the parts of the key.

    Raises:
        QmpError: It is no key, or a part of it has a value already.  The parts are judged from left
            to right, each once the next one has been found well-formed.
    """
    parts: list[str] = []
    place = tree
    position = 0
    while True:
        part = _first_part(key[position:], may_be_number=bool(parts))
        end = position + len(part)
        if not part or key[end : end + 1] not in ("", "."):
            raise QmpError(f"Invalid parameter '{key}'")
        if len(part) > MAX_PART:
            what = "Parameter" if part == key else "Parameter fragment"
            raise QmpError(f"{what} '{part}' is too long")
        if parts:
            inner = place.setdefault(parts[-1], {})
            if not isinstance(inner, dict):
                raise _inconsistent(parts)
            place = inner
        parts.append(part)
        position = end + 1
        if end == len(key):
            return place, parts


def _first_part(key: str, *, may_be_number: bool) -> str:
    """Return as much of a key's start as is a name or a number, "" if it is neither."""
    word = key.partition(".")[0]
    if word.isascii() and word.isalpha():
        return word  # the usual case, without importing re
    match = re.match(_NAME, key)
    if match is None and may_be_number:
        match = re.match(_NUMBER, key)
    return match[0] if match else ""


def _read_value(text: str, start: int) -> tuple[str, int]:
    """Return the value that starts at `start`, and where the next option starts."""
    pieces: list[str] = []
    while True:
        comma = text.find(",", start)
        if comma < 0:
            pieces.append(text[start:])
            return "".join(pieces), len(text)
        if text[comma + 1 : comma + 2] != ",":
            pieces.append(text[start:comma])
            return "".join(pieces), comma + 1
        pieces.append(text[start : comma + 1])
        start = comma + 2


def _put(place: Tree, path: list[str], value: str) -> None:
    """Store `value` in `place` under the last part of `path`.

    Raises:
        QmpError: There is a dict already.
    """
    if isinstance(place.get(path[-1]), dict):
        raise _inconsistent(path)
    place[path[-1]] = value


def _inconsistent(parts: list[str]) -> QmpError:
    """Make the error for a path that is used as a value and as an object."""
    return QmpError(f"Parameters '{'.'.join(parts)}.*' used inconsistently")


def _with_lists(tree: Tree) -> Tree:
    """Return `tree` with lists for the dicts whose keys are numbers.

    Raises:
        QmpError: One of them is no list; of several, the one that QEMU comes upon first.
    """
    try:
        return {key: _listed(value, key) for key, value in tree.items()}
    except QmpError:
        from qsd.qapi.member_order import ordered

        return {key: _listed(value, key) for key, value in ordered(tree).items()}


def _listed(value: object, path: str) -> object:
    """Turn dicts whose keys are numbers into lists, innermost first.

    Raises:
        QmpError: Numbers and names are mixed, or a number is missing.
    """
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(item, f"{path}.{key}") for key, item in value.items()}
    numbers = {int(key): item for key, item in inner.items() if key[0].isdigit()}
    if not numbers:
        return inner
    if len(numbers) < len(inner):
        raise QmpError(f"Parameters '{path}.*' used inconsistently")
    for index in range(len(numbers)):
        if index not in numbers:
            raise QmpError(f"Parameter '{path}.{index}' missing")
    return [numbers[index] for index in range(len(numbers))]
