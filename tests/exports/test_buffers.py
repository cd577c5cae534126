# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from qsd.exports.buffers import BATCH, CLASSES, MAX_IDLE, BufferPool


def test_the_last_holder_gives_a_buffer_back() -> None:
    pool = BufferPool()
    buffer = pool.take(1000)
    assert buffer.size == CLASSES[0] == len(buffer.data) == len(buffer.view)
    buffer.hold()
    buffer.drop()
    assert pool.take(1000) is not buffer
    buffer.drop()
    assert pool.idle_bytes() == CLASSES[0]
    again = pool.take(CLASSES[0])
    assert again is buffer
    assert again.holders == 1


def test_classes() -> None:
    pool = BufferPool()
    assert pool.take(CLASSES[0] + 1).size == CLASSES[1]
    assert pool.take(32 << 20).size == CLASSES[-1]
    huge = pool.take(CLASSES[-1] + 1)
    assert huge.size == CLASSES[-1] + 1
    huge.drop()
    assert pool.idle_bytes() == 0
    batch = pool.take_batch()
    assert batch.size == BATCH
    batch.drop()
    assert pool.take_batch() is batch


def test_idle_memory_is_bounded() -> None:
    pool = BufferPool()
    for size in CLASSES[:4]:
        buffers = [pool.take(size) for _ in range(100)]
        for buffer in buffers:
            buffer.drop()
    assert pool.idle_bytes() <= sum(MAX_IDLE)
