# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Devices on named pipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, with_desk


def test_two_pipes(tmp_path: Path) -> None:
    base = tmp_path / "p"
    for suffix in ("in", "out"):
        os.mkfifo(f"{base}.{suffix}")

    async def main(desk: Desk) -> None:
        await desk.registry.add("p", backend("pipe", device=str(base)))
        user = Recorder()
        device = desk.registry.attach("p", user)
        sender = os.open(f"{base}.in", os.O_WRONLY)
        os.write(sender, b"question")
        await user.until_data(b"question")
        os.close(sender)
        reader = os.open(f"{base}.out", os.O_RDONLY)
        device.write(b"answer")
        assert os.read(reader, 100) == b"answer"
        os.close(reader)
        assert user.events == ["opened"]

    with_desk(main)


def test_one_pipe(tmp_path: Path) -> None:
    path = tmp_path / "p"
    os.mkfifo(path)
    os.mkfifo(f"{path}.in")

    async def main(desk: Desk) -> None:
        await desk.registry.add("p", backend("pipe", device=str(path)))
        assert desk.filename("p") == "pipe"
        user = Recorder()
        desk.registry.attach("p", user)
        sender = os.open(path, os.O_WRONLY)
        os.write(sender, b"x")
        os.close(sender)
        await user.until_data(b"x")

    with_desk(main)


def test_errors() -> None:
    async def main(desk: Desk) -> None:
        with pytest.raises(QmpError, match="Could not open 'no/x': No such file or directory"):
            await desk.registry.add("p", backend("pipe", device="no/x"))

    with_desk(main)
