# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Devices on plain descriptors."""

from __future__ import annotations

import os
from typing import NoReturn

from qsd.chardev.base import Environment
from qsd.chardev.descriptor import DescriptorChardev
from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, with_desk


class Pair(DescriptorChardev):
    """A device on descriptors made by the test."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        super().__init__("p", "pair")
        self._fds = read_fd, write_fd

    async def _open(self, env: Environment) -> None:
        self._use(*self._fds)


def _no_tls(name: str, endpoint: str, authz: str | None) -> NoReturn:
    raise QmpError("there is no TLS here")


def test_input_waits_for_a_user_and_the_end_closes() -> None:
    async def main(desk: Desk) -> None:
        source, feed = os.pipe()
        sink_reader, sink = os.pipe()
        device = Pair(source, sink)
        env = Environment(
            by_monitor=False,
            in_background=False,
            report=print,
            find=desk.registry.find,
            has_kind=lambda kind: False,
            find_tls=_no_tls,
        )
        await device.open(None, env)
        os.write(feed, b"early")
        device.resume()
        first = Recorder()
        device.attach(first)
        await first.until_data(b"early")
        device.detach()
        os.write(feed, b" late")
        second = Recorder()
        device.attach(second)
        await second.until_data(b" late")
        assert first.data == b"early"
        device.write(b"out")
        assert os.read(sink_reader, 10) == b"out"
        assert device.pending == 0
        os.close(feed)
        await second.until_event("closed")
        device.write(b"still")
        assert os.read(sink_reader, 10) == b"still"
        await device.close()
        assert os.read(sink_reader, 10) == b""
        os.close(sink_reader)

    with_desk(main)
