# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.errors import QmpError
from qsd.util.opts import BOOL, NUMBER, SIZE, STRING, Opts, OptsSyntax, Value, parse_opts

SYNTAX = OptsSyntax(
    "thing",
    "backend",
    {
        "backend": STRING,
        "path": STRING,
        "server": BOOL,
        "wait": BOOL,
        "to": NUMBER,
        "size": SIZE,
    },
)


def parse(text: str) -> tuple[Opts, list[str]]:
    warnings: list[str] = []
    return parse_opts(SYNTAX, text, warnings.append), warnings


@pytest.mark.parametrize(
    ("text", "identifier", "values"),
    [
        ("", None, {}),
        ("null,id=c", "c", {"backend": "null"}),
        ("backend=null,id=c", "c", {"backend": "null"}),
        (",id=c", "c", {"backend": ""}),
        ("null,,x,id=c", "c", {"backend": "null,x"}),
        ("file,path=a,,b", None, {"backend": "file", "path": "a,b"}),
        ("file,path=a=b", None, {"backend": "file", "path": "a=b"}),
        ("file,path=", None, {"backend": "file", "path": ""}),
        ("null,backend=file", None, {"backend": "file"}),
        ("null,id=c,", "c", {"backend": "null"}),
        ("id=c,id=d", "c", {}),
        ("no,id=c", "c", {"backend": "no"}),
        ("help,id=x", "x", {"backend": "help"}),
        ("x,server=on,wait=n", None, {"backend": "x", "server": True, "wait": False}),
        ("x,to=16", None, {"backend": "x", "to": 16}),
        ("x,to=0x10", None, {"backend": "x", "to": 16}),
        ("x,to=010", None, {"backend": "x", "to": 8}),
        ("x,to= 1", None, {"backend": "x", "to": 1}),
        ("x,to=-1", None, {"backend": "x", "to": 2**64 - 1}),
        ("x,size=1K", None, {"backend": "x", "size": 1024}),
        ("x,size=1.5k", None, {"backend": "x", "size": 1536}),
        ("x,size=64", None, {"backend": "x", "size": 64}),
        ("x,size=0x40", None, {"backend": "x", "size": 64}),
    ],
)
def test_values(text: str, identifier: str | None, values: dict[str, Value]) -> None:
    opts, warnings = parse(text)
    assert (opts.id, opts.values, opts.wants_help, warnings) == (identifier, values, False, [])


@pytest.mark.parametrize(
    ("text", "desc"),
    [
        ("x,bogus=1", "Invalid parameter 'bogus'"),
        ("=x", "Invalid parameter ''"),
        ("x,bogus=1,help", "Invalid parameter 'bogus'"),
        ("x,help=1", "Invalid parameter 'help'"),
        ("x,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
        ("x,server=", "Parameter 'server' expects 'on' or 'off'"),
        ("x,to=abc", "Parameter 'to' expects a number"),
        ("x,to=", "Parameter 'to' expects a number"),
        ("x,to=1 ", "Parameter 'to' expects a number"),
        ("x,to=1_0", "Parameter 'to' expects a number"),
        (
            "x,to=99999999999999999999",
            "Value '99999999999999999999' is too large for parameter 'to'",
        ),
        ("x,size=abc", "Parameter 'size' expects a non-negative number below 2^64"),
        ("x,size=-1", "Parameter 'size' expects a non-negative number below 2^64"),
        (
            "x,size=99999999999999999999",
            "Value '99999999999999999999' is out of range for parameter 'size'",
        ),
        ("x,id=9c", "Parameter 'id' expects an identifier"),
        ("x,bogus=1,id=", "Parameter 'id' expects an identifier"),
        ("x,id=c,,", "Parameter 'id' expects an identifier"),
    ],
)
def test_errors(text: str, desc: str) -> None:
    with pytest.raises(QmpError) as caught:
        parse(text)
    assert caught.value.desc == desc


def test_flags_warn_and_count() -> None:
    opts, warnings = parse("x,server,nowait")
    assert opts.values == {"backend": "x", "server": True, "wait": False}
    assert warnings == [
        "short-form boolean option 'server' deprecated\nPlease use server=on instead",
        "short-form boolean option 'nowait' deprecated\nPlease use wait=off instead",
    ]


def test_an_unknown_flag_warns_before_it_fails() -> None:
    warnings: list[str] = []
    with pytest.raises(QmpError) as caught:
        parse_opts(SYNTAX, "x,nobogus", warnings.append)
    assert caught.value.desc == "Invalid parameter 'bogus'"
    assert len(warnings) == 1


@pytest.mark.parametrize("text", ["x,help", "x,?", "id=c,help", "x,server=on,help"])
def test_help(text: str) -> None:
    assert parse(text)[0].wants_help


def test_warnings_stop_at_the_first_error() -> None:
    warnings: list[str] = []
    with pytest.raises(QmpError) as caught:
        parse_opts(SYNTAX, "x,server,bogus,wait", warnings.append)
    assert caught.value.desc == "Invalid parameter 'bogus'"
    assert len(warnings) == 2


def test_help_text_lists_parameters_by_name() -> None:
    assert SYNTAX.help_text() == (
        "thing options:\n"
        "  backend=<str>\n"
        "  path=<str>\n"
        "  server=<bool (on/off)>\n"
        "  size=<size>\n"
        "  to=<num>\n"
        "  wait=<bool (on/off)>\n"
    )
