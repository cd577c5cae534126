# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Serial and parallel ports, as far as a machine without them can tell."""

from __future__ import annotations

import os

import pytest

from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, with_desk


def test_serial_line() -> None:
    async def main(desk: Desk) -> None:
        master, slave = os.openpty()
        await desk.registry.add("s", backend("serial", device=os.ttyname(slave)))
        assert desk.filename("s") == "serial"
        user = Recorder()
        device = desk.registry.attach("s", user)
        os.write(master, b"a\x03\r")
        await user.until_data(b"a\x03\r")
        device.write(b"b\n")
        assert os.read(master, 10) == b"b\n"
        device.send_break()
        os.close(master)
        os.close(slave)

    with_desk(main)


@pytest.mark.parametrize(
    ("kind", "device", "text"),
    [
        ("serial", "no/x", "Could not open 'no/x': No such file or directory"),
        ("parallel", "no/x", "Could not open 'no/x': No such file or directory"),
        ("parallel", "/dev/null", "not a parallel port: Inappropriate ioctl for device"),
    ],
)
def test_errors(kind: str, device: str, text: str) -> None:
    async def main(desk: Desk) -> None:
        with pytest.raises(QmpError) as caught:
            await desk.registry.add("p", backend(kind, device=device))
        assert caught.value.desc == f"Failed to add chardev 'p': {text}"

    with_desk(main)


def test_anything_serves_as_a_serial_line() -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("s", backend("serial", device="/dev/null"))
        desk.registry.attach("s", Recorder()).write(b"x")
        desk.registry.send_break("s")

    with_desk(main)
