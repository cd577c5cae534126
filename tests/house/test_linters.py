# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The linters, as tests: one command shows everything that is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT


def _run(program: str, *arguments: str) -> None:
    beside = Path(sys.executable).parent / program
    path = str(beside) if beside.exists() else shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (pip install qsd[dev])")
    done = subprocess.run(
        [path, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    _run("ruff", "check", ".")


@pytest.mark.slow
def test_import_layers() -> None:
    _run("lint-imports", "--no-cache")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_types() -> None:
    _run("mypy")
