# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Each method makes one ioctl with the right number and bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.exports import vduse_kernel
from qsd.exports.vduse_kernel import VduseControl, VduseFile
from qsd.wire.virtio.vduse import Mapping, QueueInfo

Call = tuple[int, bytes]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Record ioctls; those that read are answered with bytes that count up."""
    made: list[Call] = []

    def ioctl(fd: int, number: int, argument: Any = 0) -> int:
        made.append((number, bytes(argument) if argument else b""))
        if isinstance(argument, bytearray):
            argument[:] = bytes(range(1, len(argument) + 1))
        return 33

    monkeypatch.setattr(vduse_kernel, "ioctl", ioctl)
    return made


def test_the_control_file(calls: list[Call], tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    (tmp_path / "disk").touch()
    control = VduseControl(str(tmp_path))
    control.set_version()
    control.create(b"description")
    control.destroy(b"name".ljust(256, b"\0"))
    file = control.open("disk")
    file.close()
    control.close()
    assert calls == [
        (0x40088101, bytes(8)),
        (0x41508102, b"description"),
        (0x41008103, b"name".ljust(256, b"\0")),
    ]


def test_without_the_kernels_part(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        VduseControl(str(tmp_path))


WRITING: list[tuple[Callable[[VduseFile], object], list[Call]]] = [
    (lambda f: f.set_up_queue(2, 256), [(0x40208114, struct.pack("=IH26x", 2, 256))]),
    (lambda f: f.set_kick(1, 9), [(0x40088116, struct.pack("=Ii", 1, 9))]),
    (lambda f: f.set_kick(1, -1), [(0x40088116, struct.pack("=Ii", 1, -1))]),
    (lambda f: f.interrupt(3), [(0x40048117, struct.pack("=I", 3))]),
    (
        lambda f: f.set_config(8, b"abc"),
        [(0x40088112, struct.pack("=II", 8, 3) + b"abc"), (0x8113, b"")],
    ),
]


@pytest.mark.parametrize("index", range(len(WRITING)))
def test_what_is_told(calls: list[Call], index: int) -> None:
    call, expected = WRITING[index]
    call(VduseFile(-1))
    assert calls == expected


def test_what_is_asked(calls: list[Call]) -> None:
    file = VduseFile(-1)
    assert file.features() == int.from_bytes(bytes(range(1, 9)), "little")
    number = struct.Struct("<IQQQH")
    size, desc, avail, used, base = number.unpack_from(bytes(range(1, 49)), 4)
    assert file.queue_info(5) == QueueInfo(size, desc, avail, used, base, ready=True)
    offset, first, last = struct.unpack_from("<QQQ", bytes(range(1, 33)))
    assert file.memory_of(4096, 8191) == (Mapping(offset, first, last, 25), 33)
    assert calls == [
        (0x80088111, bytes(8)),
        (0xC0308115, struct.pack("=I", 5) + bytes(44)),
        (0xC0208110, struct.pack("=QQQ", 0, 4096, 8191) + bytes(8)),
    ]
