# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Making, finding and deleting objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.iothread import IOThread
from qsd.objects.secret import Secret, SecretCommon
from qsd.objects.throttle_group import ThrottleGroup
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.crypto import SecretProperties
from qsd.qapi.schema.qom import ObjectOptions
from qsd.qapi.schema.qom_properties import IothreadProperties
from qsd.util.ids import ID_HINT

if TYPE_CHECKING:
    from collections.abc import Coroutine


def failure(coro: Coroutine[object, object, object]) -> QmpError:
    with pytest.raises(QmpError) as caught:
        run(coro)
    return caught.value


@pytest.fixture
def tree() -> ObjectTree:
    tree = ObjectTree()
    run(tree.create("iothread", "io"))
    run(tree.create("secret", "s", SecretProperties(data="x")))
    return tree


def test_add_by_options() -> None:
    tree = ObjectTree()
    branch = IothreadProperties(poll_max_ns=5)
    made = run(tree.add(ObjectOptions(qom_type="iothread", id="i", branch=branch)))
    assert isinstance(made, IOThread)
    assert (made.poll_max_ns, made.path, made.is_complete) == (5, "/objects/i", True)


def test_containers_appear_when_used() -> None:
    tree = ObjectTree()
    assert list(tree.root.children()) == []
    failure(tree.create("rng-random", "x"))
    failure(tree.create("iothread", "x", IothreadProperties(poll_grow=-1)))
    assert list(tree.root.children()) == []
    failure(tree.delete("x"))
    assert [child.name for child in tree.root.children()] == ["objects"]


def test_order_of_checks(tree: ObjectTree) -> None:
    """The identifier, the type, the properties, the name in the tree, the whole object."""
    bad = IothreadProperties(poll_grow=-1)
    error = failure(tree.create("rng-random", "1"))
    assert (error.desc, error.hint) == ("Parameter 'id' expects an identifier", ID_HINT)
    assert failure(tree.create("rng-random", "io")).desc == "invalid object type: rng-random"
    assert failure(tree.create("iothread", "io", bad)).desc.startswith("poll-grow value")
    duplicate = "attempt to add duplicate property 'io' to object (type 'container')"
    assert failure(tree.create("secret", "io")).desc == duplicate
    assert failure(tree.create("secret", "n")).desc == "Either 'file' or 'data' must be provided"
    assert tree.find("n") is None


def test_a_failed_object_leaves_nothing(tree: ObjectTree) -> None:
    failure(tree.create("secret", "n"))
    run(tree.create("secret", "n", SecretProperties(data="y")))


def test_delete(tree: ObjectTree) -> None:
    run(tree.delete("s"))
    assert failure(tree.delete("s")).desc == "object 's' not found"
    assert failure(tree.delete("type")).desc == "object 'type' not found"


def test_delete_in_use(tree: ObjectTree) -> None:
    group = run(tree.create("throttle-group", "tg"))
    assert isinstance(group, ThrottleGroup)
    group.join(self := object())
    assert failure(tree.delete("tg")).desc == "object 'tg' is in use, can not be deleted"
    group.leave(self)
    run(tree.delete("tg"))


def test_resolve(tree: ObjectTree) -> None:
    assert tree.resolve("s", Secret).value() == b"x"
    with pytest.raises(QmpError, match=r"^No secret with id 'nope'$"):
        tree.resolve("nope", SecretCommon)
    with pytest.raises(QmpError, match=r"^Object with id 'io' is not a secret$"):
        tree.resolve("io", SecretCommon)
    with pytest.raises(QmpError, match=r"^Throttle group 'io' does not exist$"):
        tree.resolve("io", ThrottleGroup)
    assert tree.find_typed("io", Secret) is None
    assert tree.find_typed("io", IOThread) is tree.find("io")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "/"), ("//", "/"), ("/objects", "/objects"), ("/objects/", "/objects"),
        ("//objects//s", "/objects/s"), ("objects", "/objects"), ("s", "/objects/s"),
        ("s/", "/objects/s"), ("objects/s", "/objects/s"), ("c0", "/chardevs/c0"),
    ],
)  # fmt: skip
def test_paths(tree: ObjectTree, path: str, found: str) -> None:
    tree.add_chardev("c0", "chardev-null")
    obj, is_ambiguous = tree.find_path(path)
    assert obj is not None
    assert (obj.path, is_ambiguous) == (found, False)


@pytest.mark.parametrize("path", ["/nope", "/s", "nope", "/objects/s/data", "type", "/type"])
def test_paths_to_nowhere(tree: ObjectTree, path: str) -> None:
    assert tree.find_path(path) == (None, False)


def test_ambiguous_paths(tree: ObjectTree) -> None:
    tree.add_chardev("s", "chardev-null")
    assert tree.find_path("s") == (None, True)
    assert tree.find_path("") == (None, True)
    tree.remove_chardev("s")
    assert tree.find_path("s") == (tree.find("s"), False)


def test_close(tree: ObjectTree) -> None:
    run(tree.create("main-loop", "ml"))
    secret = tree.resolve("s", Secret)
    run(tree.close())
    run(tree.close())
    assert list(tree.objects.children()) == []
    assert not secret.is_loaded


def test_trees_are_independent(tree: ObjectTree) -> None:
    other = ObjectTree()
    run(other.create("secret", "s", SecretProperties(data="other")))
    assert tree.resolve("s", Secret).value() != other.resolve("s", Secret).value()
