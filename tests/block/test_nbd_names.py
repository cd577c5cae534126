# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Names of NBD exports."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.block.nbd_names import modern_options, parse_nbd_name
from qsd.errors import QmpError


def inet(host: str, port: str) -> dict[str, Any]:
    return {"type": "inet", "host": host, "port": port}


@pytest.mark.parametrize(
    ("name", "server", "export"),
    [
        ("nbd://h", inet("h", "10809"), None),
        ("nbd+tcp://h:5/x", inet("h", "5"), "x"),
        ("nbd://[::1]:5/a%20b", inet("::1", "5"), "a b"),
        ("nbd+unix:///x?socket=/p", {"type": "unix", "path": "/p"}, "x"),
        ("nbd+unix://?socket=p", {"type": "unix", "path": "p"}, None),
        ("nbd:h:5", inet("h", "5"), None),
        ("nbd:[::1]:5:exportname=x", inet("::1", "5"), "x"),
        ("nbd:unix:/p:exportname=a:b", {"type": "unix", "path": "/p"}, "a:b"),
    ],
)
def test_names(name: str, server: dict[str, Any], export: str | None) -> None:
    expected = {"server": server} if export is None else {"server": server, "export": export}
    assert parse_nbd_name(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nbd+unix:///x", "No valid URL specified"),
        ("nbd://", "No valid URL specified"),
        ("nbd://h:x", "No valid URL specified"),
        ("nbds://h/x", "No valid URL specified"),
        ("nbd+unix://h/x?socket=p", "No valid URL specified"),
        ("nbd://h/x?y=1", "No valid URL specified"),
        ("nbd:", "NBD server address missing"),
        ("nbd:h:1:exportname=", "NBD server address missing"),
        ("nbd:h", "error parsing address 'h'"),
    ],
)
def test_refused(name: str, message: str) -> None:
    with pytest.raises(QmpError) as caught:
        parse_nbd_name(name)
    assert caught.value.desc == message


@pytest.mark.parametrize(
    ("options", "server"),
    [
        ({"path": "p"}, {"type": "unix", "path": "p"}),
        ({"host": "h"}, inet("h", "10809")),
        ({"host": "h", "port": 5}, inet("h", "5")),
        ({"server": {"type": "unix", "path": "q"}}, {"type": "unix", "path": "q"}),
    ],
)
def test_options_of_old_images(options: dict[str, Any], server: dict[str, Any]) -> None:
    old = {"driver": "raw", "file": {"driver": "nbd", "export": "x", **options}}
    new = {"driver": "raw", "file": {"driver": "nbd", "export": "x", "server": server}}
    assert modern_options(old) == new


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "p", "host": "h"}, "path and host may not be used at the same time"),
        ({"port": "5"}, "NBD server address missing"),
        ({}, "NBD server address missing"),
    ],
)
def test_old_options_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        modern_options({"driver": "nbd", **options})
    assert caught.value.desc == message
