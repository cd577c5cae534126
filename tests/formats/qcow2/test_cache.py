# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The bounded cache of tables."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from qsd.aio.loop import run
from qsd.formats.qcow2.cache import TableCache


def table(value: int = 0) -> array[int]:
    return array("Q", [value] * 8)


def test_the_cache_keeps_what_is_used() -> None:
    cache = TableCache(8)
    for key in range(200):
        cache.put(key, table(key))
        assert cache.get(0) is not None
        assert len(cache) <= 14
    assert 0 in cache
    assert 1 not in cache


def test_a_cache_that_holds_everything_never_forgets() -> None:
    cache = TableCache(8)
    for key in range(8):
        cache.put(key, table(key))
    assert sorted(cache.hot) == list(range(8))


def test_dirty_tables_stay() -> None:
    cache = TableCache(2)
    cache.put(1, table())
    cache.mark(1, 2, 3)
    cache.mark(1, 5, 6)
    for key in range(10, 40):
        cache.put(key, table())
    assert 1 in cache
    assert cache.needs_write_back
    (slot,) = cache.dirty.values()
    assert cache.begin_write(slot) == (2, 6)
    assert not cache.dirty
    for key in range(40, 80):
        cache.put(key, table())
    assert 1 in cache  # while a write is in flight
    cache.end_write(slot, (2, 6))
    assert cache.dirty == {1: slot}
    cache.begin_write(slot)
    cache.end_write(slot)
    for key in range(80, 120):
        cache.put(key, table())
    assert 1 not in cache


def test_nothing_must_be_written_as_long_as_there_is_room() -> None:
    cache = TableCache(4)
    for key in range(3):
        cache.put(key, table())
        cache.mark(key, 0, 1)
        assert not cache.needs_write_back
    cache.put(3, table())
    assert cache.needs_write_back
    for slot in list(cache.dirty.values())[:2]:
        cache.begin_write(slot)
    assert not cache.needs_write_back


def test_one_read_for_all_who_wait() -> None:
    reads = []

    async def read(key: int) -> array[int]:
        reads.append(key)
        await asyncio.sleep(0)
        return table(key)

    async def main() -> None:
        cache = TableCache(4)
        from qsd.aio.tasks import TaskOwner

        owner = TaskOwner("test")
        tasks = [owner.spawn(cache.load(3, read), "load") for _ in range(5)]
        await asyncio.wait(tasks)
        assert all(task.result() is cache.get(3) for task in tasks)

    run(main())
    assert reads == [3]


def test_a_failed_read_is_tried_again_by_the_next() -> None:
    results: list[Exception | array[int]] = [OSError(5, "no"), table(1)]

    async def read(key: int) -> array[int]:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def main() -> None:
        cache = TableCache(4)
        with pytest.raises(OSError, match="no"):
            await cache.load(3, read)
        assert (await cache.load(3, read))[0] == 1

    run(main())


def test_cold_tables_are_hidden_from_fast_paths() -> None:
    cache = TableCache(4)
    cache.keep_cold(1)
    cache.put(1, table())
    assert cache.get(1) is not None
    assert 1 not in cache.hot


def test_cleaning_and_dropping() -> None:
    cache = TableCache(8)
    for key in range(4):
        cache.put(key, table())
    cache.mark(2, 0, 1)
    cache.clean_unused()
    cache.get(1)
    cache.clean_unused()
    assert sorted(cache.keys()) == [1, 2]
    cache.drop(2)
    assert not cache.dirty
    cache.clear()
    assert not len(cache)
