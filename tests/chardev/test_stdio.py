# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The device on standard input and output."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator

import pytest

from qsd.chardev import stdio
from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, with_desk


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Have a new terminal, instead of the real streams, serve as both."""
    master, slave = os.openpty()
    output = os.dup(slave)
    monkeypatch.setattr(stdio, "_STDIN", slave)
    monkeypatch.setattr(stdio, "_STDOUT", output)
    yield master, slave
    for fd in (master, slave, output):
        os.close(fd)


def test_talk_and_restore(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    before = termios.tcgetattr(slave)

    async def main(desk: Desk) -> None:
        await desk.registry.add("s", backend("stdio"))
        assert desk.filename("s") == "stdio"
        assert not os.get_blocking(slave)
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON)
        assert termios.tcgetattr(slave)[3] & termios.ISIG
        user = Recorder()
        device = desk.registry.attach("s", user)
        os.write(master, b"a\r")
        await user.until_data(b"a\r")
        device.write(b"answer")
        assert os.read(master, 100) == b"answer"

    with_desk(main)
    assert os.get_blocking(slave)
    assert termios.tcgetattr(slave) == before


def test_signals_off(terminal: tuple[int, int]) -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("s", backend("stdio", signal=False))
        assert not termios.tcgetattr(terminal[1])[3] & termios.ISIG

    with_desk(main)


def test_only_one(terminal: tuple[int, int]) -> None:
    async def main(desk: Desk) -> None:
        await desk.option("stdio,id=s")
        with pytest.raises(QmpError, match="cannot use stdio by multiple character devices"):
            await desk.option("stdio,id=t")
        await desk.registry.remove("s")
        await desk.option("stdio,id=t")

    with_desk(main)


def test_not_in_the_background() -> None:
    async def main(desk: Desk) -> None:
        with pytest.raises(QmpError, match="cannot use stdio with -daemonize"):
            await desk.option("stdio,id=s")

    with_desk(main, in_background=True)
