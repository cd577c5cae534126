# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Named tuples are like those of typing, and cheaper to make."""

from __future__ import annotations

import builtins
import pickle
import typing

import pytest

from qsd.util.namedtuple import NamedTuple


class Point(NamedTuple):
    """A point."""

    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        """Both together."""
        return self.x + self.y

    def moved(self, by: int) -> Point:
        return self._replace(x=self.x + by)


def test_like_the_original() -> None:
    class Other(typing.NamedTuple):
        x: int
        y: int = 2

    assert tuple(Point(1)) == tuple(Other(1)) == Point(1) == (1, 2)
    assert repr(Point(x=3, y=4)) == "Point(x=3, y=4)"
    assert Point._fields == Other._fields
    assert Point._field_defaults == Other._field_defaults
    x, y = Point(5)
    assert (x, y) == (5, 2)
    assert typing.get_type_hints(Point) == typing.get_type_hints(Other)


def test_methods_doc_and_place() -> None:
    assert Point(1).sum == 3
    assert Point(1).moved(1) == (2, 2)
    assert Point.__doc__ == "A point."
    assert (Point.__module__, Point.__qualname__) == (__name__, "Point")
    assert pickle.loads(pickle.dumps(Point(1))) == Point(1)


def test_defaults_come_last() -> None:
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]


def test_no_annotation_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(builtins, "compile", refuse)

    class Made(NamedTuple):
        a: str | None
        b: typing.Any

    assert Made("x", 1).b == 1
