# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
from array import array

import pytest

from qsd.wire.nbd import messages as nbd


@pytest.mark.parametrize(
    ("system", "wire"),
    [
        (errno.EPERM, 1), (errno.EROFS, 1), (errno.EIO, 5), (errno.ENOMEM, 12),
        (errno.EINVAL, 22), (errno.ENOSPC, 28), (errno.EFBIG, 28), (errno.EDQUOT, 28),
        (errno.EOVERFLOW, 75), (errno.ENOTSUP, 95), (errno.ESHUTDOWN, 108), (errno.EACCES, 22),
        (errno.ETIMEDOUT, 22), (errno.EAGAIN, 22), (None, 22), (0, 22),
    ],
)  # fmt: skip
def test_error_code(system: int | None, wire: int) -> None:
    assert nbd.error_code(system) == wire


def test_sizes_are_those_of_the_specification() -> None:
    assert nbd.GREETING.size == 18
    assert nbd.OPTION.size == 16
    assert nbd.OPTION_REPLY.size == 20
    assert nbd.EXPORT_NAME_REPLY.size + len(nbd.EXPORT_NAME_PADDING) == 134
    assert nbd.REQUEST.size == 28
    assert nbd.SIMPLE_REPLY.size == 16
    assert nbd.CHUNK.size == 20
    assert nbd.DATA_CHUNK.size == 28
    assert nbd.HOLE_CHUNK.size == 32
    assert nbd.ERROR_CHUNK.size == 26


def test_replies() -> None:
    assert nbd.simple_reply(7).hex() == "67446698" + "00000000" + "0000000000000007"
    assert nbd.error_reply(7, 5, "text", False).hex() == (
        "67446698" + "00000005" + "0000000000000007"
    )
    assert (
        nbd.error_reply(7, 5, "text", True).hex()
        == ("668e33ef" + "0001" + "8001" + "0000000000000007" + "0000000a" + "00000005" + "0004")
        + b"text".hex()
    )
    assert nbd.none_chunk(7).hex() == "668e33ef" + "0001" + "0000" + "0000000000000007" + "00000000"
    assert nbd.data_header(7, 9, 3, False).hex() == (
        "668e33ef" + "0000" + "0001" + "0000000000000007" + "0000000b" + "0000000000000009"
    )
    assert nbd.hole_chunk(7, 9, 3, True).hex() == (
        "668e33ef" + "0001" + "0002" + "0000000000000007" + "0000000c"
        + "0000000000000009" + "00000003"
    )  # fmt: skip
    chunk = nbd.status_chunk(7, 2, [(512, 3), (1, 0)], True)
    assert chunk.hex() == (
        "668e33ef" + "0001" + "0005" + "0000000000000007" + "00000014"
        + "00000002" + "0000020000000003" + "0000000100000000"
    )  # fmt: skip
    assert nbd.packed_status_chunk(7, 2, array("Q", (512, 1)), b"\3\0", True) == chunk


def test_flags_of_exports() -> None:
    assert nbd.FLAGS_READ_ONLY == 0x50F
    assert nbd.FLAGS_WRITABLE == 0xD6D
