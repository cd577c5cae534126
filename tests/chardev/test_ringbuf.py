# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Devices that remember."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.chardev.ringbuf import DEFAULT_SIZE, RingbufChardev
from qsd.errors import QmpError
from qsd.qapi.schema.char import ChardevRingbuf
from tests.chardev.support import Desk, backend, with_desk


@given(st.sampled_from([1, 2, 8, 64]), st.lists(st.binary(max_size=100) | st.integers(1, 50)))
@settings(max_examples=50)
def test_keeps_the_last_bytes(size: int, steps: list[bytes | int]) -> None:
    device = RingbufChardev("r", ChardevRingbuf(size=size))
    model = b""
    for step in steps:
        if isinstance(step, bytes):
            device.put(step)
            model = (model + step)[-size:]
        else:
            assert device.take(step) == model[:step]
            model = model[step:]


def test_sizes() -> None:
    async def main(desk: Desk) -> None:
        for size in (7, -1, -8):
            with pytest.raises(QmpError, match="size of ringbuf chardev must be power of two"):
                await desk.registry.add("r", backend("ringbuf", size=size))
        await desk.registry.add("r", backend("memory", size=0))
        assert desk.filename("r") == "memory"
        device = desk.registry.find("r")
        assert isinstance(device, RingbufChardev)
        device.put(b"x" * (DEFAULT_SIZE + 1))
        assert len(device.take(1 << 40)) == DEFAULT_SIZE

    with_desk(main)
