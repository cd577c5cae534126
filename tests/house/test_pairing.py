# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``qsd/a/b.py`` is tested by ``tests/a/test_b.py``, and no test file stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.house.tree import PACKAGE, TESTS, parsed, python_files, relative

if TYPE_CHECKING:
    from pathlib import Path

#: Modules without a test file of their own, each with the reason.
UNPAIRED_MODULES: dict[str, str] = {
    "qsd/__main__.py": "two lines; every test that starts a process runs them",
    "qsd/usage.py": "texts; tests/test_cli.py and tests/util/test_getopt.py look at them",
}
#: Schema modules are declarations; one test compares all of them with the real daemon's schema.
UNPAIRED_FOLDERS: dict[str, str] = {
    "qsd/qapi/schema/": "declarations, compared as a whole by tests/qapi/test_introspect.py",
}
#: Test files that test no single module.
UNPAIRED_TESTS: dict[str, str] = {}
#: Folders of tests that are about the whole.
WHOLE = ("house", "support", "fuzz", "interop", "crash")


def _test_of(module: Path) -> Path:
    inside = module.relative_to(PACKAGE)
    return TESTS / inside.parent / f"test_{inside.name}"


def _modules() -> list[Path]:
    return [path for path in python_files("qsd") if path.name != "__init__.py"]


@pytest.mark.parametrize("path", _modules(), ids=relative)
def test_module_has_its_test(path: Path) -> None:
    name = relative(path)
    if name in UNPAIRED_MODULES or name.startswith(tuple(UNPAIRED_FOLDERS)):
        assert not _test_of(path).exists(), "take it off the list of exceptions"
        return
    test = _test_of(path)
    related = list(test.parent.glob(f"{test.stem}_*.py"))
    assert test.exists() or related, f"write {relative(test)}"


def _tests() -> list[Path]:
    return [
        path
        for path in TESTS.rglob("test_*.py")
        if path.relative_to(TESTS).parts[0] not in WHOLE and relative(path) not in UNPAIRED_TESTS
    ]


@pytest.mark.parametrize("path", sorted(_tests()), ids=relative)
def test_test_has_its_module(path: Path) -> None:
    inside = path.relative_to(TESTS)
    name = inside.stem.removeprefix("test_")
    folder = PACKAGE / inside.parent
    candidates = [folder / f"{name}.py", folder / name]
    # test_io_overlap.py may be about io.py from one more side.
    while "_" in name:
        name = name.rpartition("_")[0]
        candidates.append(folder / f"{name}.py")
        candidates.append(folder / name)
    assert any(candidate.exists() for candidate in candidates), "no such module: rename or list it"


@pytest.mark.parametrize("name", sorted(UNPAIRED_MODULES))
def test_exceptions_exist(name: str) -> None:
    assert (PACKAGE.parent / name).exists(), "remove it from the list"


@pytest.mark.parametrize("path", [*sorted(TESTS.rglob("test_*.py"))], ids=relative)
def test_test_files_hold_tests(path: Path) -> None:
    import ast

    names = [
        node.name
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    assert any(name.startswith(("test_", "Test")) for name in names)
