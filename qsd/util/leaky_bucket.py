# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Rate limits as leaky buckets: pure arithmetic on times that are passed in.

Every request pours water into a bucket, one unit for each byte or each operation.  The bucket leaks
at the *average* rate.  While it holds more than its capacity, the next request has to wait until
the surplus has leaked away; a request itself is never split, so one large request may overfill a
bucket and everything after it pays.

::

        requests                 average  leak of the bucket, units per second; 0: no limit
           |                     maximum  rate allowed in a burst, units per second; 0: no bursts
      \    v    /                length   how long a burst may last, seconds
       \       /   <- level
        \_____/                 capacity of the bucket:  maximum * length
           |                    without bursts:          average / 10
           v  leaks `average`

Without bursts there is still room for a tenth of a second's worth: otherwise every second request
would wait, however slowly they come.  With a `length` above one second, a second bucket that leaks
at `maximum` and holds a tenth of a second's worth keeps the burst itself at its rate; with one
second the main bucket does so already (QEMU's manual on throttling, "Bursts of I/O").

The names of limits are those of the object's ``limits`` property (QMP reference, "ThrottleLimits").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.errors import QmpError
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

NS_PER_SECOND = 1_000_000_000

#: Largest rate, units per second (from the C daemon's error message).
MAX_RATE = 1_000_000_000_000_000

#: The share of a second that a bucket without bursts, or a burst bucket, has room for.
_SHARE_OF_SECOND = 10

KINDS: Final = ("bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write")
"""The six buckets, in the order in which their limits are checked."""

LIMIT_NAMES: Final = (*(kind + part for kind in KINDS for part in ("", "-max", "-max-length")),
                      "iops-size")  # fmt: skip
"""All limits."""


class Rate(NamedTuple):
    """The limit of one bucket.

    Attributes:
        average: Units per second in the long run; 0 is no limit.
        maximum: Units per second in a burst; 0 allows no bursts.
        length: Longest burst, seconds.
    """

    average: int = 0
    maximum: int = 0
    length: int = 1


def default_limits() -> dict[str, int]:
    """Return the limits that limit nothing."""
    return {name: 1 if name.endswith("-length") else 0 for name in LIMIT_NAMES}


def check_limits(limits: Mapping[str, int]) -> None:
    """Refuse limits that contradict each other.

    Args:
        limits: A value for each of :data:`LIMIT_NAMES`.

    Raises:
        QmpError: What is wrong with them; the checks come in the C daemon's order.
    """
    for unit in ("bps", "iops"):
        for part in ("", "-max"):
            total, read, write = (
                limits[f"{unit}-{way}{part}"] for way in ("total", "read", "write")
            )
            if total and (read or write):
                raise QmpError(
                    "bps/iops/max total values and read/write values"
                    " cannot be used at the same time"
                )
    if limits["iops-size"] and not any(limits[kind] for kind in KINDS[3:]):
        raise QmpError("iops size requires an iops value to be set")
    for kind in KINDS:
        _check_rate(Rate(limits[kind], limits[kind + "-max"], limits[kind + "-max-length"]))


def _check_rate(rate: Rate) -> None:
    """Refuse a limit that contradicts itself."""
    average, maximum, length = rate
    if not (0 <= average <= MAX_RATE and 0 <= maximum <= MAX_RATE):
        raise QmpError(f"bps/iops/max values must be within [0, {MAX_RATE}]")
    if length == 0:
        raise QmpError("the burst length cannot be 0")
    if length > 1 and not maximum:
        raise QmpError("burst length set without burst rate")
    if maximum and length > MAX_RATE // maximum:
        raise QmpError("burst length too high for this burst rate")
    if maximum and not average:
        raise QmpError("bps_max/iops_max require corresponding bps/iops values")
    if maximum and maximum < average:
        raise QmpError("bps_max/iops_max cannot be lower than bps/iops")


class LeakyBucket:
    """One limit and how much of it is used up.

    Levels are counted in units times :data:`NS_PER_SECOND`, so that leaking loses no fractions.
    """

    __slots__ = ("_burst_capacity", "_burst_level", "_capacity", "_level", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        average, maximum, length = rate
        if maximum:
            self._capacity = maximum * length * NS_PER_SECOND
        else:
            self._capacity = average * NS_PER_SECOND // _SHARE_OF_SECOND
        self._burst_capacity = maximum * NS_PER_SECOND // _SHARE_OF_SECOND
        self._level = 0
        self._burst_level = 0

    def leak(self, elapsed_ns: int) -> None:
        """Let the time since the last call pass."""
        self._level = max(0, self._level - self.rate.average * elapsed_ns)
        if self.rate.length > 1:
            self._burst_level = max(0, self._burst_level - self.rate.maximum * elapsed_ns)

    def pour(self, scaled_units: int) -> None:
        """Count a request; its units come multiplied by :data:`NS_PER_SECOND`."""
        self._level += scaled_units
        if self.rate.length > 1:
            self._burst_level += scaled_units

    def wait_ns(self) -> int:
        """Return how long the next request has to wait, in ns; 0 if it may go at once."""
        average, maximum, length = self.rate
        if not average:
            return 0
        surplus = self._level - self._capacity
        if surplus > 0:
            return -(-surplus // average)
        if length > 1:
            surplus = self._burst_level - self._burst_capacity
            if surplus > 0:
                return -(-surplus // maximum)
        return 0


class Throttle:
    """The six buckets that a request has to get past.

    Reads are held up by the buckets for reads and for the total, writes likewise.

    Args:
        limits: Checked limits, a value for each of :data:`LIMIT_NAMES`.
        now_ns: The time, on any clock that never goes back.
    """

    __slots__ = ("_buckets", "_iops_size", "_last_ns", "is_limiting")

    def __init__(self, limits: Mapping[str, int], now_ns: int = 0) -> None:
        rates = {
            kind: Rate(limits[kind], limits[kind + "-max"], limits[kind + "-max-length"])
            for kind in KINDS
        }
        # A limit of zero needs no bucket; most of the six are zero.  The flag tells bytes from
        # operations.  Index 0 is for reads, 1 for writes; the buckets for the total are in both.
        buckets = {kind: LeakyBucket(rate) for kind, rate in rates.items() if rate.average}
        self._buckets = tuple(
            tuple(
                (kind.startswith("bps"), bucket)
                for kind, bucket in buckets.items()
                if kind.endswith(("-total", way))
            )
            for way in ("-read", "-write")
        )
        self._iops_size = limits["iops-size"] if limits["iops-size"] > 0 else 0
        self._last_ns = now_ns
        #: Whether there is any limit at all.
        self.is_limiting = bool(buckets)

    def delay_ns(self, is_write: bool, now_ns: int) -> int:
        """Return how long the next request has to wait, in ns; 0 if it may go at once."""
        self._leak(now_ns)
        return max((bucket.wait_ns() for _, bucket in self._buckets[is_write]), default=0)

    def account(self, is_write: bool, length: int) -> None:
        """Count a request that goes now.

        Args:
            is_write: Whether it writes.
            length: Its length, bytes.
        """
        operations = NS_PER_SECOND
        if self._iops_size and length > self._iops_size:
            # A large request counts as several, and a fraction (QMP reference, "ThrottleLimits",
            # iops-size).
            operations = length * NS_PER_SECOND // self._iops_size
        for counts_bytes, bucket in self._buckets[is_write]:
            bucket.pour(length * NS_PER_SECOND if counts_bytes else operations)

    def _leak(self, now_ns: int) -> None:
        """Let all buckets leak until `now_ns`."""
        elapsed_ns = now_ns - self._last_ns
        if elapsed_ns <= 0:
            return
        self._last_ns = now_ns
        for bucket in {id(bucket): bucket for way in self._buckets for _, bucket in way}.values():
            bucket.leak(elapsed_ns)
