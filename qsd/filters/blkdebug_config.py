# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Rules of blkdebug and the files that hold them (QEMU's developer documentation, "Block I/O error
injection using blkdebug").

A file looks like an ini file but is read by simpler rules::

    [inject-error]
    event = "l2_update"        only quoted values count; the rest of a line is not looked at
    errno = "28"

    [set-state]
    event = "l2_load"
    new_state = "2"
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final, get_args

from qsd.errors import QmpError, describe_path_error
from qsd.qapi.member_order import ordered_names
from qsd.qapi.schema.block_options import BlkdebugEvent, BlkdebugIOType
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qsd.qapi.schema.block_options import (
        BlkdebugInjectErrorOptions,
        BlkdebugSetStateOptions,
    )

_GROUP_WITH_ID: Final = re.compile(r'\[(\S{1,63}+) +"[^"]{1,63}')
_GROUP: Final = re.compile(r"\[([^\]]{1,63})")
_VALUE: Final = re.compile(r'\s*(\S{1,63}+)\s*=\s*"([^"]{1,1023})')
_KEY: Final = re.compile(r"\s*(\S{1,63}+)")
_SECTOR: Final = 512

_NUMBERS: Final = frozenset({"errno", "sector", "state", "new_state"})
_FLAGS: Final = frozenset({"once", "immediately"})
_GROUPS: Final[Mapping[str, frozenset[str]]] = {
    "inject-error": frozenset(
        {"event", "state", "iotype", "errno", "sector", "once", "immediately"}
    ),
    "set-state": frozenset({"event", "state", "new_state"}),
}
#: What a rule without `iotype` makes fail: everything but questions.
_ANY_IOTYPE: Final = frozenset({"read", "write", "write-zeroes", "discard", "flush"})


class InjectError(NamedTuple):
    """Makes requests fail from an event on.

    Attributes:
        event: The event that arms it.
        state: The state in which the event counts; 0 for any.
        iotypes: What fails.
        errno: How.
        offset: A byte that the request must touch; None for any.
        once: Whether it fires only once.
    """

    event: str
    state: int
    iotypes: frozenset[str]
    errno: int
    offset: int | None
    once: bool


class SetState(NamedTuple):
    """Changes the state at an event."""

    event: str
    state: int
    new_state: int


def inject_error(options: BlkdebugInjectErrorOptions) -> InjectError:
    """Make a rule of its options."""
    sector = -1 if options.sector is None else options.sector
    return InjectError(
        options.event,
        options.state or 0,
        _ANY_IOTYPE if options.iotype is None else frozenset({options.iotype}),
        errno.EIO if options.errno is None else options.errno,
        None if sector == -1 else sector * _SECTOR,
        bool(options.once),
    )


def set_state(options: BlkdebugSetStateOptions) -> SetState:
    """Make a rule of its options."""
    return SetState(options.event, options.state or 0, options.new_state)


def _parse_number(name: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise QmpError(f"Parameter '{name}' expects a number") from None


def _parse_flag(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise QmpError(f"Parameter '{name}' expects 'on' or 'off'")
    return text == "on"


def _checked(group: str, name: str, text: str) -> int | bool | str:
    """Return the value of an option.

    Raises:
        QmpError: The group has no such option, or the value does not suit it.
    """
    if name not in _GROUPS[group]:
        raise QmpError(f"Invalid parameter '{name}'")
    if name in _NUMBERS:
        return _parse_number(name, text)
    if name in _FLAGS:
        return _parse_flag(name, text)
    return text


def parse_groups(lines: Iterable[str]) -> list[tuple[str, dict[str, int | bool | str]]]:
    """Read a file into groups of options.

    Raises:
        QmpError: It is malformed.
    """
    groups: list[tuple[str, dict[str, int | bool | str]]] = []
    texts: dict[str, str] = {}  # of the last group, which is looked at when it ends
    for line in lines:
        if line in ("\n", "") or line.startswith("#"):
            continue
        if found := _GROUP_WITH_ID.match(line) or _GROUP.match(line):
            _absorb(groups, texts)
            if found[1] not in _GROUPS:
                raise QmpError(f"There is no option group '{found[1]}'")
            groups.append((found[1], {}))
            continue
        pair = _VALUE.match(line)
        key = pair or _KEY.match(line)
        if key is None:
            raise QmpError("parse error")
        if not groups:
            raise QmpError("no group defined")
        texts[key[1]] = pair[2] if pair else ""
    _absorb(groups, texts)
    return groups


def _absorb(groups: list[tuple[str, dict[str, int | bool | str]]], texts: dict[str, str]) -> None:
    """Make options of the texts of the last group, in the order in which the C daemon would."""
    for name in ordered_names(list(texts)):
        group, options = groups[-1]
        options[name] = _checked(group, name, texts[name])
    texts.clear()


def _one_of(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise QmpError(f"invalid parameter value: {value}")
    return str(value)


def parse_config(lines: Iterable[str]) -> tuple[list[InjectError], list[SetState]]:
    """Read the rules of a file.

    Raises:
        QmpError: It is malformed.
    """
    groups = parse_groups(lines)
    errors = [_error_rule(options) for kind, options in groups if kind == "inject-error"]
    states = [_state_rule(options) for kind, options in groups if kind == "set-state"]
    return errors, states


def _event_of(options: Mapping[str, int | bool | str]) -> str:
    if "event" not in options:
        raise QmpError("Missing event name for rule")
    return _one_of(options["event"], get_args(BlkdebugEvent))


def _error_rule(options: Mapping[str, int | bool | str]) -> InjectError:
    event = _event_of(options)
    iotypes = _ANY_IOTYPE
    if "iotype" in options:
        iotypes = frozenset({_one_of(options["iotype"], get_args(BlkdebugIOType))})
    sector = int(options.get("sector", -1))
    return InjectError(
        event,
        int(options.get("state", 0)),
        iotypes,
        int(options.get("errno", errno.EIO)),
        None if sector == -1 else sector * _SECTOR,
        bool(options.get("once", False)),
    )


def _state_rule(options: Mapping[str, int | bool | str]) -> SetState:
    event = _event_of(options)
    return SetState(event, int(options.get("state", 0)), int(options.get("new_state", 0)))


def read_config(path: str) -> tuple[list[InjectError], list[SetState]]:
    """Read a file of rules.

    Raises:
        QmpError: It cannot be read, or is malformed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # directories, too
    except (OSError, ValueError) as exc:
        reason = describe_path_error(exc)
        raise QmpError(f"Could not read blkdebug config file: {reason}") from exc
    try:
        with open(
            descriptor, encoding="utf-8", errors="surrogateescape", newline="\n", closefd=False
        ) as file:
            return parse_config(file.readlines())
    except OSError as exc:
        raise QmpError(f"Cannot read config file: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
