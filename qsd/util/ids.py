# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Identifiers that users choose: of objects, nodes, jobs, exports and character devices.

They share one rule, and so one place: a letter, then letters, digits, ``-``, ``.`` and ``_``, all
of them ASCII.  The daemon's own names start with ``#`` and therefore never collide with them.
"""

from __future__ import annotations

from qsd.errors import QmpError

#: What the command line prints after the error about a malformed identifier.
ID_HINT = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."

_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_OTHERS = frozenset("0123456789-._")


def is_valid_id(text: str) -> bool:
    """Tell whether `text` may be the identifier of something a user makes."""
    return text[:1] in _LETTERS and all(char in _LETTERS or char in _OTHERS for char in text)


def check_id(text: str, parameter: str = "id") -> None:
    """Refuse a malformed identifier.

    Args:
        text: The identifier.
        parameter: The name of the option that holds it, for the message.

    Raises:
        QmpError: It is malformed; the hint tells the command-line user the rule.
    """
    if not is_valid_id(text):
        raise QmpError(f"Parameter '{parameter}' expects an identifier", hint=ID_HINT)
