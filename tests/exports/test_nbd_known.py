# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from qsd.exports import nbd_known
from qsd.exports.nbd_known import KnownData

MIB = 1 << 20


def test_known_data() -> None:
    known = KnownData(3 * MIB + 5)
    assert not known.covers(0, 1)
    known.add(100, 2 * MIB - 100)
    assert not known.covers(0, MIB)
    assert known.covers(MIB, MIB)
    assert not known.covers(MIB, MIB + 1)
    assert known.is_unknown(2 * MIB + 200)
    assert not known.is_unknown(0)  # a part of it was looked at
    known.add(0, 3 * MIB)
    assert known.covers(5, 3 * MIB - 5)
    known.forget(MIB + 7, 1)
    assert known.covers(0, MIB)
    assert not known.covers(0, 3 * MIB)
    assert known.covers(2 * MIB, MIB)


def test_looks_like_hole() -> None:
    data = bytearray(b"x" * 4096)
    looks = nbd_known._looks_like_hole
    assert not looks(data, 0, 4096, 0)
    data[512:1024] = bytes(512)
    assert looks(data, 0, 4096, 0)
    assert not looks(data, 0, 4096, 256)
    data[:] = b"x" * 4096
    data[:10] = bytes(10)
    assert not looks(data, 0, 4096, 0)
    assert looks(data, 0, 1000, 502)
    data[4090:] = bytes(6)
    assert looks(data, 10, 4096, 16)  # its last 6 bytes begin a block


def test_what_was_read_tells_whether_it_may_be_a_hole() -> None:
    known = KnownData(2 * MIB)
    data = bytearray(b"x" * 4096)
    assert known.may_have_hole(data, 0, 4096, 0)  # nobody has looked
    known.add(100, 4096)
    assert not known.may_have_hole(data, 0, 4096, 4096)
    data[1024:2048] = bytes(1024)
    assert known.may_have_hole(data, 0, 4096, 4096)
    assert not known.may_have_hole(data, 0, 64, 4096)
    known.add(0, MIB)
    assert not known.may_have_hole(data, 0, 4096, 4096)


def test_chunks_that_are_all_data() -> None:
    chunk = 64 * MIB
    known = KnownData(2 * chunk + MIB)
    for index in range(3):
        known.learn_chunk(index)
    assert nbd_known.DATA not in known.all_data
    known.add(0, 2 * chunk + MIB)
    for index in range(3):
        known.learn_chunk(index)
    # The last one is not all there.
    assert [state == nbd_known.DATA for state in known.all_data] == [True, True, False]
    known.forget(chunk + 5 * MIB, 1)
    known.learn_chunk(1)
    assert [state == nbd_known.DATA for state in known.all_data] == [True, False, False]
    known.add(chunk + 5 * MIB, MIB)
    known.learn_chunk(1)
    assert known.all_data[1] == nbd_known.DATA
    known.forget(chunk - 1, 2)
    assert nbd_known.DATA not in known.all_data
    assert len(known.all_data) == 3
