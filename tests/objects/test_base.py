# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Properties: reading and writing them as QMP does."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.base import (
    Container,
    DescribedObject,
    Property,
    QomObject,
    UserCreatable,
    attribute,
)
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.throttle import ThrottleLimits


def _set_once(obj: Sample, value: str) -> None:
    obj.once = value


class Sample(UserCreatable):
    TYPE = "sample"
    SET_ORDER: ClassVar[tuple[str, ...]] = ("size", "word")
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("word", "string"),
        attribute("small-size", "int32_t", "size"),
        attribute("numbers", "int", value_type="list[UInt16]"),
        attribute("format", "QCryptoSecretFormat"),
        Property("once", "string", None, _set_once, init_only=True),
        Property("limits", "ThrottleLimits", lambda _: ThrottleLimits(iops_total=5)),
    )

    def __init__(self) -> None:
        super().__init__(ObjectTree())
        self.word: str | None = None
        self.size = 3
        self.numbers: list[int] = []
        self.format = "raw"
        self.once: str | None = None


def failure(obj: QomObject, name: str, *value: Any) -> str:
    with pytest.raises(QmpError) as caught:
        obj.set_json(name, *value) if value else obj.get_json(name)
    return caught.value.desc


def test_reading() -> None:
    obj = Sample()
    assert obj.get_json("type") == "sample"
    assert obj.get_json("word") == ""  # an unset string
    assert obj.get_json("small-size") == 3
    assert obj.get_json("numbers") == []
    assert obj.get_json("limits") == {"iops-total": 5}
    assert failure(obj, "once") == "Property 'sample.once' is not readable"
    assert failure(obj, "nope") == "Property 'sample.nope' not found"


def test_writing() -> None:
    obj = Sample()
    obj.set_json("word", "x")
    obj.set_json("small-size", -7)
    obj.set_json("numbers", [1, 65535])
    obj.set_json("format", "base64")
    assert (obj.word, obj.size, obj.numbers, obj.format) == ("x", -7, [1, 65535], "base64")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("word", 5, "Invalid parameter type for 'word', expected: string"),
        ("word", None, "Invalid parameter type for 'word', expected: string"),
        ("small-size", 1 << 31, "Parameter 'small-size' expects int32_t"),
        ("numbers", 5, "Invalid parameter type for 'numbers', expected: array"),
        ("numbers", [70000], "Parameter 'null' expects uint16_t"),
        ("numbers", ["a"], "Parameter 'numbers[0]' expects uint64"),
        ("format", "hex", "Parameter 'format' does not accept value 'hex'"),
        ("format", 1, "Invalid parameter type for 'format', expected: string"),
        ("type", 1, "Property 'sample.type' is not writable"),
        ("limits", {}, "Property 'sample.limits' is not writable"),
        ("nope", 1, "Property 'sample.nope' not found"),
    ],
)
def test_refused(name: str, value: object, message: str) -> None:
    assert failure(Sample(), name, value) == message


def test_init_only() -> None:
    obj = Sample()
    obj.set_json("once", "a")
    obj.is_complete = True
    assert obj.once == "a"
    # The state is looked at before the value.
    assert failure(obj, "once", 5) == "Property cannot be set after initialization"


def test_children_are_properties() -> None:
    root = Container()
    box = Container()
    root.link("box", box)
    box.link("inner", Sample())
    assert root.path == "/"
    assert root.get_json("box") == "/box"
    assert box.get_json("inner") == "/box/inner"
    assert failure(root, "box", "/") == "Property 'container.box' is not writable"
    assert failure(root, "nope", "/") == "Property 'container.nope' not found"


@pytest.mark.parametrize("name", ["box", "type"])
def test_names_are_unique(name: str) -> None:
    root = Container()
    root.link("box", Container())
    with pytest.raises(QmpError) as caught:
        root.link(name, Container())
    expected = f"attempt to add duplicate property '{name}' to object (type 'container')"
    assert caught.value.desc == expected


def test_unlinked() -> None:
    root = Container()
    obj = Sample()
    root.link("a", obj)
    root.unlink("a")
    assert (obj.path, obj.name, obj.parent) == ("", "a", None)
    assert list(root.children()) == []


def test_described_object() -> None:
    obj = DescribedObject("chardev-x", {"connected": ("bool", lambda: True)})
    assert [item.name for item in obj.properties()] == ["type", "connected"]
    assert obj.get_json("type") == "chardev-x"
    assert obj.get_json("connected") is True
    assert failure(obj, "connected", False) == "Property 'chardev-x.connected' is not writable"


def test_repr_shows_no_values() -> None:
    obj = Sample()
    obj.word = "hunter2"
    assert "hunter2" not in repr(obj)


def test_defaults_of_the_life_cycle() -> None:
    obj = Sample()
    run(obj.complete())
    assert obj.can_be_deleted()
    run(obj.finalize())
