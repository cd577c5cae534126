# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest

from qsd.qapi import schema
from qsd.qapi.model import Event, Struct, StructType, Union, branch_type, members

MODULES = sorted(set(schema._TYPES.values()))


def declared_in(module: str) -> set[str]:
    """The names that a schema module declares itself."""
    path = f"qsd.qapi.schema.{module}"
    found = set()
    for name, value in vars(import_module(path)).items():
        is_class = isinstance(value, type) and value.__module__ == path
        is_alias = isinstance(value, str) and not name.startswith("__")
        if is_class or is_alias or (get_args(value) and name[0].isupper()):
            found.add(name)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_index_lists_every_type_of_a_module(module: str) -> None:
    assert declared_in(module) == {n for n, where in schema._TYPES.items() if where == module}


@pytest.mark.parametrize("module", MODULES)
def test_index_lists_every_command_of_a_module(module: str) -> None:
    commands = getattr(import_module(f"qsd.qapi.schema.{module}"), "COMMANDS", {})
    assert list(commands) == [n for n, where in schema._ENTRIES.items() if where == module]
    for name, declared in commands.items():
        assert declared.name == name


def test_every_type_resolves() -> None:
    for name in schema.type_names():
        found = schema.find_type(name)
        assert found is not None
        if not isinstance(found, StructType):
            continue
        for item in members(found.cls):
            assert item.type.kind
        if issubclass(found.cls, Union):
            for value in found.cls.BRANCHES:
                branch = branch_type(found.cls, value)
                assert branch is not None
                assert issubclass(branch, Struct)


def test_no_branch_shadows_a_base_member() -> None:
    for name in schema.type_names():
        found = schema.find_type(name)
        if isinstance(found, StructType) and issubclass(found.cls, Union):
            base = {item.name for item in members(found.cls)}
            for value in found.cls.BRANCHES:
                branch = branch_type(found.cls, value)
                assert branch is not None
                assert base.isdisjoint(item.name for item in members(branch)), (name, value)


def test_find_command() -> None:
    found = schema.find_command("blockdev-add")
    assert found is not None
    assert found.arguments.__name__ == "BlockdevOptions"
    assert found.returns is None
    assert not found.allow_oob
    assert schema.find_command("bogus") is None
    assert schema.find_command("JOB_STATUS_CHANGE") is None


def test_command_without_arguments_takes_the_empty_struct() -> None:
    found = schema.find_command("query-jobs")
    assert found is not None
    assert members(found.arguments) == ()
    assert repr(found.returns) == "<array [JobInfo]>"


def test_find_event() -> None:
    found = schema.find_event("BLOCK_JOB_READY")
    assert found is not None
    assert issubclass(found, Event)
    assert found.NAME == "BLOCK_JOB_READY"
    assert schema.find_event("quit") is None
    assert schema.find_event("BOGUS") is None


def test_every_event_knows_its_name() -> None:
    names = schema.event_names()
    assert len(names) == 13
    for name in names:
        found = schema.find_event(name)
        assert found is not None
        assert name == found.NAME


def test_commands_are_listed_backwards() -> None:
    names = schema.command_names()
    assert len(names) == 74
    assert names[:3] == ("transaction", "object-del", "object-add")
    assert names[-1] == "query-block"


def test_index_imports_no_declarations() -> None:
    code = "import sys, qsd.qapi.schema; print(*[m for m in sys.modules if m.startswith('qsd')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["qsd", "qsd.qapi", "qsd.qapi.schema"]
