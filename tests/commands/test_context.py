# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The context offers every registry by name, and nothing else can be put into it."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.commands.context import Context


def test_members() -> None:
    values: dict[str, Any] = {name: object() for name in Context.__slots__}
    context = Context(**values)
    for name, value in values.items():
        assert getattr(context, name) is value
    with pytest.raises(AttributeError):
        context.other = 1  # type: ignore[attr-defined]
