# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What all devices share: users and log files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsd.chardev.base import open_file
from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, with_desk


def test_user_is_told_who_is_there_already() -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("open", backend("ringbuf"))
        await desk.registry.add("never", backend("null"))
        users = Recorder(), Recorder()
        desk.registry.attach("open", users[0])
        desk.registry.attach("never", users[1])
        assert users[0].events == ["opened"]
        assert users[1].events == []

    with_desk(main)


@pytest.mark.parametrize("append", [False, True])
def test_log(tmp_path: Path, append: bool) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old ")

    async def main(desk: Desk) -> None:
        await desk.registry.add("n", backend("null", logfile=str(log), logappend=append))
        device = desk.registry.attach("n", Recorder())
        device.write(b"new")

    with_desk(main)
    assert log.read_bytes() == (b"old new" if append else b"new")


def test_open_file_errors() -> None:
    with pytest.raises(QmpError, match="Could not open 'no/x': No such file or directory"):
        open_file("no/x", 0)
    with pytest.raises(QmpError, match="Could not open 'a\0b': No such file or directory"):
        open_file("a\0b", 0)
