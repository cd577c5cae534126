# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a reply may say."""

from __future__ import annotations

import errno

import pytest

from qsd.errors import PeerError
from qsd.protocols.nbd.request import Request
from qsd.wire.nbd import messages as nbd


def read(length: int = 512) -> tuple[Request, bytearray]:
    memory = bytearray(b"?" * length)
    return Request(nbd.CMD_READ, 0, 1000, length, memoryview(memory), lambda _: None), memory


def status() -> Request:
    return Request(nbd.CMD_BLOCK_STATUS, 0, 0, 512, None, lambda _: None)


def test_data_and_holes_fill_the_buffer() -> None:
    request, memory = read()
    request.take_data(1000, 12)[:] = b"hello, world"
    request.take_chunk(1, nbd.REPLY_OFFSET_HOLE, nbd.OFFSET_AND_HOLE.pack(1012, 500), None)
    request.check_whole()
    assert memory == b"hello, world" + bytes(500)


@pytest.mark.parametrize(
    ("offset", "length"), [(999, 1), (1000, 513), (1512, 1), (1000, 0), (1000, -8), (0, 512)]
)
def test_data_outside_of_the_request(offset: int, length: int) -> None:
    request, _ = read()
    with pytest.raises(PeerError, match="exceeding requested region"):
        request.take_data(offset, length)


def test_a_byte_is_not_given_twice() -> None:
    request, _ = read()
    request.take_data(1000, 300)
    with pytest.raises(PeerError, match="exceeding requested region"):
        request.take_data(1000, 300)


def test_a_read_must_be_whole() -> None:
    request, _ = read()
    request.take_data(1000, 300)
    with pytest.raises(PeerError, match="less data"):
        request.check_whole()
    request.refuse(5)
    request.check_whole()


def test_the_first_error_counts() -> None:
    request, _ = read()
    text = nbd.ERROR_TEXT.pack(28, 4) + b"full"
    request.take_chunk(0, nbd.REPLY_ERROR, text, None)
    request.take_chunk(1, nbd.REPLY_ERROR, nbd.ERROR_TEXT.pack(5, 0), None)
    assert request.error is not None
    assert request.error.errno == errno.ENOSPC
    with pytest.raises(PeerError, match="REPLY_TYPE_ERROR"):
        request.take_chunk(1, nbd.REPLY_ERROR, b"abc", None)


def test_an_error_without_number_is_one() -> None:
    request, _ = read()
    request.take_chunk(1, nbd.REPLY_ERROR, nbd.ERROR_TEXT.pack(0, 0), None)
    assert request.error is not None
    assert request.error.errno == errno.EINVAL


def test_extents() -> None:
    request = status()
    data = nbd.U32.pack(3) + nbd.EXTENT.pack(512, 0) + nbd.EXTENT.pack(100, 3)
    request.take_chunk(1, nbd.REPLY_BLOCK_STATUS, data, 3)
    request.check_whole()
    assert request.extents == [(512, 0), (100, 3)]
    with pytest.raises(PeerError, match="BLOCK_STATUS"):
        request.take_chunk(1, nbd.REPLY_BLOCK_STATUS, data, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        nbd.U32.pack(3),
        nbd.U32.pack(4) + nbd.EXTENT.pack(512, 0),
        nbd.U32.pack(3) + nbd.EXTENT.pack(512, 0)[:-1],
        nbd.U32.pack(3) + nbd.EXTENT.pack(0, 0),
        nbd.U32.pack(3) + nbd.EXTENT.pack(9, 0) + nbd.EXTENT.pack(0, 0),
    ],
)
def test_bad_extents(data: bytes) -> None:
    with pytest.raises(PeerError, match="BLOCK_STATUS"):
        status().take_chunk(1, nbd.REPLY_BLOCK_STATUS, data, 3)


def test_a_status_must_have_extents() -> None:
    request = status()
    request.take_chunk(1, nbd.REPLY_NONE, b"", 3)
    with pytest.raises(PeerError, match="any status extents"):
        request.check_whole()


@pytest.mark.parametrize(
    ("flags", "kind", "data"),
    [
        (0, nbd.REPLY_NONE, b""),
        (1, nbd.REPLY_NONE, b"x"),
        (1, nbd.REPLY_OFFSET_HOLE, b"x"),
        (1, 77, b""),
        (1, nbd.REPLY_BLOCK_STATUS, nbd.U32.pack(0) + nbd.EXTENT.pack(512, 0)),
    ],
)
def test_chunks_that_break_the_protocol(flags: int, kind: int, data: bytes) -> None:
    request, _ = read()
    with pytest.raises(PeerError, match="Protocol error"):
        request.take_chunk(flags, kind, data, 0)
