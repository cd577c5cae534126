# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Introspection (QMP reference, "QMP introspection")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsd.qapi import introspect

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.model import Empty


async def query_qmp_schema(ctx: Context, args: Empty) -> list[dict[str, Any]]:
    """Describe the whole interface (QMP reference, "query-qmp-schema")."""
    del ctx, args
    return introspect.query_qmp_schema()
