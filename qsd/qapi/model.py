# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""How QAPI types are declared in Python.

Vocabulary (QMP reference, "QMP introspection"):

* A **struct** is a class derived from :class:`Struct`.  Its annotations are its members, in the
  order in which the daemon visits them.  A QAPI base type is the Python base class.
* A member ``T | None = None`` is optional; ``None`` means absent.  JSON's ``null`` is :data:`NULL`.
* The QAPI name of a member is the attribute name with ``-`` for ``_``.  Where that does not hold
  (QAPI names with underscores, Python keywords) the declaration says ``member("name")``.
* An **enum** is a ``Literal`` alias.  Its values are plain ``str``.
* A **union** derives from :class:`Union`.  The base members are attributes, the members that the
  tag selects are in :attr:`Union.branch`.  A simple union is a union whose branches are wrapper
  structs with the one member ``data``.
* An **alternate** is a string alias, ``Ref: TypeAlias = "Definition | str"``, whose cases are told
  apart by their JSON type.
* A **command** is a row of its module's ``COMMANDS``; an **event** derives from :class:`Event`.

Declaring must be cheap, because a daemon imports hundreds of these classes and converts to few.  So
a class body does nothing but store its annotations as text.  They are parsed by the little grammar
``name | list[T] | T | None`` when a class is first instantiated or converted.  A name is looked up
among the integer widths below, then in the module of the class, then in the package of that module:
a schema package imports the module that declares the name (see :mod:`qsd.qapi.schema`), which is
why schema modules import from each other under ``TYPE_CHECKING`` only, base classes excepted.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, cast, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Mapping

Int64: TypeAlias = int
UInt64: TypeAlias = int
Size: TypeAlias = int
"""Like UInt64; on the command line it takes the suffixes of a size ("1M")."""
Int32: TypeAlias = int
UInt32: TypeAlias = int
UInt16: TypeAlias = int
UInt8: TypeAlias = int
Number: TypeAlias = float
"""A JSON number, whole or not."""

DEPRECATED: Final = ("deprecated",)
UNSTABLE: Final = ("unstable",)


class NullType:
    """The type of :data:`NULL`, JSON's ``null``; ``None`` stands for an absent member."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL"

    def __bool__(self) -> bool:
        return False


NULL: Final = NullType()


class MemberSpec:
    """What ``member(...)`` leaves in the class body until the class is first used."""

    __slots__ = ("features", "name")

    def __init__(self, name: str | None, features: tuple[str, ...]) -> None:
        self.name = name
        self.features = features


def member(name: str | None = None, *, default: None = None, features: tuple[str, ...] = ()) -> Any:
    """Declare what a bare annotation cannot say of a member.

    Args:
        name: The QAPI name, where it is not the attribute name with ``-`` for ``_``.
        default: Given for optional members, so that type checkers know them as optional.
        features: The member's features (QMP reference, "SchemaInfoObjectMember").
    """
    del default  # optionality itself is read off the annotation
    return MemberSpec(name, features)


class Type:
    """A resolved QAPI type.

    Attributes:
        kind: "builtin", "enum", "array", "struct" or "alternate"; unions are structs.
        name: The QAPI name; of an array, that of its element in brackets.
    """

    __slots__ = ("kind", "name")

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


class BuiltinType(Type):
    """A scalar, or "any".

    Attributes:
        json_type: What introspection and error messages call it.
        bounds: Of integers, the smallest and largest value.
    """

    __slots__ = ("bounds", "json_type")

    def __init__(self, name: str, json_type: str, bounds: tuple[int, int] | None = None) -> None:
        super().__init__("builtin", name)
        self.json_type = json_type
        self.bounds = bounds


class EnumType(Type):
    """An enumeration.

    Attributes:
        values: All values, in declared order.
        features: Features of single values, by value.
    """

    __slots__ = ("features", "values")

    def __init__(
        self, name: str, values: tuple[str, ...], features: Mapping[str, tuple[str, ...]]
    ) -> None:
        super().__init__("enum", name)
        self.values = values
        self.features = features


class ArrayType(Type):
    """An array.

    Attributes:
        element: The type of every element.
    """

    __slots__ = ("element",)

    def __init__(self, element: Type) -> None:
        super().__init__("array", f"[{element.name}]")
        self.element = element


class StructType(Type):
    """A struct or union, represented by its class.

    Attributes:
        cls: The class.
    """

    __slots__ = ("cls",)

    def __init__(self, cls: type[Struct]) -> None:
        super().__init__("struct", cls.__name__)
        self.cls = cls


class AlternateType(Type):
    """A value that may have one of several types.

    Attributes:
        cases: The types, no two of them with the same JSON type.
    """

    __slots__ = ("cases",)

    def __init__(self, name: str, cases: tuple[Type, ...]) -> None:
        super().__init__("alternate", name)
        self.cases = cases


BUILTIN_TYPES: Final[Mapping[str, BuiltinType]] = {
    "str": BuiltinType("str", "string"),
    "bool": BuiltinType("bool", "boolean"),
    "int": BuiltinType("int", "int", (-(1 << 63), (1 << 63) - 1)),
    "Int64": BuiltinType("int64", "int", (-(1 << 63), (1 << 63) - 1)),
    "Int32": BuiltinType("int32", "int", (-(1 << 31), (1 << 31) - 1)),
    "UInt64": BuiltinType("uint64", "int", (0, (1 << 64) - 1)),
    "Size": BuiltinType("size", "int", (0, (1 << 64) - 1)),
    "UInt32": BuiltinType("uint32", "int", (0, (1 << 32) - 1)),
    "UInt16": BuiltinType("uint16", "int", (0, (1 << 16) - 1)),
    "UInt8": BuiltinType("uint8", "int", (0, (1 << 8) - 1)),
    "Number": BuiltinType("number", "number"),
    "float": BuiltinType("number", "number"),
    "Any": BuiltinType("any", "value"),
    "NullType": BuiltinType("null", "null"),
}
"""The types that every module knows, by the name that annotations use."""


class Member:
    """One member of a struct, as :func:`members` lists them.

    Attributes:
        name: The QAPI name.
        attr: The Python attribute.
        optional: Whether it may be absent.
        features: Its features.
    """

    __slots__ = ("_owner", "_text", "_type", "attr", "features", "name", "optional")

    def __init__(
        self, owner: type[Struct], attr: str, annotation: str, spec: MemberSpec | None
    ) -> None:
        self.attr = attr
        self.name = spec.name if spec and spec.name else attr.replace("_", "-")
        self.features = spec.features if spec else ()
        self.optional = annotation.endswith("| None")
        self._text = annotation.removesuffix("| None").strip()
        self._owner = owner
        self._type: Type | None = None

    @property
    def type(self) -> Type:
        """The member's type, resolved on first use."""
        if self._type is None:
            self._type = resolve(self._text, self._owner.__module__)
        return self._type

    def __repr__(self) -> str:
        return f"<member {self.name}: {self._text}{'?' if self.optional else ''}>"


@dataclass_transform(kw_only_default=True, field_specifiers=(member,))
class Struct:
    """Base of all structs; keyword construction, attribute access, equality and repr.

    Class attributes:
        FEATURES: Features of the type as a whole.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ()
    _members: ClassVar[tuple[Member, ...]]
    #: Of each attribute None, in the declared order; and the names of those that must be given.
    _shape: ClassVar[tuple[Mapping[str, None], frozenset[str]]]

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        absent, required = cls.__dict__.get("_shape") or _shape(cls)
        attributes = self.__dict__
        attributes.update(absent)
        attributes.update(values)
        # As many as declared are as declared, as long as none was needed and not given.
        if len(attributes) != len(absent) or not values.keys() >= required:
            raise TypeError(_misfit(cls, values))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = ", ".join(
            f"{attr}={value!r}" for attr, value in self.__dict__.items() if value is not None
        )
        return f"{type(self).__name__}({given})"


class Empty(Struct):
    """The struct without members: the arguments of commands that take none."""


class Union(Struct):
    """Base of all unions.

    Attributes:
        branch: The members that the tag's value selects, or None where it selects none.

    Class attributes:
        TAG: The QAPI name of the base member that selects.
        BRANCHES: From a value of the tag to the name of its struct.
    """

    TAG: ClassVar[str]
    BRANCHES: ClassVar[Mapping[str, str]]

    branch: Struct | None = None

    def __init__(self, *, branch: Struct | None = None, **values: Any) -> None:
        super().__init__(**values)
        expected = branch_type(type(self), getattr(self, self.TAG.replace("-", "_")))
        if type(branch) is not expected and not (expected is None and branch is None):
            raise TypeError(
                f"{type(self).__name__}() has the branch {branch!r} where its tag asks for "
                f"{expected.__name__ if expected else None}"
            )
        self.__dict__["branch"] = branch


class Event(Struct):
    """Base of all events.

    Class attributes:
        NAME: The event's name in QMP.
    """

    NAME: ClassVar[str]


class CommandDecl:
    """The declaration of one QMP command (QMP reference, "SchemaInfoCommand").

    Attributes:
        name: The command's name.
        features: Its features.
        allow_oob: Whether it may be executed out of band.
        module: The module that declares it, in which its types are looked up.
    """

    __slots__ = (
        "_arguments", "_arguments_name", "_returns", "_returns_name",
        "allow_oob", "features", "module", "name",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        arguments: str | None,
        returns: str | None,
        features: tuple[str, ...],
    ) -> None:
        self.name = name
        self.features = features
        self.allow_oob = False  # no command of the storage daemon has it
        self.module = __name__  # until commands() sets it
        self._arguments_name = arguments
        self._returns_name = returns
        self._arguments: type[Struct] | None = None
        self._returns: Type | None = None

    @property
    def arguments(self) -> type[Struct]:
        """The struct or union of the arguments; :class:`Empty` where there are none."""
        if self._arguments is None:
            if self._arguments_name is None:
                self._arguments = Empty
            else:
                self._arguments = struct_class(resolve(self._arguments_name, self.module))
        return self._arguments

    @property
    def returns(self) -> Type | None:
        """The type of the reply, or None for the empty object."""
        if self._returns is None and self._returns_name is not None:
            self._returns = resolve(self._returns_name, self.module)
        return self._returns

    def __repr__(self) -> str:
        return f"<command {self.name}>"


def command(
    name: str,
    arguments: str | None = None,
    *,
    returns: str | None = None,
    features: tuple[str, ...] = (),
) -> CommandDecl:
    """Declare one command, a row of :func:`commands`.

    Args:
        name: The command's name in QMP.
        arguments: Name of the struct or union of its arguments.
        returns: The type of its reply, as an annotation; None is the empty object.
        features: Its features.
    """
    return CommandDecl(name, arguments, returns, features)


def commands(module: str, *rows: CommandDecl) -> Mapping[str, CommandDecl]:
    """Make a schema module's ``COMMANDS``: its commands by name, in the order of the schema.

    Args:
        module: The declaring module's ``__name__``.
        rows: What :func:`command` made.
    """
    for row in rows:
        row.module = module
    return {row.name: row for row in rows}


def members(cls: type[Struct]) -> tuple[Member, ...]:
    """Return the members of a struct, or the base members of a union, in the order of visiting.

    Those of the QAPI base type come first.
    """
    found = cls.__dict__.get("_members")
    if found is None:
        found = _prepare(cls)
    return cast("tuple[Member, ...]", found)


def _prepare(cls: type[Struct]) -> tuple[Member, ...]:
    """Read the annotations of `cls` and take the ``member()`` markers out of its body."""
    inherited: list[Member] = []
    for base in reversed(cls.__bases__):
        if issubclass(base, Struct) and base not in _ROOTS:
            inherited += members(base)
    own: list[Member] = []
    # Not inspect.get_annotations: importing inspect costs more than everything here.
    annotations = cls.__dict__.get("__annotations__", {})  # noqa: RUF063
    for attr, annotation in annotations.items():
        if annotation.startswith("ClassVar"):
            continue
        spec = cls.__dict__.get(attr)
        if isinstance(spec, MemberSpec):
            delattr(cls, attr)
            own.append(Member(cls, attr, annotation, spec))
        else:
            own.append(Member(cls, attr, annotation, None))
    result = (*inherited, *own)
    cls._members = result
    return result


def _shape(cls: type[Struct]) -> tuple[Mapping[str, None], frozenset[str]]:
    declared = members(cls)
    cls._shape = (
        dict.fromkeys(item.attr for item in declared),
        frozenset(item.attr for item in declared if not item.optional),
    )
    return cls._shape


def _misfit(cls: type[Struct], values: Mapping[str, Any]) -> str:
    """Return what is wrong with the arguments of a struct."""
    declared = members(cls)
    for item in declared:
        if not item.optional and item.attr not in values:
            return f"{cls.__name__}() lacks the argument {item.attr!r}"
    strange = next(name for name in values if all(name != item.attr for item in declared))
    return f"{cls.__name__}() has no member {strange!r}"


_ROOTS: Final = (Struct, Union, Event)


def branch_type(cls: type[Union], tag_value: str) -> type[Struct] | None:
    """Return the struct that `tag_value` selects, or None where it selects none."""
    name = cls.BRANCHES.get(tag_value)
    return None if name is None else struct_class(resolve(name, cls.__module__))


def struct_class(resolved: Type) -> type[Struct]:
    """Return the class of a struct type."""
    if not isinstance(resolved, StructType):
        raise TypeError(f"{resolved!r} is not a struct")
    return resolved.cls


def resolve(annotation: str, module: str) -> Type:
    """Return the type that `annotation` means in `module`.

    Args:
        annotation: A name or ``list[T]``.
        module: Name of an imported module.

    Raises:
        NameError: There is no such type.
    """
    if annotation.startswith("list["):
        return ArrayType(resolve(annotation[5:-1], module))
    builtin = BUILTIN_TYPES.get(annotation)
    if builtin is not None:
        return builtin
    space = sys.modules[module]
    declared = space.__dict__.get(annotation)
    if declared is None:
        # Not here: the package of the schema modules knows which one declares it.
        package = sys.modules[space.__package__ or ""]
        finder = getattr(package, "module_declaring", None)
        owner = finder(annotation) if finder else None
        if owner is None:
            raise NameError(f"no QAPI type {annotation!r} in {module}")
        module, declared = owner, sys.modules[owner].__dict__[annotation]
    return describe(annotation, declared, module)


def describe(name: str, declared: object, module: str) -> Type:
    """Return the type that a schema module declares as `name`.

    Args:
        name: The QAPI name.
        declared: The class, the ``Literal`` alias of an enum or the text of an alternate.
        module: Name of the declaring module.
    """
    if isinstance(declared, type):
        return StructType(declared)
    if isinstance(declared, str):
        cases = tuple(resolve(case.strip(), module) for case in declared.split("|"))
        return AlternateType(name, cases)
    features = getattr(sys.modules[module], "ENUM_FEATURES", {})
    values: tuple[str, ...] = declared.__args__  # type: ignore[attr-defined]
    return EnumType(name, values, features.get(name, {}))
