# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Telnet's commands in and around data."""

from __future__ import annotations

import pytest

from qsd.chardev.telnet import TelnetFilter


def test_opening() -> None:
    assert TelnetFilter(tn3270=False).start().hex() == "fffb01fffb03fffb00fffd00"
    assert TelnetFilter(tn3270=True).start().hex() == "fffd19fffb19fffd00fffb00fffd18fffa1801fff0"


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (b"abc", b"abc"),
        (b"a\xff\xffb", b"a\xffb"),
        (b"a\xff\xfd\x03b", b"ab"),
        (b"a\xff\xf4b", b"ab"),
        (b"a\xff\xfa\x18\x00xterm\xff\xf0b", b"ab"),
        (b"a\xff\xfa" + b"z" * 1000, b"a"),
    ],
)
def test_input(data: bytes, plain: bytes) -> None:
    whole = TelnetFilter(tn3270=False)
    assert whole.receive(data) == (plain, b"", True)
    single = TelnetFilter(tn3270=False)
    assert b"".join(single.receive(bytes([byte]))[0] for byte in data) == plain
    assert len(single._command) <= 4


def test_3270_opens_when_the_terminal_is_known() -> None:
    device = TelnetFilter(tn3270=True)
    assert not device.is_ready
    device.receive(b"\xff\xfb\x18\xff\xfa\x18\x00IBM-3278\xff\xf0")
    assert device.is_ready


def test_output() -> None:
    assert TelnetFilter(tn3270=False).encode(b"a\xffb") == b"a\xff\xffb"
