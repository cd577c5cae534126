# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Who is allowed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.authz import Authz, AuthzList, AuthzListFile, AuthzSimple, matches_glob
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.authz import (
    AuthZListFileProperties,
    AuthZListProperties,
    AuthZSimpleProperties,
    QAuthZListRule,
)

if TYPE_CHECKING:
    from pathlib import Path

LIST = b"""{"policy": "deny", "rules": [
    {"match": "fred", "policy": "allow", "format": "exact"},
    {"match": "eve*", "policy": "deny", "format": "glob"},
    {"match": "*.org", "policy": "allow", "format": "glob"}]}"""


def test_base_allows_nobody() -> None:
    assert not Authz(ObjectTree()).is_allowed("")


def test_simple() -> None:
    made = run(ObjectTree().create("authz-simple", "a", AuthZSimpleProperties(identity="CN=me")))
    assert isinstance(made, AuthzSimple)
    assert made.is_allowed("CN=me")
    for other in ("CN=you", "CN=m", "CN=mee", "cn=me", " CN=me", ""):
        assert not made.is_allowed(other)
    made.set_json("identity", "CN=you")
    assert made.get_json("identity") == "CN=you"
    assert made.is_allowed("CN=you")


def test_simple_needs_its_identity() -> None:
    with pytest.raises(QmpError, match=r"^The 'identity' property must be set$"):
        run(ObjectTree().create("authz-simple", "a"))


def test_list() -> None:
    rules = [
        QAuthZListRule(match="fred", policy="allow"),
        QAuthZListRule(match="eve*", policy="deny", format="glob"),
        QAuthZListRule(match="*.org", policy="allow", format="glob"),
        QAuthZListRule(match="*", policy="deny", format="exact"),
    ]
    options = AuthZListProperties(policy="deny", rules=rules)
    made = run(ObjectTree().create("authz-list", "a", options))
    assert isinstance(made, AuthzList)
    answers = {who: made.is_allowed(who) for who in ("fred", "eve.org", "bob.org", "bob", "*")}
    assert answers == {"fred": True, "eve.org": False, "bob.org": True, "bob": False, "*": False}
    made.set_json("policy", "allow")
    assert made.is_allowed("bob")
    assert not made.is_allowed("*")
    assert made.get_json("rules") == [
        {"match": "fred", "policy": "allow"},
        {"match": "eve*", "policy": "deny", "format": "glob"},
        {"match": "*.org", "policy": "allow", "format": "glob"},
        {"match": "*", "policy": "deny", "format": "exact"},
    ]


def test_list_defaults() -> None:
    made = run(ObjectTree().create("authz-list", "a"))
    assert isinstance(made, AuthzList)
    assert (made.get_json("policy"), made.get_json("rules")) == ("deny", [])
    assert not made.is_allowed("")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"match": "x"}], "Parameter 'rules[0].policy' is missing"),
        ("x", "Invalid parameter type for 'rules', expected: array"),
        ([5], "Invalid parameter type for 'rules[0]', expected: object"),
        ([{"match": "x", "policy": "no"}], "Parameter 'policy' does not accept value 'no'"),
    ],
)
def test_bad_rules(value: object, message: str) -> None:
    made = run(ObjectTree().create("authz-list", "a"))
    with pytest.raises(QmpError) as caught:
        made.set_json("rules", value)
    assert caught.value.desc == message


def test_file(tmp_path: Path) -> None:
    name = tmp_path / "list"
    name.write_bytes(LIST)
    options = AuthZListFileProperties(filename=str(name))
    made = run(ObjectTree().create("authz-list-file", "a", options))
    assert isinstance(made, AuthzListFile)
    assert made.is_allowed("fred")
    assert not made.is_allowed("bob")

    name.write_bytes(b'{"policy": "allow", "rules": []}')
    assert made.is_allowed("bob")

    name.write_bytes(b'{"policy": "maybe"}')  # while the list is broken, nobody may
    assert not made.is_allowed("bob")
    name.unlink()
    assert not made.is_allowed("bob")

    (tmp_path / "new").write_bytes(LIST)
    os.replace(tmp_path / "new", name)
    assert made.is_allowed("fred")


def test_file_without_refresh(tmp_path: Path) -> None:
    name = tmp_path / "list"
    name.write_bytes(LIST)
    options = AuthZListFileProperties(filename=str(name), refresh=False)
    made = run(ObjectTree().create("authz-list-file", "a", options))
    assert isinstance(made, AuthzListFile)
    name.unlink()
    assert made.is_allowed("fred")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Unable to read '{}': No such file or directory"),
        (b"{", "Unable to parse '{}': "),
        (b"[]", "File must contain a JSON object"),
        (b'{"policy": "maybe"}', "Unable to parse '{}': Parameter 'policy' does not accept value"),
        (b"\xff", "Unable to parse '{}': "),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    name = tmp_path / "list"
    if content is not None:
        name.write_bytes(content)
    options = AuthZListFileProperties(filename=str(name))
    with pytest.raises(QmpError) as caught:
        run(ObjectTree().create("authz-list-file", "a", options))
    assert caught.value.desc.startswith(message.format(name))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "", True), ("", "a", False), ("*", "", True), ("*", "abc", True), ("a*", "b", False),
        ("*.org", "x.org", True), ("*.org", "x.orgs", False), ("a*b*c", "aXbYbZc", True),
        ("a*b*c", "aXbYbZ", False), ("?", "", False), ("?", "ä", True), ("a?c", "abc", True),
        ("[ab]", "a", False), ("[ab]", "[ab]", True), ("**", "x", True), ("a**", "a", True),
        ("*?", "", False), ("*?", "x", True),
    ],
)  # fmt: skip
def test_globs(pattern: str, text: str, expected: bool) -> None:
    assert matches_glob(pattern, text) is expected


def slow_glob(pattern: str, text: str) -> bool:
    """The obvious definition."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(slow_glob(pattern[1:], text[n:]) for n in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and slow_glob(pattern[1:], text[1:])


@given(st.text("ab*?", max_size=7), st.text("ab", max_size=9))
def test_globs_by_definition(pattern: str, text: str) -> None:
    assert matches_glob(pattern, text) == slow_glob(pattern, text)


def test_globs_are_fast() -> None:
    assert not matches_glob("*a" * 50 + "b", "a" * 2000)
