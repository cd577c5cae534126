# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import mmap
import threading

from qsd.aio.bounce import BouncePool
from qsd.aio.fdio import address_of


def test_buffers_are_aligned_and_large_enough() -> None:
    pool = BouncePool()
    for length in (1, 512, 4096, 4097, 65536, 100_000, 5 << 20):
        buffer = pool.take(length)
        assert len(buffer) >= length
        with memoryview(buffer) as view:
            assert address_of(view) % mmap.PAGESIZE == 0
        pool.give(buffer)


def test_buffers_are_used_again() -> None:
    pool = BouncePool()
    first = pool.take(8192)
    second = pool.take(8192)
    assert first is not second
    pool.give(first)
    assert pool.take(5000) is first
    pool.give(first)
    pool.give(second)
    assert pool.kept() == 16384


def test_what_is_kept_is_bounded() -> None:
    pool = BouncePool()
    for length in (4096, 1 << 20, 4 << 20, 16 << 20):
        buffers = [pool.take(length) for _ in range(20)]
        for buffer in buffers:
            pool.give(buffer)
    assert pool.kept() <= 3 * (6 << 20)
    pool.give(pool.take(16 << 20))
    assert pool.kept() <= 3 * (6 << 20)


def test_threads_never_share_a_buffer() -> None:
    pool = BouncePool()
    clashes: list[int] = []

    def work(number: int) -> None:
        mark = number.to_bytes(4, "little")
        for _ in range(300):
            buffer = pool.take(4096)
            buffer[:4] = mark
            buffer[4092:4096] = mark
            if buffer[:4] != mark or buffer[4092:4096] != mark:
                clashes.append(number)
            pool.give(buffer)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
