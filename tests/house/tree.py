# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The files that the house rules are about."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "qsd"
TESTS = ROOT / "tests"


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    """Return all Python files below folders of the repository."""
    return tuple(sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")))


@cache
def repository_files() -> tuple[Path, ...]:
    """Return every file that belongs to the project: what git knows, else all but hidden ones."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return tuple(
            path
            for path in ROOT.rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        )
    return tuple(ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file())


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def relative(path: Path) -> str:
    """Return the path as messages show it."""
    return str(path.relative_to(ROOT))
