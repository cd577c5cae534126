# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Memory of a VDUSE device: asked for when it is used, in one region or several."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from qsd.errors import PeerError
from qsd.exports.vduse_memory import VduseMemory
from qsd.wire.virtio.vduse import Mapping

PAGE = 4096


class Kernel:
    """Regions of two pages at 2 and 4 pages, of one page at 8; the last can only be read."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("memory", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 16 * PAGE)
        for page in range(16):
            os.pwrite(self.fd, bytes([page]) * PAGE, page * PAGE)
        self.asked: list[int] = []
        self.regions = [(2, 2, 3), (4, 2, 3), (8, 1, 1)]

    def ask(self, first: int, last: int) -> tuple[Mapping, int]:
        self.asked.append(first // PAGE)
        for page, count, access in self.regions:
            if first < (page + count) * PAGE and last >= page * PAGE:
                place = Mapping(page * PAGE, page * PAGE, (page + count) * PAGE - 1, access)
                return place, os.dup(self.fd)
        raise OSError(errno.EINVAL, "nothing there")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    os.close(made.fd)


def test_inside_a_region(kernel: Kernel) -> None:
    memory = VduseMemory(kernel.ask)
    assert not memory.regions
    for _ in range(2):
        assert bytes(memory.find(3 * PAGE - 1, 2) or b"") == b"\2\3"
    assert kernel.asked == [2]
    view = memory.find(2 * PAGE, 1)
    assert view is not None
    view[0] = 77
    assert os.pread(kernel.fd, 1, 2 * PAGE) == bytes([77])


def test_across_regions(kernel: Kernel) -> None:
    memory = VduseMemory(kernel.ask)
    assert memory.find(4 * PAGE - 1, 2) is None
    assert [bytes(part) for part in memory.pieces(4 * PAGE - 1, 2)] == [b"\3", b"\4"]
    assert [len(part) for part in memory.pieces(2 * PAGE, 4 * PAGE)] == [2 * PAGE, 2 * PAGE]
    with pytest.raises(PeerError, match="no guest memory"):
        memory.pieces(5 * PAGE, 2 * PAGE)


def test_nowhere(kernel: Kernel) -> None:
    memory = VduseMemory(kernel.ask)
    for address in (0, 6 * PAGE, 7 * PAGE, (1 << 64) - 1, 1 << 64):
        assert memory.find(address, 2 * PAGE) is None
        with pytest.raises(PeerError):
            memory.find_user(address, 16)
    assert not memory.regions


def test_to_be_read_only(kernel: Kernel) -> None:
    memory = VduseMemory(kernel.ask)
    view = memory.find_user(8 * PAGE, 16)
    assert view.readonly
    assert view == bytes([8]) * 16


def test_what_is_forgotten_is_asked_for_again(kernel: Kernel) -> None:
    memory = VduseMemory(kernel.ask)
    old = memory.find_user(2 * PAGE, 4)
    memory.find_user(4 * PAGE, 4)
    memory.forget(0, 2 * PAGE - 1)
    memory.forget(4 * PAGE - 1, 4 * PAGE - 1)
    assert [region.guest for region in memory.regions] == [4 * PAGE]
    assert old == bytes([2]) * 4  # still mapped for whoever uses it
    memory.find_user(2 * PAGE, 4)
    assert kernel.asked == [2, 4, 2]
    memory.forget(0, (1 << 64) - 1)
    assert not memory.regions


def test_what_cannot_be_mapped_is_no_memory(kernel: Kernel) -> None:
    kernel.regions = [(2, 1 << 40, 3)]
    assert VduseMemory(kernel.ask).find(2 * PAGE, 4) is None
    kernel.regions = [(2, 100, 3)]  # beyond the end of the file
    assert VduseMemory(kernel.ask).find(2 * PAGE, 4) is None
