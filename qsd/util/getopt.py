# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Command-line words to options, in order, as the C library's ``getopt_long`` finds them.

Callers rely on details: abbreviations (``--block``), the value in the next word or behind ``=``,
short options in clusters, the texts of the complaints, and that words which are no options keep
their place among the options (the leading ``-`` of a short-option string in getopt(3)).

argparse does none of these in the same way and takes a long time to import.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Final

from qsd.util.namedtuple import NamedTuple

#: Whether an option takes a value (getopt_long(3), "has_arg").
NO_VALUE: Final = False
NEEDS_VALUE: Final = True


class Option(NamedTuple):
    """One option, or one word that is none.

    Attributes:
        name: The long name of the option, "" for a word that is no option.
        value: Its value, or that word.
        words: What the user typed for it, joined by spaces; error messages quote this.
    """

    name: str
    value: str
    words: str


class UsageError(Exception):
    """The command line cannot be read; the text is the C library's, without the program name."""


class OptionTable(NamedTuple):
    """What the program understands.

    Attributes:
        long: Whether each long option needs a value, in the order in which the C table has them
            (an ambiguous abbreviation lists its candidates in this order).
        short: The long name behind each letter.
    """

    long: Mapping[str, bool]
    short: Mapping[str, str]


def iter_options(table: OptionTable, words: Sequence[str]) -> Iterator[Option]:
    """Yield options and other words in the order given; stop at ``--``.

    What follows ``--`` is ignored, as the original does.

    Raises:
        UsageError: When the offending word is reached; what stands before it was yielded.
    """
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            return
        if word.startswith("--"):
            name, equals, value = _find_long(table, word)
            typed = word
            if table.long[name] and not equals:
                if index == len(words):
                    raise UsageError(f"option '--{name}' requires an argument")
                value = words[index]
                typed = f"{word} {value}"
                index += 1
            yield Option(name, value, typed)
        elif word.startswith("-") and len(word) > 1:
            index = yield from _short_options(table, words, index)
        else:
            yield Option("", word, word)


def _find_long(table: OptionTable, word: str) -> tuple[str, bool, str]:
    """Return full name, whether there is a ``=``, and what follows it."""
    typed, equals, value = word[2:].partition("=")
    if typed in table.long:
        name = typed
    else:
        found = [name for name in table.long if name.startswith(typed)]
        if not found:
            raise UsageError(f"unrecognized option '{word}'")
        if len(found) > 1:
            candidates = " ".join(f"'--{name}'" for name in found)
            raise UsageError(f"option '{word}' is ambiguous; possibilities: {candidates}")
        name = found[0]
    if equals and not table.long[name]:
        raise UsageError(f"option '--{name}' doesn't allow an argument")
    return name, bool(equals), value


def _short_options(
    table: OptionTable, words: Sequence[str], index: int
) -> Generator[Option, None, int]:
    """Yield the options of the cluster before `index`; return the index of the next word."""
    cluster = words[index - 1]
    for position, letter in enumerate(cluster[1:], start=1):
        if letter not in table.short:
            raise UsageError(f"invalid option -- '{letter}'")
        name = table.short[letter]
        if not table.long[name]:
            yield Option(name, "", cluster)
            continue
        rest = cluster[position + 1 :]
        if rest:
            yield Option(name, rest, cluster)
        elif index == len(words):
            raise UsageError(f"option requires an argument -- '{letter}'")
        else:
            yield Option(name, words[index], f"{cluster} {words[index]}")
            index += 1
        break
    return index
