# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.errors import QmpError
from qsd.qapi.convert import from_keyval
from qsd.qapi.keyval import Tree, parse_keyval, parse_keyval_help
from qsd.qapi.schema import find_type
from tests.qapi.cases_keyval import OPTIONS

TYPES: dict[str, tuple[str, str | None]] = {
    "--blockdev": ("BlockdevOptions", "driver"),
    "--object": ("ObjectOptions", "qom-type"),
    "--export": ("BlockExportOptions", "type"),
    "--nbd-server": ("NbdServerOptions", None),
    "--monitor": ("MonitorOptions", "chardev"),
}


@pytest.mark.parametrize(("option", "text", "message"), OPTIONS)
def test_messages_of_options(option: str, text: str, message: str | None) -> None:
    name, implied_key = TYPES[option]
    wanted = find_type(name)
    if message is None:
        from_keyval(wanted, parse_keyval(text, implied_key))
        return
    with pytest.raises(QmpError) as caught:
        from_keyval(wanted, parse_keyval(text, implied_key))
    assert caught.value.desc == message


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        ("a=b,", {"a": "b"}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=x,,y", {"a": "x,y"}),
        ("a=x,,,b=y", {"a": "x,", "b": "y"}),
        ("a=,,", {"a": ","}),
        ("a.b.c=1,a.b.d=2,a.e=3", {"a": {"b": {"c": "1", "d": "2"}, "e": "3"}}),
        ("a.1=y,a.0=x", {"a": ["x", "y"]}),
        ("a.0.b=x,a.1=y", {"a": [{"b": "x"}, "y"]}),
        ("a.00=x", {"a": ["x"]}),
        ("a.0.0=x", {"a": [["x"]]}),
        ("a_b-9=1", {"a_b-9": "1"}),
        ("__com.example_x.y=1", {"__com.example_x": {"y": "1"}}),
        ("___a.b=1", {"___a": {"b": "1"}}),
    ],
)
def test_trees(text: str, tree: Tree) -> None:
    assert parse_keyval(text) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("first", {"k": "first"}),
        ("first,", {"k": "first"}),
        ("first,b=2", {"k": "first", "b": "2"}),
        ("k=first,b=2", {"k": "first", "b": "2"}),
        ("first,k=second", {"k": "second"}),
        ("not.a key!", {"k": "not.a key!"}),
        ("b=2", {"b": "2"}),
        ("", {}),
    ],
)
def test_implied_key(text: str, tree: Tree) -> None:
    assert parse_keyval(text, "k") == tree


@pytest.mark.parametrize(
    ("text", "tree", "wants_help"),
    [
        ("help", {}, True),
        ("?", {}, True),
        ("secret,help", {"k": "secret"}, True),
        ("secret,?,a=1", {"k": "secret", "a": "1"}, True),
        ("secret,help=1", {"k": "secret", "help": "1"}, False),
        ("secret", {"k": "secret"}, False),
    ],
)
def test_help(text: str, tree: Tree, wants_help: bool) -> None:
    assert parse_keyval_help(text, "k") == (tree, wants_help)


def test_errors_go_before_help() -> None:
    with pytest.raises(QmpError, match="Expected '=' after parameter 'b'"):
        parse_keyval_help("a=1,help,b")


NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        st.text(max_size=6),
        lambda inner: (
            st.dictionaries(NAMES, inner, min_size=1, max_size=3)
            | st.lists(inner, min_size=1, max_size=3)
        ),
        max_leaves=5,
    ),
    max_size=4,
)


def spelt(value: object, path: str = "") -> list[str]:
    if isinstance(value, str):
        return [f"{path}={value.replace(',', ',,')}"]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    return [text for key, item in pairs for text in spelt(item, f"{path}.{key}" if path else key)]


@settings(max_examples=40, deadline=None)
@given(TREES, st.randoms(use_true_random=False))
def test_spelling_a_tree_and_reading_it_back(tree: Tree, random: object) -> None:
    options = spelt(tree)
    random.shuffle(options)  # type: ignore[attr-defined]
    assert parse_keyval(",".join(options)) == tree


@given(st.text(alphabet="ab.0,=?-_", max_size=24))
def test_any_text_gives_a_tree_or_a_qmp_error(text: str) -> None:
    try:
        tree, _ = parse_keyval_help(text, "k")
    except QmpError:
        return
    assert all(isinstance(value, str | dict | list) for value in tree.values())
