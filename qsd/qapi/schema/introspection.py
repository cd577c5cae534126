# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The reply of query-qmp-schema (QMP reference, "QMP introspection")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import DEPRECATED, Struct, Union, command, commands, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar


SchemaMetaType: TypeAlias = Literal[
    "builtin",
    "enum",
    "array",
    "object",
    "alternate",
    "command",
    "event",
]
"""The kinds of schema entries (QMP reference, "SchemaMetaType")."""


class SchemaInfo(Union):
    """One entry of the schema (QMP reference, "SchemaInfo")."""

    name: str
    meta_type: SchemaMetaType
    features: list[str] | None = None

    TAG: ClassVar[str] = "meta-type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "builtin": "SchemaInfoBuiltin",
        "enum": "SchemaInfoEnum",
        "array": "SchemaInfoArray",
        "object": "SchemaInfoObject",
        "alternate": "SchemaInfoAlternate",
        "command": "SchemaInfoCommand",
        "event": "SchemaInfoEvent",
    }


class SchemaInfoBuiltin(Struct):
    """QMP reference, "SchemaInfoBuiltin"."""

    json_type: JSONType


JSONType: TypeAlias = Literal[
    "string",
    "number",
    "int",
    "boolean",
    "null",
    "object",
    "array",
    "value",
]
"""The types of JSON values (QMP reference, "JSONType")."""


class SchemaInfoEnum(Struct):
    """QMP reference, "SchemaInfoEnum"."""

    members: list[SchemaInfoEnumMember]
    values: list[str] = member(features=DEPRECATED)


class SchemaInfoEnumMember(Struct):
    """QMP reference, "SchemaInfoEnumMember"."""

    name: str
    features: list[str] | None = None


class SchemaInfoArray(Struct):
    """QMP reference, "SchemaInfoArray"."""

    element_type: str


class SchemaInfoObject(Struct):
    """QMP reference, "SchemaInfoObject"."""

    members: list[SchemaInfoObjectMember]
    tag: str | None = None
    variants: list[SchemaInfoObjectVariant] | None = None


class SchemaInfoObjectMember(Struct):
    """QMP reference, "SchemaInfoObjectMember"."""

    name: str
    type: str
    default: Any | None = None
    features: list[str] | None = None


class SchemaInfoObjectVariant(Struct):
    """QMP reference, "SchemaInfoObjectVariant"."""

    case: str
    type: str


class SchemaInfoAlternate(Struct):
    """QMP reference, "SchemaInfoAlternate"."""

    members: list[SchemaInfoAlternateMember]


class SchemaInfoAlternateMember(Struct):
    """QMP reference, "SchemaInfoAlternateMember"."""

    type: str


class SchemaInfoCommand(Struct):
    """QMP reference, "SchemaInfoCommand"."""

    arg_type: str
    ret_type: str
    allow_oob: bool | None = None


class SchemaInfoEvent(Struct):
    """QMP reference, "SchemaInfoEvent"."""

    arg_type: str


COMMANDS: Final = commands(
    __name__,
    command("query-qmp-schema", returns="list[SchemaInfo]"),
)
"""The commands of this module."""
