# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""query-qmp-schema from the declarations.

QMP reference, "QMP introspection": the reply lists commands and events, then the types that they
use, each once.  The names of structs, unions, enums and alternates are no part of the interface and
are replaced by numbers; an array is named after its element, in brackets; integers of every width
are "int".  Types follow in the order in which they are first mentioned, which is also the order in
which QEMU numbers them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.qapi import schema
from qsd.qapi.model import (
    AlternateType,
    ArrayType,
    BuiltinType,
    CommandDecl,
    Empty,
    EnumType,
    Event,
    Member,
    StructType,
    Type,
    Union,
    branch_type,
    members,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["query_qmp_schema"]

Entry = dict[str, Any]

_LEFT_OUT: Final = {
    ("BlockdevOptions", "iscsi"): 1,
    ("BlockdevOptions", "preallocate"): 1,
    ("BlockdevOptions", "vvfat"): 3,
}
"""Branches before the one named that QEMU numbers although its build lacks them (CONFIG_BLKIO)."""


def query_qmp_schema() -> list[Entry]:
    """Return the reply of ``query-qmp-schema``, as JSON values."""
    return _Writer().write()


class _Writer:
    """Writes the entries of one reply.

    Attributes:
        entries: What has been written.
        used: The types that were mentioned, in the order of mention.
        names: The name that each mentioned type was given, by :func:`identity`.
        numbered: How many of the names are numbers.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.used: list[Type] = []
        self.names: dict[object, str] = {}
        self.numbered = 0

    def write(self) -> list[Entry]:
        """Write everything."""
        for declared in schema.declarations():
            if isinstance(declared, CommandDecl):
                self.command(declared)
            else:
                self.event(declared)
        for used in self.used:  # grows while it is walked
            self.entries.append(self.describe(used))
        return self.entries

    def name_of(self, used: Type) -> str:
        """Return the name of a type in the reply, and see to it that it will be described."""
        key = identity(used)
        known = self.names.get(key)
        if known is not None:
            return known
        self.used.append(used)
        if isinstance(used, BuiltinType):
            name = "int" if used.json_type == "int" else used.name
        elif isinstance(used, ArrayType):
            name = f"[{self.name_of(used.element)}]"
        else:
            name = str(self.numbered)
            self.numbered += 1
        self.names[key] = name
        return name

    # -- entries ------------------------------------------------------------------------------

    def command(self, declared: CommandDecl) -> None:
        """Write a command."""
        entry: Entry = {
            "name": declared.name,
            "meta-type": "command",
            "arg-type": self.name_of(StructType(declared.arguments)),
            "ret-type": self.name_of(declared.returns or StructType(Empty)),
        }
        self.add(with_features(entry, declared.features))

    def event(self, declared: type[Event]) -> None:
        """Write an event."""
        entry: Entry = {
            "name": declared.NAME,
            "meta-type": "event",
            "arg-type": self.name_of(StructType(declared)),
        }
        self.add(with_features(entry, declared.FEATURES))

    def add(self, entry: Entry) -> None:
        """Append one entry."""
        self.entries.append(entry)

    def describe(self, used: Type) -> Entry:
        """Return the entry of a type."""
        if isinstance(used, BuiltinType):
            return {
                "name": self.name_of(used),
                "meta-type": "builtin",
                "json-type": used.json_type,
            }
        entry: Entry = {"name": self.name_of(used), "meta-type": used.kind}
        if isinstance(used, EnumType):
            entry["members"] = [
                with_features({"name": value}, used.features.get(value, ()))
                for value in used.values
            ]
            entry["values"] = list(used.values)
        elif isinstance(used, ArrayType):
            entry["element-type"] = self.name_of(used.element)
        elif isinstance(used, AlternateType):
            entry["members"] = [{"type": self.name_of(case)} for case in used.cases]
        elif isinstance(used, StructType):
            self.describe_struct(used, entry)
        return entry

    def describe_struct(self, used: StructType, entry: Entry) -> None:
        """Add to `entry` what is particular to a struct or union."""
        cls = used.cls
        entry["meta-type"] = "object"
        entry["members"] = [self.member(item) for item in members(cls)]
        if issubclass(cls, Union):
            entry["tag"] = cls.TAG
            entry["variants"] = [
                {"case": value, "type": self.name_of(self.branch(cls, value))}
                for value in tag_values(cls)
            ]
        with_features(entry, cls.FEATURES)

    def branch(self, cls: type[Union], value: str) -> Type:
        """Return the type of the branch that `value` selects."""
        self.numbered += _LEFT_OUT.get((cls.__name__, value), 0)
        return StructType(branch_type(cls, value) or Empty)

    def member(self, item: Member) -> Entry:
        """Return the description of a struct's member."""
        entry: Entry = {"name": item.name, "type": self.name_of(item.type)}
        if item.optional:
            entry["default"] = None
        return with_features(entry, item.features)


def identity(used: Type) -> object:
    """Return what tells `used` from other types of the reply."""
    if isinstance(used, ArrayType):
        return ("array", identity(used.element))
    if isinstance(used, BuiltinType):
        return used.json_type
    return used.cls if isinstance(used, StructType) else used.name


def tag_values(cls: type[Union]) -> list[str]:
    """Return the values of a union's tag: those with a branch, in its order, then the others."""
    tag = next(item for item in members(cls) if item.name == cls.TAG).type
    values = tag.values if isinstance(tag, EnumType) else ()
    return [*cls.BRANCHES, *(value for value in values if value not in cls.BRANCHES)]


def with_features(entry: Entry, features: Sequence[str]) -> Entry:
    """Add `features` to an entry, unless there are none."""
    if features:
        entry["features"] = list(features)
    return entry
