# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import mmap

import pytest

from qsd.aio.operations import HEAD, LONGEST, CalledOperation, OperationPool


@pytest.mark.parametrize("length", [1, 512, 4096, 4097, 65536, LONGEST])
def test_payload_is_aligned_and_has_room_in_front(length: int) -> None:
    pool = OperationPool()
    operation = pool.take(length)
    assert operation.address % mmap.PAGESIZE == 0
    assert operation.size >= length == operation.length
    operation.memory[HEAD - 4 : HEAD] = b"head"
    operation.payload()[:] = bytes([7]) * length
    operation.cut(4)
    assert bytes(operation.piece) == b"head" + bytes([7]) * length


def test_operations_are_used_again() -> None:
    pool = OperationPool()
    first, second = pool.take(4096), pool.take(4096)
    first.cut(16)
    second.drop()
    first.drop()
    assert pool.idle_bytes() == 8192
    again = pool.take(100)
    assert again is first  # the last one used is the one in the processor's cache
    assert again.length == 100
    assert len(again.piece) == 16 + 4096
    assert pool.shelf(4096) == [second]
    assert pool.take(4096) is second
    assert pool.take(4096) not in (first, second)


def test_what_is_kept_is_bounded() -> None:
    pool = OperationPool()
    operations = [pool.take(LONGEST) for _ in range(4)]
    for operation in operations:
        operation.drop()
    assert 0 < pool.idle_bytes() < 4 * LONGEST


def test_whether_all_was_moved() -> None:
    operation = OperationPool().take(8)
    for result, full in ((8, True), (4, False), (-5, False)):
        operation.result = result
        assert operation.is_full is full


def test_callbacks_get_results() -> None:
    results: list[int] = []
    operations = [CalledOperation(0, 8, 0, None, results.append) for _ in range(2)]
    operations[0].result, operations[1].result = 8, -5
    operations[0].sink.finished(list(operations))
    assert results == [8, -5]
