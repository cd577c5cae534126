# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The arithmetic of throttling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.errors import QmpError
from qsd.util.leaky_bucket import (
    KINDS,
    LIMIT_NAMES,
    MAX_RATE,
    NS_PER_SECOND,
    LeakyBucket,
    Rate,
    Throttle,
    check_limits,
    default_limits,
)

BOTH = "bps/iops/max total values and read/write values cannot be used at the same time"
RANGE = "bps/iops/max values must be within [0, 1000000000000000]"
NO_RATE = "bps_max/iops_max require corresponding bps/iops values"
TOO_LONG = "burst length too high for this burst rate"
ZERO = "the burst length cannot be 0"
NO_BURST = "burst length set without burst rate"
BIG = MAX_RATE + 1


def limits(**values: int) -> dict[str, int]:
    given = {name.replace("_", "-"): value for name, value in values.items()}
    assert set(given) <= set(LIMIT_NAMES)
    return default_limits() | given


# Each pair was tried with the C daemon; the order of checks shows where several things are wrong.
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iops_size": 5, "bps_total": 1, "bps_read": 1}, BOTH),
        ({"bps_total": BIG, "bps_read": 1}, BOTH),
        ({"bps_total": 1, "bps_write": 6}, BOTH),
        ({"bps_total_max": 5, "bps_read_max": 6}, BOTH),
        ({"iops_total": 1, "iops_read": 1}, BOTH),
        ({"iops_size": 5, "bps_total": BIG}, "iops size requires an iops value to be set"),
        ({"bps_total": BIG, "bps_total_max_length": 0}, RANGE),
        ({"bps_total": 5, "bps_total_max": BIG, "bps_total_max_length": 0}, RANGE),
        ({"bps_total": -1}, RANGE),
        ({"bps_total_max": 5, "bps_total_max_length": 0}, ZERO),
        ({"bps_total_max_length": 2}, NO_BURST),
        ({"bps_total_max": 5}, NO_RATE),
        ({"bps_total_max": 5, "bps_total_max_length": 4294967295}, NO_RATE),
        ({"bps_total_max": MAX_RATE, "bps_total_max_length": 4294967295}, TOO_LONG),
        ({"bps_total": 2 * 10**14, "bps_total_max": 10**14, "bps_total_max_length": 11}, TOO_LONG),
        ({"bps_total": 1, "bps_total_max": 3 * 10**14, "bps_total_max_length": 4}, TOO_LONG),
        ({"iops_total": 9, "iops_total_max": 8}, "bps_max/iops_max cannot be lower than bps/iops"),
        ({"bps_read_max_length": 0, "bps_write_max_length": 2}, ZERO),
        ({"bps_write_max_length": 2, "iops_total_max_length": 0}, NO_BURST),
    ],
)
def test_contradictions(values: dict[str, int], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        check_limits(limits(**values))
    assert caught.value.desc == message


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bps_total": 10, "iops_read": 1, "iops_write": 1},
        {"iops_total": 1, "iops_size": BIG},
        {"iops_total": 100, "iops_total_max": 100},
        {"bps_total": 1, "bps_total_max": 3 * 10**14, "bps_total_max_length": 3},
    ],
)
def test_good_limits(values: dict[str, int]) -> None:
    check_limits(limits(**values))


def test_no_limit_no_wait() -> None:
    throttle = Throttle(default_limits())
    assert not throttle.is_limiting
    throttle.account(is_write=True, length=1 << 40)
    assert throttle.delay_ns(True, 0) == 0


def test_room_without_bursts() -> None:
    """A tenth of a second's worth goes at once, then one request per 1/100 s."""
    throttle = Throttle(limits(iops_total=100))
    assert throttle.is_limiting
    for _ in range(10):
        assert throttle.delay_ns(False, 0) == 0
        throttle.account(False, 4096)
    assert throttle.delay_ns(False, 0) == 0  # the bucket is full, not overfull
    throttle.account(False, 4096)
    assert throttle.delay_ns(False, 0) == NS_PER_SECOND // 100
    assert throttle.delay_ns(False, NS_PER_SECOND // 200) == NS_PER_SECOND // 200
    assert throttle.delay_ns(False, NS_PER_SECOND // 100) == 0


def test_reads_and_writes_apart() -> None:
    throttle = Throttle(limits(bps_read=1000, bps_write=0))
    throttle.account(False, 1100)
    assert throttle.delay_ns(False, 0) == NS_PER_SECOND
    assert throttle.delay_ns(True, 0) == 0


def test_total_holds_up_both() -> None:
    throttle = Throttle(limits(bps_total=1000))
    throttle.account(True, 600)
    assert throttle.delay_ns(False, 0) == throttle.delay_ns(True, 0) == NS_PER_SECOND // 2
    # The bucket is in both directions but leaks once.
    assert throttle.delay_ns(False, NS_PER_SECOND // 4) == NS_PER_SECOND // 4


@pytest.mark.parametrize(("length", "operations"), [(4096, 1.0), (16384, 4.0), (13312, 3.25)])
def test_large_requests_count_as_several(length: int, operations: float) -> None:
    throttle = Throttle(limits(iops_write=1, iops_size=4096))
    throttle.account(True, length)
    assert throttle.delay_ns(True, 0) == (operations - 0.1) * NS_PER_SECOND


def test_burst() -> None:
    """A burst of one second may take `max` units at once."""
    bucket = LeakyBucket(Rate(100, 1000, 1))
    bucket.pour(1000 * NS_PER_SECOND)
    assert bucket.wait_ns() == 0
    bucket.pour(NS_PER_SECOND)
    assert bucket.wait_ns() == NS_PER_SECOND // 100


def test_long_burst_keeps_its_rate() -> None:
    bucket = LeakyBucket(Rate(100, 1000, 60))
    bucket.pour(101 * NS_PER_SECOND)
    assert bucket.wait_ns() == NS_PER_SECOND // 1000
    bucket.leak(NS_PER_SECOND // 1000)
    assert bucket.wait_ns() == 0


@given(
    kind=st.sampled_from(KINDS),
    rate=st.integers(1, 10**6),
    requests=st.lists(st.integers(1, 10**5), min_size=1, max_size=50),
    is_write=st.booleans(),
)
def test_long_run_average(kind: str, rate: int, requests: list[int], is_write: bool) -> None:
    """Whoever waits as told never exceeds the rate by more than the room and the last request."""
    throttle = Throttle(default_limits() | {kind: rate})
    now = 0
    poured = 0
    for length in requests:
        now += throttle.delay_ns(is_write, now)
        assert throttle.delay_ns(is_write, now) == 0
        assert poured * NS_PER_SECOND <= rate * now + rate * NS_PER_SECOND // 10 + 1
        throttle.account(is_write, length)
        applies = kind.endswith("total") or kind.endswith("write") == is_write
        poured += (length if kind.startswith("bps") else 1) if applies else 0


def test_time_never_goes_back() -> None:
    throttle = Throttle(limits(bps_total=1000), now_ns=5 * NS_PER_SECOND)
    throttle.account(True, 1100)
    assert throttle.delay_ns(True, 0) == NS_PER_SECOND
    assert throttle.delay_ns(True, 5 * NS_PER_SECOND) == NS_PER_SECOND
