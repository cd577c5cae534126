# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Named trace points: what a user can switch on with ``--trace``.

A trace point is a name and a line of text.  The names are those of QEMU where the meaning is the
same, so that a habit like ``--trace 'qmp_*'`` works: one line ``NAME TEXT`` on standard error or in
the file given with ``file=``, for each time the point is passed.

A point that is off costs its owner one look at :attr:`Tracer.enabled`, which is empty then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.util.opts import STRING, OptsSyntax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SYNTAX: Final = OptsSyntax("trace", "enable", {"enable": STRING, "events": STRING, "file": STRING})


def command_points(command: str) -> tuple[str, str]:
    """Return the names of the points before and after a QMP command.

    The text of the first is the arguments, that of the second the result and 1, or the error's
    description and 0.
    """
    suffix = command.replace("-", "_")
    return f"qmp_enter_{suffix}", f"qmp_exit_{suffix}"


class Tracer:
    """Which points are on, and where their lines go.

    Args:
        names: All points there are, in the order of the help text.
        write: Takes one line of text without its end.

    Attributes:
        names, write: As given; `write` may be replaced.
        enabled: The points that are on.
    """

    __slots__ = ("enabled", "names", "write")

    def __init__(self, names: Iterable[str], write: Callable[[str], None]) -> None:
        self.names = tuple(names)
        self.write = write
        self.enabled: frozenset[str] = frozenset()

    def emit(self, name: str, text: str) -> None:
        """Write one line if the point is on."""
        if name in self.enabled:
            self.write(f"{name} {text}")

    def switch(self, pattern: str) -> bool:
        """Switch points on, or off where the pattern starts with ``-``.

        Args:
            pattern: A name, or a shell-like pattern with ``*`` and ``?``.

        Returns:
            Whether such a point exists; a pattern with wildcards may match none.
        """
        on = not pattern.startswith("-")
        pattern = pattern if on else pattern[1:]
        if "*" in pattern or "?" in pattern:
            matches = _matcher(pattern)
            found = frozenset(name for name in self.names if matches(name))
        else:
            found = frozenset(name for name in self.names if name == pattern)
            if not found:
                return False
        self.enabled = self.enabled | found if on else self.enabled - found
        return True


def _matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that matches whole names; only ``*`` and ``?`` are special."""
    import re

    special = {"*": ".*", "?": "."}
    return re.compile("".join(special.get(char) or re.escape(char) for char in pattern)).fullmatch


def patterns_in(text: str) -> list[tuple[int, str]]:
    """Return the patterns of an event file with their line numbers; ``#`` starts a comment line."""
    return [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line and not line.startswith("#")
    ]
