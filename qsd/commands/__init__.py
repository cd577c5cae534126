# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The QMP commands: which function carries out which command.

The functions are imported when they are first called.  A command that the schema has and this table
lacks is one that we do not provide yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HANDLERS: Final[Mapping[str, str]] = {
    "object-add": "qom:object_add",
    "object-del": "qom:object_del",
    "qom-get": "qom:qom_get",
    "qom-list": "qom:qom_list",
    "qom-list-properties": "qom:qom_list_properties",
    "qom-list-types": "qom:qom_list_types",
    "qom-set": "qom:qom_set",
}
"""From a command's name to "module:function" in this package; keep it sorted by name."""
