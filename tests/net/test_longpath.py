# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Paths of exactly the length of sun_path."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from qsd.net.longpath import call_with_full_path


def test_bind_and_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = b"x" * 108
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(OSError, match="No such file") as caught:
            call_with_full_path("connect", client, name)
        assert caught.value.errno == errno.ENOENT
        call_with_full_path("bind", server, name)
        server.listen()
        call_with_full_path("connect", client, name)
    assert Path(name.decode()).is_socket()
