# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The object model's commands (QMP reference, "QEMU object model (QOM)")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.errors import DEVICE_NOT_FOUND, QmpError
from qsd.objects.types import find_type, is_interface, list_types, type_properties
from qsd.qapi.schema.qom import ObjectPropertyInfo, ObjectTypeInfo

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.objects.base import QomObject
    from qsd.qapi.schema.qom import (
        ObjectDelArguments,
        ObjectOptions,
        QomGetArguments,
        QomListArguments,
        QomListPropertiesArguments,
        QomListTypesArguments,
        QomSetArguments,
    )


async def object_add(ctx: Context, args: ObjectOptions) -> None:
    """Make an object (QMP reference, "object-add")."""
    await ctx.objects.add(args)


async def object_del(ctx: Context, args: ObjectDelArguments) -> None:
    """Take an object away (QMP reference, "object-del")."""
    await ctx.objects.delete(args.id)


async def qom_list(ctx: Context, args: QomListArguments) -> list[ObjectPropertyInfo]:
    """List the properties of an object, children included (QMP reference, "qom-list")."""
    found, is_ambiguous = ctx.objects.find_path(args.path)
    if is_ambiguous:
        raise QmpError(f"Path '{args.path}' is ambiguous")
    if found is None:
        raise _no_device(args.path)
    infos = [ObjectPropertyInfo(name=item.name, type=item.type) for item in found.properties()]
    infos += [
        ObjectPropertyInfo(name=child.name, type=f"child<{child.type_name}>")
        for child in found.children()
    ]
    return infos


async def qom_get(ctx: Context, args: QomGetArguments) -> object:
    """Read a property (QMP reference, "qom-get")."""
    return _object_at(ctx, args.path).get_json(args.property)


async def qom_set(ctx: Context, args: QomSetArguments) -> None:
    """Write a property (QMP reference, "qom-set")."""
    _object_at(ctx, args.path).set_json(args.property, args.value)


async def qom_list_types(ctx: Context, args: QomListTypesArguments) -> list[ObjectTypeInfo]:
    """List object types (QMP reference, "qom-list-types")."""
    del ctx
    return [
        ObjectTypeInfo(name=info.name, abstract=info.abstract or None, parent=info.parent)
        for info in list_types(args.implements, with_abstract=bool(args.abstract))
    ]


async def qom_list_properties(
    ctx: Context, args: QomListPropertiesArguments
) -> list[ObjectPropertyInfo]:
    """List the properties that objects of a type have (QMP reference, "qom-list-properties")."""
    del ctx
    info = find_type(args.typename)
    if info is None:
        raise QmpError(f"Class '{args.typename}' not found", DEVICE_NOT_FOUND)
    if is_interface(info):
        raise QmpError("Parameter 'typename' expects a QOM type")
    return [ObjectPropertyInfo(name=item.name, type=item.type) for item in type_properties(info)]


def _object_at(ctx: Context, path: str) -> QomObject:
    """Return the object at `path`; here an ambiguous path is like one that leads nowhere."""
    found, _ = ctx.objects.find_path(path)
    if found is None:
        raise _no_device(path)
    return found


def _no_device(path: str) -> QmpError:
    return QmpError(f"Device '{path}' not found", DEVICE_NOT_FOUND)
