# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Finding the tools of others that interop tests talk to."""

from __future__ import annotations

import shutil

import pytest


def need(*tools: str) -> None:
    """Skip the running test unless all of these programs are installed.

    Where ``QSD_REQUIRE_TOOLS`` is set the skip counts as a failure; see the top-level conftest.
    """
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (scripts/test installs it where it may)")
