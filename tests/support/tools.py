# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Finding the tools of others that interop tests talk to."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def need(*tools: str) -> None:
    """Skip the running test unless all of these programs are installed.

    Where ``QSD_REQUIRE_TOOLS`` is set the skip counts as a failure; see the top-level conftest.
    """
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (scripts/test installs it where it may)")


def real_daemon() -> str:
    """Return the path of the C daemon; skip the running test without one.

    Where this package is installed, its own command of that name comes first in the search path.
    """
    ours = Path(sys.executable).parent
    folders = [folder for folder in os.get_exec_path() if Path(folder) != ours]
    found = shutil.which("qemu-storage-daemon", path=os.pathsep.join(folders))
    if found is None:
        pytest.skip("qemu-storage-daemon is not installed")
    return found
