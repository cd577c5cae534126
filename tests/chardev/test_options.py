# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The --chardev option."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.chardev.options import SYNTAX, parse_chardev
from qsd.errors import QmpError
from qsd.qapi.convert import to_json


def parsed(text: str) -> dict[str, Any]:
    warnings: list[str] = []
    option = parse_chardev(text, warnings.append)
    assert option.backend is not None
    assert option.id == "c"
    assert not warnings
    found: dict[str, Any] = to_json(option.backend)
    assert found["type"] == option.backend.type
    data: dict[str, Any] = found["data"]
    return data


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("null,id=c", {}),
        ("null,id=c,logfile=l,logappend=on", {"logfile": "l", "logappend": True}),
        ("file,id=c,path=x", {"out": "x", "append": False}),
        ("pipe,id=c,path=x", {"device": "x"}),
        ("ringbuf,id=c,size=1K", {"size": 1024}),
        ("mux,id=c,chardev=x", {"chardev": "x"}),
        ("stdio,id=c,signal=off", {"signal": False}),
        (
            "socket,id=c,path=a,,b,server=on",
            {"addr": {"type": "unix", "data": {"path": "a,b"}}, "server": True, "wait": True},
        ),
        (
            "socket,id=c,path=a,server=on,wait=off,abstract=on,tight=off",
            {
                "addr": {"type": "unix", "data": {"path": "a", "abstract": True, "tight": False}},
                "server": True,
                "wait": False,
            },
        ),
        (
            "socket,id=c,host=h,port=1,to=70000,ipv6=off,delay=off,reconnect=-1",
            {
                "addr": {
                    "type": "inet",
                    "data": {"host": "h", "port": "1", "to": 4464, "ipv6": False},
                },
                "server": False,
                "nodelay": True,
                "reconnect": -1,
            },
        ),
        ("socket,id=c,fd=5", {"addr": {"type": "fd", "data": {"str": "5"}}, "server": False}),
        ("socket,id=c", {"addr": {"type": "fd", "data": {"str": ""}}, "server": False}),
        (
            "udp,id=c,port=9,localport=7",
            {
                "remote": {"type": "inet", "data": {"host": "localhost", "port": "9"}},
                "local": {"type": "inet", "data": {"host": "", "port": "7"}},
            },
        ),
    ],
)
def test_backends(text: str, data: dict[str, Any]) -> None:
    assert parsed(text) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "chardev: no id specified"),
        ("null", "chardev: no id specified"),
        ("id=c", 'chardev: "c" missing backend'),
        ("bogus,id=c", "'bogus' is not a valid char driver name"),
        ("vc,id=c", "'vc' is not a valid char driver name"),
        ("null,id=9c", "Parameter 'id' expects an identifier"),
        ("null,id=c,bogus=1", "Invalid parameter 'bogus'"),
        ("null,id=c,mux=x", "Parameter 'mux' expects 'on' or 'off'"),
        ("file,id=c", "chardev: file: no filename given"),
        ("pipe,id=c", "chardev: pipe: no device path given"),
        ("serial,id=c", "chardev: serial/tty: no device path given"),
        ("parallel,id=c", "chardev: parallel: no device path given"),
        ("mux,id=c", "chardev: mux: no chardev given"),
        ("udp,id=c,host=h", "chardev: udp: remote port not specified"),
        ("socket,id=c,host=h", "chardev: socket: no port given"),
        ("socket,id=c,path=x,host=", "None or one of 'path', 'fd' or 'host' option required."),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(QmpError) as caught:
        parse_chardev(text, lambda _: None)
    assert caught.value.desc == message


def test_deprecated_spellings() -> None:
    warnings: list[str] = []
    option = parse_chardev("tty,id=c,path=x,server,nowait", warnings.append)
    assert option.backend is not None
    assert option.backend.type == "serial"
    assert warnings == [
        "short-form boolean option 'server' deprecated\nPlease use server=on instead",
        "short-form boolean option 'nowait' deprecated\nPlease use wait=off instead",
        "The alias 'tty' is deprecated, use 'serial' instead",
    ]


def test_mux() -> None:
    option = parse_chardev("null,id=c,mux=on", lambda _: None)
    assert option.mux


def test_help() -> None:
    for text in ("help", "?"):
        option = parse_chardev(text, lambda _: None)
        assert option.help_text is not None
        assert option.help_status == 0
        assert option.help_text.startswith("Available chardev backend types: \n  pty\n  udp\n")
    option = parse_chardev("socket,help", lambda _: None)
    assert option.help_text == SYNTAX.help_text()
    assert option.help_text.startswith("chardev options:\n  abstract=<bool (on/off)>\n")
    assert option.help_text.endswith("  width=<num>\n")
    assert (option.help_status, option.help_text.count("\n")) == (1, 38)
