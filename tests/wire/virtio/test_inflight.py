# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The log of chains in flight, across deaths of the daemon at every step."""

from __future__ import annotations

from qsd.wire.virtio.inflight import InflightLog, region_size


def new(size: int = 8) -> tuple[memoryview, InflightLog]:
    region = memoryview(bytearray(region_size(size)))
    log = InflightLog(region, size)
    assert log.recover(5) == []
    return region, log


def test_region_size() -> None:
    assert region_size(64) == 16 + 16 * 64 + 48
    assert region_size(3) == 64


def test_what_was_taken_is_found_again_oldest_first() -> None:
    region, log = new()
    for head in (4, 1, 7, 0):
        log.begin(head)
    log.finish(1)
    log.finished(1, 6)
    again = InflightLog(region, 8)
    assert again.recover(6) == [4, 7, 0]
    again.begin(2)
    assert InflightLog(region, 8).recover(6) == [4, 7, 0, 2]


def test_death_before_the_used_ring_was_changed() -> None:
    region, log = new()
    log.begin(3)
    log.finish(3)
    assert InflightLog(region, 8).recover(5) == [3]


def test_death_after_the_used_ring_was_changed() -> None:
    region, log = new()
    log.begin(3)
    log.begin(4)
    log.finish(3)
    assert InflightLog(region, 8).recover(6) == [4]


def test_a_foreign_region_is_begun_anew() -> None:
    region, log = new()
    log.begin(3)
    assert InflightLog(region[:64], 2).recover(9) == []
    region[12:14] = b"\xff\xff"  # the last batch is beyond the queue
    region[10:12] = (8).to_bytes(2, "little")
    assert InflightLog(region, 8).recover(6) == [3]
