# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Every expectation here was seen from a program that uses the C library's getopt_long."""

from __future__ import annotations

import pytest

from qsd.usage import OPTIONS
from qsd.util.getopt import Option, UsageError, iter_options


def parse(*words: str) -> list[Option]:
    return list(iter_options(OPTIONS, words))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], []),
        (["--help"], [("help", "", "--help")]),
        (["-h"], [("help", "", "-h")]),
        (["--hel"], [("help", "", "--hel")]),
        (["--h"], [("help", "", "--h")]),
        (["--blockdev", "x"], [("blockdev", "x", "--blockdev x")]),
        (["--blockdev=x"], [("blockdev", "x", "--blockdev=x")]),
        (["--blockdev="], [("blockdev", "", "--blockdev=")]),
        (["--blockdev", ""], [("blockdev", "", "--blockdev ")]),
        (["--b=x=y"], [("blockdev", "x=y", "--b=x=y")]),
        (["--blockdev", "--help"], [("blockdev", "--help", "--blockdev --help")]),
        (["--blockdev", "--", "-h"], [("blockdev", "--", "--blockdev --"), ("help", "", "-h")]),
        (["-T", "x"], [("trace", "x", "-T x")]),
        (["-Tx"], [("trace", "x", "-Tx")]),
        (["-TV"], [("trace", "V", "-TV")]),
        (["-VTx"], [("version", "", "-VTx"), ("trace", "x", "-VTx")]),
        (["-VT", "x"], [("version", "", "-VT"), ("trace", "x", "-VT x")]),
        (["-hV"], [("help", "", "-hV"), ("version", "", "-hV")]),
        (["x", "-h", "y"], [("", "x", "x"), ("help", "", "-h"), ("", "y", "y")]),
        (["-"], [("", "-", "-")]),
        ([""], [("", "", "")]),
        (["-h", "--", "-V", "x"], [("help", "", "-h")]),
    ],
)
def test_words_become_options(words: list[str], options: list[tuple[str, str, str]]) -> None:
    assert [tuple(option) for option in parse(*words)] == options


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--foo"], "unrecognized option '--foo'"),
        (["--foo=bar"], "unrecognized option '--foo=bar'"),
        (["---foo"], "unrecognized option '---foo'"),
        (["--blockdevx"], "unrecognized option '--blockdevx'"),
        (["--no-daemonize"], "unrecognized option '--no-daemonize'"),
        (["--blockdev"], "option '--blockdev' requires an argument"),
        (["--b"], "option '--blockdev' requires an argument"),
        (["--daemonize=yes"], "option '--daemonize' doesn't allow an argument"),
        (["--version="], "option '--version' doesn't allow an argument"),
        (["--h="], "option '--help' doesn't allow an argument"),
        (["-x"], "invalid option -- 'x'"),
        (["-xV"], "invalid option -- 'x'"),
        (["-blockdev"], "invalid option -- 'b'"),
        (["-T"], "option requires an argument -- 'T'"),
        (
            ["--=x"],
            "option '--=x' is ambiguous; possibilities: '--blockdev' '--chardev' '--daemonize' "
            "'--export' '--help' '--monitor' '--nbd-server' '--object' '--pidfile' '--trace' "
            "'--version'",
        ),
    ],
)
def test_complaints(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert str(caught.value) == text


def test_what_stands_before_the_mistake_comes_first() -> None:
    options = iter_options(OPTIONS, ["-h", "--foo"])
    assert next(options).name == "help"
    with pytest.raises(UsageError):
        next(options)
