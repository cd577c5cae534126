# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""JSON values and command-line options to typed objects, and back.

Three readers walk the same declarations (:mod:`qsd.qapi.model`) in the same order: members of the
base type, own members, then the branch that the tag selects; after these, and before the walk goes
on outside, members that nobody asked for are refused.  The first fault is the one reported.  The
readers differ in the scalars they accept and in how they spell a path:

===================  ====================================  ============================
function             scalars                               path in messages
===================  ====================================  ============================
from_json            of the JSON type                      ``children[0].size``
from_keyval          strings ("0x10", "on", "1M")          ``children.0.size``
from_json_loose      either                                ``children.0.size``
===================  ====================================  ============================

The texts are those of QEMU 7.2, oddities included: a value out of range and an unknown enum value
are reported with the last part of the path only, which is ``null`` for an element of a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from qsd.errors import QmpError
from qsd.qapi.model import (
    BUILTIN_TYPES,
    NULL,
    AlternateType,
    ArrayType,
    BuiltinType,
    EnumType,
    NullType,
    Struct,
    StructType,
    Type,
    Union,
    branch_type,
    members,
)
from qsd.qapi.scalars import parse_bool, parse_integer
from qsd.util.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["from_json", "from_keyval", "from_json_loose", "to_json"]

S = TypeVar("S", bound=Struct)
_Path = tuple[str | int, ...]

_C_NAMES: Final = {
    "int32": "int32_t",
    "uint32": "uint32_t",
    "uint16": "uint16_t",
    "uint8": "uint8_t",
    "int": "int64_t",
    "int64": "int64_t",
}
_U64_MASK: Final = (1 << 64) - 1
_I64_MIN: Final = -(1 << 63)


@overload
def from_json(declared: type[S], value: object) -> S: ...
@overload
def from_json(declared: Type | object, value: object) -> Any: ...
def from_json(declared: object, value: object) -> Any:
    """Convert a JSON value, as a QMP client sends it.

    Args:
        declared: A struct or union class, a builtin Python type or a resolved type.
        value: What a JSON parser returned.

    Raises:
        QmpError: The value does not fit; the text is the one the real daemon answers.
    """
    return _STRICT.convert(as_type(declared), value, ())


@overload
def from_keyval(declared: type[S], value: object) -> S: ...
@overload
def from_keyval(declared: Type | object, value: object) -> Any: ...
def from_keyval(declared: object, value: object) -> Any:
    """Convert the tree that :func:`qsd.qapi.keyval.parse_keyval` made of a command-line option.

    Args:
        declared: A struct or union class, a builtin Python type or a resolved type.
        value: Nested dicts and lists whose leaves are strings.

    Raises:
        QmpError: The value does not fit.
    """
    return _KEYVAL.convert(as_type(declared), value, ())


@overload
def from_json_loose(declared: type[S], value: object) -> S: ...
@overload
def from_json_loose(declared: Type | object, value: object) -> Any: ...
def from_json_loose(declared: object, value: object) -> Any:
    """Convert JSON whose scalars may also be strings, as in a ``json:`` pseudo file name.

    Every integer takes the suffixes of a size there, strings may be given as numbers or booleans,
    and members of members may be written with dots: ``{"file.driver": "nbd"}``.

    Raises:
        QmpError: The value does not fit.
    """
    return _LOOSE.convert(as_type(declared), _undotted(value), ())


def to_json(value: object) -> Any:
    """Return `value` as what a JSON writer takes: structs become dicts in the order of declaration.

    Optional members that are None are left out.  The branch of a union follows its base members.
    """
    if isinstance(value, Struct):
        result: dict[str, Any] = {}
        attributes = value.__dict__
        for item in members(type(value)):
            found = attributes[item.attr]
            if found is None:
                continue
            result[item.name] = found if type(found) in _PLAIN else to_json(found)
        if isinstance(value, Union) and value.branch is not None:
            result.update(to_json(value.branch))
        return result
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return None if isinstance(value, NullType) else value


_PLAIN: Final = frozenset({str, int, bool, float})


def as_type(declared: object) -> Type:
    """Return the resolved type that a class, a ``Literal`` alias or a resolved type stands for.

    Raises:
        TypeError: `declared` is none of these.
    """
    if isinstance(declared, Type):
        return declared
    if isinstance(declared, type):
        if issubclass(declared, Struct):
            return StructType(declared)
        builtin = BUILTIN_TYPES.get(declared.__name__)
        if builtin is not None:
            return builtin
    values = getattr(declared, "__args__", None)
    if values and all(isinstance(item, str) for item in values):
        return EnumType("", values, {})
    raise TypeError(f"{declared!r} is no QAPI type")


def _names_visited(made: Struct) -> list[str]:
    """Return the names of all members of `made`, present or not, in the order of visiting."""
    names = [item.name for item in members(type(made))]
    if isinstance(made, Union) and made.branch is not None:
        names += _names_visited(made.branch)
    return names


def _leaf(path: _Path) -> str:
    """Return how an error names the last part of `path`; list elements have no name."""
    return path[-1] if path and isinstance(path[-1], str) else "null"


class _Reader:
    """Reads JSON strictly; the other readers change what is a scalar and how a path is spelt."""

    def full_name(self, path: _Path) -> str:
        """Return `path` as error messages spell it."""
        text = ""
        for part in path:
            if isinstance(part, int):
                text += f"[{part}]"
            else:
                text += f".{part}" if text else part
        return text or "null"

    def type_error(self, path: _Path, expected: str) -> QmpError:
        """Make the error for a value of the wrong JSON type."""
        return QmpError(
            f"Invalid parameter type for '{self.full_name(path)}', expected: {expected}"
        )

    # -- structure ----------------------------------------------------------------------------

    def convert(self, wanted: Type, value: object, path: _Path) -> Any:
        """Convert `value` to the type `wanted`; `path` is where it stands."""
        if isinstance(wanted, BuiltinType):
            return self.builtin(wanted, value, path)
        if isinstance(wanted, StructType):
            return self.struct(wanted.cls, value, path)
        if isinstance(wanted, EnumType):
            text = self.string(value, path)
            if text not in wanted.values:
                raise QmpError(f"Parameter '{_leaf(path)}' does not accept value '{text}'")
            return text
        if isinstance(wanted, ArrayType):
            if not isinstance(value, list):
                raise self.type_error(path, "array")
            element = wanted.element
            return [self.convert(element, item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(wanted, AlternateType):
            return self.convert(self.case_of(wanted, value, path), value, path)
        raise TypeError(f"cannot convert to {wanted!r}")

    def struct(self, cls: type[Struct], value: object, path: _Path) -> Struct:
        """Convert a JSON object to a struct or union."""
        if not isinstance(value, dict):
            raise self.type_error(path, "object")
        left = dict(value)
        result = self.take_members(cls, left, path)
        if left:
            # Rare, so the work it takes to name the same member as QEMU does is left to this case.
            from qsd.qapi.leftover import first_leftover

            taken = [name for name in _names_visited(result) if name in value]
            name = first_leftover(list(value), taken)
            raise QmpError(f"Parameter '{self.full_name((*path, name))}' is unexpected")
        return result

    def take_members(self, cls: type[Struct], left: dict[str, object], path: _Path) -> Struct:
        """Convert the members of `cls`, taking them out of `left`."""
        values: dict[str, Any] = {}
        for item in members(cls):
            if item.name in left:
                values[item.attr] = self.convert(item.type, left.pop(item.name), (*path, item.name))
            elif not item.optional:
                raise QmpError(f"Parameter '{self.full_name((*path, item.name))}' is missing")
        if issubclass(cls, Union):
            branch = branch_type(cls, values[cls.TAG.replace("-", "_")])
            if branch is not None:
                values["branch"] = self.take_members(branch, left, path)
        return cls(**values)

    def case_of(self, wanted: AlternateType, value: object, path: _Path) -> Type:
        """Return the case of an alternate that takes values of the JSON type of `value`."""
        for case in wanted.cases:
            if isinstance(case, StructType):
                fits = isinstance(value, dict)
            elif isinstance(case, EnumType) or case.name == "str":
                fits = isinstance(value, str)
            else:
                fits = case.name == "null" and value is None
            if fits:
                return case
        raise QmpError(f"Invalid parameter type for '{_leaf(path)}', expected: {wanted.name}")

    # -- scalars ------------------------------------------------------------------------------

    def builtin(self, wanted: BuiltinType, value: object, path: _Path) -> Any:
        """Convert a scalar."""
        if wanted.name == "str":
            return self.string(value, path)
        if wanted.name == "bool":
            return self.boolean(value, path)
        if wanted.bounds is not None:
            return self.integer(wanted, value, path)
        if wanted.name == "number":
            return self.number(value, path)
        if wanted.name == "null":
            if value is None:
                return NULL
            raise self.type_error(path, "null")
        return value

    def string(self, value: object, path: _Path) -> str:
        """Take a string."""
        if isinstance(value, str):
            return value
        raise self.type_error(path, "string")

    def boolean(self, value: object, path: _Path) -> bool:
        """Take a boolean."""
        if isinstance(value, bool):
            return value
        raise self.type_error(path, "boolean")

    def number(self, value: object, path: _Path) -> float:
        """Take a number."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        raise self.type_error(path, "number")

    def integer(self, wanted: BuiltinType, value: object, path: _Path) -> int:
        """Take an integer.

        Unsigned ones are read as 64 bits first, where a negative number stands for its two's
        complement; only then is the width checked.
        """
        signed = wanted.bounds is not None and wanted.bounds[0] < 0
        highest = (1 << 63) - 1 if signed else _U64_MASK
        if type(value) is int and _I64_MIN <= value <= highest:
            return fitted(wanted, value, path)
        if signed:
            raise self.type_error(path, "integer")
        raise QmpError(f"Parameter '{self.full_name(path)}' expects uint64")


def fitted(wanted: BuiltinType, value: int, path: _Path) -> int:
    """Return a 64-bit `value` as an integer of the type `wanted`.

    Raises:
        QmpError: It is out of the type's range.
    """
    lowest, highest = wanted.bounds or (0, 0)
    if lowest == 0:
        value &= _U64_MASK
    if lowest <= value <= highest:
        return value
    raise QmpError(f"Parameter '{_leaf(path)}' expects {_C_NAMES[wanted.name]}")


class _KeyvalReader(_Reader):
    """Reads trees of strings."""

    def full_name(self, path: _Path) -> str:
        return ".".join(str(part) for part in path)

    def string(self, value: object, path: _Path) -> str:
        if isinstance(value, str):
            return value
        raise QmpError(f"Parameters '{self.full_name(path)}.*' are unexpected")

    def boolean(self, value: object, path: _Path) -> bool:
        found = parse_bool(self.string(value, path))
        if found is None:
            raise QmpError(f"Parameter '{self.full_name(path)}' expects 'on' or 'off'")
        return found

    def number(self, value: object, path: _Path) -> float:
        try:
            return float(self.string(value, path))
        except ValueError:
            raise QmpError(f"Parameter '{self.full_name(path)}' expects number") from None

    def integer(self, wanted: BuiltinType, value: object, path: _Path) -> int:
        text = self.string(value, path)
        if wanted.name == "size":
            try:
                return parse_size(text)
            except ValueError:
                raise QmpError(f"Parameter '{self.full_name(path)}' expects size") from None
        number = parse_integer(text, signed=wanted.bounds is not None and wanted.bounds[0] < 0)
        if number is None:
            raise QmpError(f"Parameter '{self.full_name(path)}' expects integer")
        return fitted(wanted, number, path)


class _LooseReader(_KeyvalReader):
    """Reads JSON or strings."""

    def string(self, value: object, path: _Path) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, int | float):
            return str(value)
        return super().string(value, path)

    def integer(self, wanted: BuiltinType, value: object, path: _Path) -> int:
        text = self.string(value, path)
        try:
            return fitted(wanted, parse_size(text), path)
        except ValueError:
            pass
        negative = parse_integer(text, signed=True)
        if negative is None or wanted.bounds is None or wanted.bounds[0] == 0:
            raise QmpError(
                f"Parameter '{self.full_name(path)}' expects a non-negative number below 2^64"
            )
        return fitted(wanted, negative, path)


_STRICT: Final = _Reader()
_KEYVAL: Final = _KeyvalReader()
_LOOSE: Final = _LooseReader()


def _undotted(value: object) -> object:
    """Return `value` with members like ``a.b`` moved into an object ``a``, and lists likewise."""
    if isinstance(value, list):
        return [_undotted(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: dict[str, object] = {}
    for key, item in value.items():
        *outer, last = key.split(".")
        place = result
        for depth, part in enumerate(outer, 1):
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise QmpError(f"Parameters '{'.'.join(outer[:depth])}.*' used inconsistently")
            place = inner
        place[last] = _undotted(item)
    return {key: _listed(item) for key, item in result.items()}


def _listed(value: object) -> object:
    """Return a dict with the keys 0, 1, 2... as a list, anything else as it is."""
    if not isinstance(value, dict):
        return value
    listed: Mapping[str, object] = {key: _listed(item) for key, item in value.items()}
    if listed and all(str(i) in listed for i in range(len(listed))):
        return [listed[str(i)] for i in range(len(listed))]
    return listed
