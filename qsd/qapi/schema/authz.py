# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Authorization objects (QMP reference, "User authorization")."""

from __future__ import annotations

from typing import Literal, TypeAlias

from qsd.qapi.model import Struct

QAuthZListPolicy: TypeAlias = Literal["deny", "allow"]
"""What to do with a user who matches (QMP reference, "QAuthZListPolicy")."""


QAuthZListFormat: TypeAlias = Literal["exact", "glob"]
"""How a rule matches (QMP reference, "QAuthZListFormat")."""


class QAuthZListRule(Struct):
    """One rule (QMP reference, "QAuthZListRule")."""

    match: str
    policy: QAuthZListPolicy
    format: QAuthZListFormat | None = None


class AuthZListProperties(Struct):
    """Authorization by a list of rules (QMP reference, "AuthZListProperties")."""

    policy: QAuthZListPolicy | None = None
    rules: list[QAuthZListRule] | None = None


class AuthZListFileProperties(Struct):
    """Authorization by a list in a file (QMP reference, "AuthZListFileProperties")."""

    filename: str
    refresh: bool | None = None


class AuthZPAMProperties(Struct):
    """Authorization by PAM (QMP reference, "AuthZPAMProperties")."""

    service: str


class AuthZSimpleProperties(Struct):
    """Authorization of one user (QMP reference, "AuthZSimpleProperties")."""

    identity: str
