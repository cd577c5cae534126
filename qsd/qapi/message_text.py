# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Messages as text, with what a command returned still in them.

The plain way takes three steps: structs become dicts (:func:`qsd.qapi.convert.to_json`), all
members get QEMU's order (:func:`qsd.qapi.member_order.ordered`), and the outcome is written
(:func:`qsd.qapi.json_writer.dumps`).

The fast path walks once: the members of a struct have an order that depends on its class only, so
its dict is made in that order.  Whatever needs care on the way to text (doubles, for one) makes it
give up, and the plain way is taken.  Tests compare the two.  Benchmark: of the processor time for
the description of 1000 nodes, the steps from structs to text took two thirds before and one third
after.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from qsd.qapi.convert import to_json
from qsd.qapi.json_writer import dumps, dumps_usual
from qsd.qapi.member_order import ordered, ordered_names
from qsd.qapi.model import NullType, Struct, Union, members

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Types whose values are written as they are, by both writers alike.
_AS_THEY_ARE: Final = frozenset({str, int, bool, type(None)})


class _NeedsCareError(Exception):
    """The fast path does not know this kind of value."""


def message_text(message: Mapping[str, Any], *, pretty: bool) -> str:
    """Return the text of a QMP message.

    Args:
        message: Its members; their values may hold structs.
        pretty: Whether to write over several lines.
    """
    if not pretty:
        text = _text_fast(message)
        if text is not None:
            return text
    return _text_slow(message, pretty=pretty)


def _text_fast(message: Mapping[str, Any]) -> str | None:
    try:
        return dumps_usual(_arranged(message))
    except (_NeedsCareError, RecursionError):
        return None


def _text_slow(message: Mapping[str, Any], *, pretty: bool) -> str:
    plain = {
        # The id of a request is plain, and may be nested deeper than a recursion goes.
        name: value if name == "id" else to_json(value)
        for name, value in message.items()
    }
    return dumps(ordered(plain), pretty=pretty)


def _arranged(value: Any) -> Any:
    """Return a plain value, the members of all objects in QEMU's order."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is list or kind is tuple:
        return [_arranged(item) for item in value]
    if kind is dict:
        return {
            name: item if type(item := value[name]) in _AS_THEY_ARE else _arranged(item)
            for name in (value if len(value) < 2 else ordered_names(list(value)))
        }
    if isinstance(value, Union) and value.branch is not None:
        return _in_order({**_struct(value), **_arranged(value.branch)})
    if isinstance(value, Struct):
        return _struct(value)
    if kind is NullType:
        return None
    raise _NeedsCareError


def _struct(value: Struct) -> dict[str, Any]:
    attributes = value.__dict__
    return {
        name: item if type(item) in _AS_THEY_ARE else _arranged(item)
        for attr, name in _plan(type(value))  # type: ignore[arg-type] # classes are hashable
        if (item := attributes[attr]) is not None
    }


@functools.cache
def _plan(cls: type[Struct]) -> tuple[tuple[str, str], ...]:
    """Return attribute and name of all members of a struct, in QEMU's order."""
    attrs = {item.name: item.attr for item in members(cls)}
    return tuple((attrs[name], name) for name in ordered_names(list(attrs)))


def _in_order(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ordered_names(list(found))}
