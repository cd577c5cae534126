# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Authorization objects (QMP reference, "User authorization")."""

from __future__ import annotations

from typing import Literal, TypeAlias

from qsd.qapi.model import Struct

QAuthZListPolicy: TypeAlias = Literal["deny", "allow"]
"""QMP reference, "QAuthZListPolicy"."""


QAuthZListFormat: TypeAlias = Literal["exact", "glob"]
"""QMP reference, "QAuthZListFormat"."""


class QAuthZListRule(Struct):
    """QMP reference, "QAuthZListRule"."""

    match: str
    policy: QAuthZListPolicy
    format: QAuthZListFormat | None = None


class AuthZListProperties(Struct):
    """QMP reference, "AuthZListProperties"."""

    policy: QAuthZListPolicy | None = None
    rules: list[QAuthZListRule] | None = None


class AuthZListFileProperties(Struct):
    """QMP reference, "AuthZListFileProperties"."""

    filename: str
    refresh: bool | None = None


class AuthZPAMProperties(Struct):
    """QMP reference, "AuthZPAMProperties"."""

    service: str


class AuthZSimpleProperties(Struct):
    """QMP reference, "AuthZSimpleProperties"."""

    identity: str
