# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``typing.NamedTuple`` without its price at start-up.

The original compiles each annotation, to check it.  That takes as long as all the rest of making
the class, and the first ``compile()`` of a process takes ten times as long again.  (Measured: of
100 ms from spawn to greeting, 4 went there.)  This one keeps annotations as the text that they are;
type checkers see the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from collections import namedtuple

    class _Maker(type):
        """Makes a tuple class of the class body behind ``class Name(NamedTuple):``."""

        def __new__(cls, name, bases, body):
            """Return the tuple class; fields with defaults come last."""
            annotations = body.pop("__annotations__", {})
            defaults = [body.pop(field) for field in annotations if field in body]
            made = namedtuple(  # noqa: PYI024 - this is the untyped half of the typed one
                name, annotations, defaults=defaults, module=body.pop("__module__")
            )
            made.__annotations__ = annotations
            for key, value in body.items():
                setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})
