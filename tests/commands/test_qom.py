# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The object model's commands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from qsd.aio.loop import run
from qsd.commands import HANDLERS, qom
from qsd.errors import DEVICE_NOT_FOUND, GENERIC_ERROR, QmpError
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import from_json, to_json
from qsd.qapi.schema import find_command

if TYPE_CHECKING:
    from qsd.commands.context import Context


class Daemon:
    """As much of a daemon as these commands look at."""

    def __init__(self) -> None:
        self.tree = ObjectTree()
        self.context = cast("Context", SimpleNamespace(objects=self.tree))

    def __call__(self, name: str, **arguments: Any) -> Any:
        declaration = find_command(name)
        assert declaration is not None
        module, _, function = HANDLERS[name].partition(":")
        assert module == "qom"
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        args = from_json(declaration.arguments, given)
        result = run(getattr(qom, function)(self.context, args))
        if isinstance(result, list):
            return [
                item if isinstance(item, str | int | dict) else to_json(item) for item in result
            ]
        return {} if result is None else result

    def error(self, name: str, **arguments: Any) -> tuple[str, str]:
        with pytest.raises(QmpError) as caught:
            self(name, **arguments)
        return caught.value.error_class, caught.value.desc


@pytest.fixture
def daemon() -> Daemon:
    daemon = Daemon()
    daemon.tree.add_chardev("m", "chardev-stdio")
    assert daemon("object-add", qom_type="iothread", id="io", poll_max_ns=4096) == {}
    assert daemon("object-add", qom_type="secret", id="s", data="x") == {}
    return daemon


def listed(daemon: Daemon, path: str) -> dict[str, str]:
    return {item["name"]: item["type"] for item in daemon("qom-list", path=path)}


def test_list(daemon: Daemon) -> None:
    assert listed(daemon, "/") == {
        "type": "string", "chardevs": "child<container>", "objects": "child<container>",
    }  # fmt: skip
    assert listed(daemon, "objects") == {
        "type": "string", "io": "child<iothread>", "s": "child<secret>",
    }  # fmt: skip
    assert listed(daemon, "/chardevs") == {"type": "string", "m": "child<chardev-stdio>"}
    assert listed(daemon, "io") == {
        "type": "string", "aio-max-batch": "int", "poll-grow": "int", "poll-max-ns": "int",
        "poll-shrink": "int", "thread-pool-max": "int", "thread-pool-min": "int",
    }  # fmt: skip


def test_paths_to_nowhere(daemon: Daemon) -> None:
    nowhere = (DEVICE_NOT_FOUND, "Device '/nope' not found")
    assert daemon.error("qom-list", path="/nope") == nowhere
    assert daemon.error("qom-get", path="/nope", property="x") == nowhere
    assert daemon.error("qom-set", path="/nope", property="x", value=None) == nowhere


def test_ambiguous(daemon: Daemon) -> None:
    """Only qom-list tells ambiguous from missing."""
    assert daemon.error("qom-list", path="") == (GENERIC_ERROR, "Path '' is ambiguous")
    nowhere = (DEVICE_NOT_FOUND, "Device '' not found")
    assert daemon.error("qom-get", path="", property="type") == nowhere
    assert daemon.error("qom-set", path="", property="type", value=1) == nowhere


def test_get_and_set(daemon: Daemon) -> None:
    assert daemon("qom-get", path="/objects/io", property="poll-max-ns") == 4096
    assert daemon("qom-set", path="io", property="poll-max-ns", value=100) == {}
    assert daemon("qom-get", path="io", property="poll-max-ns") == 100
    assert daemon("qom-get", path="/objects", property="io") == "/objects/io"
    assert daemon("qom-get", path="m", property="type") == "chardev-stdio"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("poll-max-ns", -1, "poll-max-ns value must be in range [0, 9223372036854775807]"),
        ("poll-max-ns", "abc", "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("poll-max-ns", None, "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("poll-max-ns", 1.5, "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("poll-max-ns", 1 << 63, "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("thread-id", 5, "Property 'iothread.thread-id' not found"),
        ("type", "x", "Property 'iothread.type' is not writable"),
    ],
)
def test_refused(daemon: Daemon, name: str, value: object, message: str) -> None:
    error = daemon.error("qom-set", path="io", property=name, value=value)
    assert error == (GENERIC_ERROR, message)


def test_add_and_delete(daemon: Daemon) -> None:
    duplicate = "attempt to add duplicate property 's' to object (type 'container')"
    assert daemon.error("object-add", qom_type="iothread", id="s") == (GENERIC_ERROR, duplicate)
    assert daemon("object-del", id="s") == {}
    assert daemon.error("object-del", id="s") == (GENERIC_ERROR, "object 's' not found")
    unknown = daemon.error("object-add", qom_type="can-bus", id="s")
    assert unknown == (GENERIC_ERROR, "invalid object type: can-bus")


def test_list_types(daemon: Daemon) -> None:
    assert len(daemon("qom-list-types")) == 36
    assert daemon("qom-list-types", implements="tls-creds", abstract=True)[-2:] == [
        {"name": "tls-creds-x509", "parent": "tls-creds"},
        {"name": "tls-cipher-suites", "parent": "tls-creds"},
    ]
    abstract = daemon("qom-list-types", abstract=True)
    assert {"name": "object", "abstract": True} in abstract
    assert {"name": "authz", "abstract": True, "parent": "object"} in abstract
    assert daemon("qom-list-types", implements="nope") == []


def test_list_properties(daemon: Daemon) -> None:
    assert daemon("qom-list-properties", typename="authz-simple") == [
        {"name": "type", "type": "string"}, {"name": "identity", "type": "string"},
    ]  # fmt: skip
    unknown = (DEVICE_NOT_FOUND, "Class 'nope' not found")
    assert daemon.error("qom-list-properties", typename="nope") == unknown
    for name in ("interface", "user-creatable"):
        message = "Parameter 'typename' expects a QOM type"
        assert daemon.error("qom-list-properties", typename=name) == (GENERIC_ERROR, message)


def test_secret_is_readable_as_in_the_c_daemon(daemon: Daemon) -> None:
    assert daemon("qom-get", path="s", property="data") == "x"
