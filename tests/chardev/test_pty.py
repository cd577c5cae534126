# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Devices that are a terminal."""

from __future__ import annotations

import os

import pytest

from qsd.chardev import pty
from tests.chardev.support import Desk, Recorder, backend, with_desk


def test_terminal_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "POLL_PAUSE", 0.001)

    async def main(desk: Desk) -> None:
        made = await desk.registry.add("p", backend("pty"))
        assert made.pty is not None
        assert made.pty.startswith("/dev/")
        assert desk.filename("p") == f"pty:{made.pty}"
        user = Recorder()
        device = desk.registry.attach("p", user)
        assert not device.is_open
        for round_number in (1, 2):
            terminal = os.open(made.pty, os.O_RDWR | os.O_NOCTTY)
            await user.until_event("opened", round_number)
            os.write(terminal, b"x")
            await user.until_data(b"x" * round_number)
            device.write(b"answer\n")
            assert os.read(terminal, 100) == b"answer\n"
            os.close(terminal)
            await user.until_event("closed", round_number)

    with_desk(main)


def test_command_line_tells_the_name(capfd: pytest.CaptureFixture[str]) -> None:
    async def main(desk: Desk) -> None:
        await desk.option("pty,id=p")
        path = desk.filename("p").removeprefix("pty:")
        assert capfd.readouterr().out == f"char device redirected to {path} (label p)\n"

    with_desk(main)
