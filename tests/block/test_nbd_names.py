# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Names of NBD exports."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.block.nbd_names import parse_nbd_name
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
    "name",
    ["nbd+unix:///x", "nbd://", "nbd://h:x", "nbd:", "nbd:h", "nbd:h:1:exportname=",
     "nbds://h/x", "nbd+unix://h/x?socket=p", "nbd://h/x?y=1"],
)  # fmt: skip
def test_refused(name: str) -> None:
    with pytest.raises(QmpError):
        parse_nbd_name(name)
