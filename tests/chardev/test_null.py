# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The device to nowhere."""

from __future__ import annotations

from tests.chardev.support import Desk, Recorder, backend, with_desk


def test_swallows() -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("n", backend("null"))
        user = Recorder()
        device = desk.registry.attach("n", user)
        device.write(b"x" * 1000)
        device.pause()
        device.resume()
        assert device.pending == 0
        assert user.events == []

    with_desk(main)
