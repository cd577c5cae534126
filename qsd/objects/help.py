# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What ``--object help`` and ``--object TYPE,help`` print."""

from __future__ import annotations

from qsd.objects.types import find_type, type_properties, user_creatable_names


def object_help(kind: str | None = None) -> list[str]:
    """Return the lines of the help for a type, or the list of types.

    Args:
        kind: Any type, user-creatable or not.  A name that is no type gets the list of types.
    """
    info = find_type(kind) if kind is not None else None
    if info is None:
        return [
            "List of user creatable objects:",
            *(f"  {name}" for name in user_creatable_names()),
        ]
    # Sorted as whole lines, so that "x-max=" stands before "x=".
    options = sorted(
        f"  {item.name}=<{item.type}>" for item in type_properties(info) if item.setter is not None
    )
    if not options:
        return [f"There are no options for {info.name}."]
    return [f"{info.name} options:", *options]
