# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Rules about the shape of the code that no linter knows."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.house.tree import PACKAGE, ROOT, parsed, python_files, relative, repository_files

if TYPE_CHECKING:
    from pathlib import Path

#: Lines; a module that grows past this wants to be two.
MAX_LINES = 800

SPDX = (
    "# SPDX-FileCopyrightText: The qsd authors\n",
    "# SPDX-License-Identifier: MIT\n",
)

#: Interfaces, where the base class says "a subclass has to".
INTERFACES = {"qsd/block/driver.py", "qsd/block/mapped_io.py", "qsd/exports/base.py"}


@pytest.mark.parametrize("path", python_files("qsd", "tests", "iotests"), ids=relative)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "path", python_files("qsd", "tests", "iotests", "bench", "examples", "scripts"), ids=relative
)
def test_licence_is_stated(path: Path) -> None:
    with path.open() as file:
        head = [line for line in (file.readline() for _ in range(3)) if not line.startswith("#!")]
    assert tuple(head[:2]) == SPDX


@pytest.mark.parametrize("path", python_files("qsd", "tests"), ids=relative)
def test_annotations_are_lazy(path: Path) -> None:
    tree = parsed(path)
    if not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body):
        return
    assert any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in tree.body
    )


@pytest.mark.parametrize("path", python_files("qsd"), ids=relative)
def test_modules_have_a_docstring(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "say what the module is for"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=relative)
def test_packages_do_nothing_when_imported(path: Path) -> None:
    """A package's front door holds declarations: no registration, no I/O."""
    declarations = (
        ast.Import,
        ast.ImportFrom,
        ast.If,
        ast.Assign,
        ast.AnnAssign,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
    )
    for node in parsed(path).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_docstring or isinstance(node, declarations), ast.unparse(node)


def _module_level_calls_with_state(tree: ast.Module) -> list[str]:
    """Return module-level names bound to containers that nothing marks as constant."""
    found: list[str] = []
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        mutable = isinstance(node.value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp))
        if not mutable:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.lstrip("_").isupper():
                if target.id != "__all__":
                    found.append(target.id)
    return found


@pytest.mark.parametrize("path", python_files("qsd"), ids=relative)
def test_no_state_in_modules(path: Path) -> None:
    """Two daemons live in one process without noticing each other.

    Containers at module level are tables: their names are upper case, and nothing changes them.
    """
    assert _module_level_calls_with_state(parsed(path)) == []
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global {node.names}"


def _changed_tables(tree: ast.Module) -> list[str]:
    """Return upper-case module tables that a function changes."""
    tables = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id.lstrip("_").isupper()
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = node.targets if not isinstance(node, ast.AugAssign) else [node.target]
            found += [
                target.value.id
                for target in targets
                if isinstance(target, ast.Subscript)
                and isinstance(target.value, ast.Name)
                and target.value.id in tables
            ]
    return found


@pytest.mark.parametrize("path", python_files("qsd"), ids=relative)
def test_tables_are_not_changed(path: Path) -> None:
    assert _changed_tables(parsed(path)) == []


@pytest.mark.parametrize("path", python_files("qsd"), ids=relative)
def test_nothing_is_left_unimplemented(path: Path) -> None:
    if relative(path) in INTERFACES:
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Name):
            assert node.id != "NotImplementedError", f"line {node.lineno}"


def test_no_absolute_workplace_paths() -> None:
    """What is in the repository works on any machine."""
    # Spelled in pieces, or this file would be the first offender.
    places = ("wo" + "rk", "op" + "t/qsd", "op" + "t/team")
    forbidden = re.compile("/(?:" + "|".join(places) + r")\b")
    offenders = [
        f"{relative(path)}:{number}"
        for path in repository_files()
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".sh", ""}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert offenders == []


def test_no_large_files() -> None:
    """Images and captures are generated, not stored."""
    offenders = [relative(path) for path in repository_files() if path.stat().st_size > 512 * 1024]
    assert offenders == []


def test_no_to_dos_without_home() -> None:
    marker = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    offenders = [
        f"{relative(path)}:{number}"
        for path in python_files("qsd", "tests", "iotests")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if marker.search(line)
    ]
    assert offenders == []


def test_the_tree_was_found() -> None:
    assert (ROOT / "pyproject.toml").is_file()
    assert len(python_files("qsd")) > 20
