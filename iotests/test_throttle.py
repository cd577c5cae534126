# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Throttle groups by the clock: what comes through is what the limits say, within 5 %."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.nbd import READ, WRITE, Client

SIZE = 16 << 20
#: Seconds; what is granted at once in the beginning is gone by then, and how long is counted.
LEAD, SPAN = 0.5, 2.5
TOLERANCE = 0.05
#: Requests, and seconds at most: so much is looked at for what a daemon gives while nobody keeps it
#: from that.
PART, LONGEST_PART = 200, 1.0

#: How often a story is told before it is believed that too few requests come through.
ATTEMPTS = 8

Story = TypeVar("Story", bound=Callable[..., None])

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(300)]


def serve(kind: str, folder: Path, limits: dict[str, int], members: int = 1) -> Daemon:
    """Start a daemon with nodes "t0", "t1", ... in one group."""
    daemon = Daemon(kind, folder, "--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    daemon.ok("object-add", **{"qom-type": "throttle-group", "id": "tg", "limits": limits})
    for name in (f"t{number}" for number in range(members)):
        null = {"driver": "null-co", "size": SIZE}
        options = {"driver": "throttle", "node-name": name, "throttle-group": "tg", "file": null}
        daemon.ok("blockdev-add", **options)
        daemon.ok(
            "block-export-add",
            **{"type": "nbd", "id": name, "node-name": name, "writable": True},
        )
    return daemon


class TooFewError(AssertionError):
    """Fewer requests came through than the limits grant."""


def unhurried(story: Story) -> Story:
    """Tell a story again where too few requests came through, for that the machine may be to blame.

    A daemon that gives too little by itself does so each time.  One that gives too much fails at
    once.
    """

    @functools.wraps(story)
    def told(tmp_path: Path, **more: Any) -> None:
        for attempt in range(ATTEMPTS):
            folder = tmp_path / str(attempt)
            folder.mkdir()
            try:
                story(tmp_path=folder, **more)
            except TooFewError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    return cast("Story", told)


def test_too_few_are_too_few_in_the_end(tmp_path: Path) -> None:
    @unhurried
    def story(tmp_path: Path) -> None:
        raise TooFewError

    with pytest.raises(TooFewError):
        story(tmp_path=tmp_path)
    assert len(list(tmp_path.iterdir())) == ATTEMPTS


class Guest:
    """Keeps a number of requests in flight and notes when each was answered."""

    def __init__(self, folder: Path, name: str, command: int, length: int, depth: int = 8) -> None:
        self._client = Client(folder / "nbd.sock", name)
        self._command, self._length, self._depth = command, length, depth
        self.replies: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._end = 0.0

    def _send(self) -> None:
        data = bytes(self._length) if self._command == WRITE else b""
        self._client.send(self._command, 1, 0, self._length, data)

    def start(self, seconds: float) -> None:
        """Begin, in a thread."""
        self._end = time.monotonic() + seconds
        self._thread.start()

    def _run(self) -> None:
        for _ in range(self._depth):
            self._send()
        while time.monotonic() < self._end:
            _, error, _ = self._client.receive()
            assert not error
            self.replies.append(time.monotonic())
            self._send()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()
        self._client.close()

    def rate(self, start: float, span: float) -> float:
        """Return the requests per second in a span of time."""
        return sum(start <= at < start + span for at in self.replies) / span

    def check(self, start: float, span: float, expected: float) -> None:
        """See that a span brings no more requests a second than expected, and a part of it so many.

        A machine that is busy with others keeps a daemon from giving what it owes, for a while; it
        never makes it give more.

        Raises:
            TooFewError: No part of it brings so many.
        """
        assert self.rate(start, span) <= expected * (1 + TOLERANCE)
        part = min(PART / expected, LONGEST_PART)
        last = start + span - part
        parts = [self.rate(at, part) for at in self.replies if start <= at <= last]
        if not any(rate == pytest.approx(expected, rel=TOLERANCE) for rate in parts):
            raise TooFewError(f"{expected} expected, {parts} found")


def check_rate(folder: Path, command: int, length: int, expected: float) -> None:
    """See how many requests a second come through."""
    guest = Guest(folder, "t0", command, length)
    start = time.monotonic() + LEAD
    guest.start(LEAD + SPAN)
    guest.join()
    guest.check(start, SPAN, expected)


@pytest.mark.parametrize(
    ("limits", "command", "length", "expected"),
    [
        ({"iops-total": 200}, READ, 512, 200),
        ({"iops-read": 300}, READ, 4096, 300),
        ({"iops-write": 100}, WRITE, 4096, 100),
        ({"bps-total": 1 << 20}, READ, 4096, 256),
        ({"bps-read": 8 << 20}, READ, 65536, 128),
        ({"bps-write": 4 << 20}, WRITE, 16384, 256),
        ({"bps-total": 16 << 20, "iops-total": 150}, WRITE, 4096, 150),
        ({"bps-total": 1 << 20, "iops-total": 1000}, WRITE, 8192, 128),
        # A request counts as many times as it is longer than iops-size.
        ({"iops-total": 800, "iops-size": 4096}, READ, 16384, 200),
        ({"iops-total": 200, "iops-size": 65536}, READ, 4096, 200),
    ],
)
@unhurried
def test_rates(
    limits: dict[str, int], command: int, length: int, expected: float,
    tmp_path: Path, daemon_kind: str,
) -> None:  # fmt: skip
    with serve(daemon_kind, tmp_path, limits) as daemon:
        check_rate(tmp_path, command, length, expected)
        assert daemon.quit() == 0


@pytest.mark.parametrize("seconds", [2, 3])
@unhurried
def test_bursts(seconds: int, tmp_path: Path, daemon_kind: str) -> None:
    """At the higher rate for the length of a burst, at the lower one from then on."""
    limits = {"iops-total": 100, "iops-total-max": 500, "iops-total-max-length": seconds}
    with serve(daemon_kind, tmp_path, limits):
        guest = Guest(tmp_path, "t0", READ, 512)
        start = time.monotonic()
        guest.start(seconds + 5.0)
        guest.join()
        guest.check(start + 0.25, seconds - 0.5, 500)
        # It ends when it has brought so much over the lower rate, and half of that once more is
        # for a daemon that was kept from bringing it in time.
        after = start + seconds * 500 / 400 * 1.5
        guest.check(after, start + seconds + 5.0 - after, 100)


@unhurried
def test_a_burst_without_a_length(tmp_path: Path, daemon_kind: str) -> None:
    """What "max" grants beyond the rate is there at once."""
    with serve(daemon_kind, tmp_path, {"iops-total": 100, "iops-total-max": 400}):
        guest = Guest(tmp_path, "t0", READ, 512)
        start = time.monotonic()
        guest.start(4.0)
        guest.join()
        count = guest.rate(start, 2.0) * 2
        assert count <= 600 * (1 + TOLERANCE)
        if count < 600 * (1 - TOLERANCE):
            raise TooFewError(f"{count} of 600")
        guest.check(start + 2.0, 2.0, 100)


@unhurried
def test_members_share(tmp_path: Path, daemon_kind: str) -> None:
    """However many requests each of them has."""
    with serve(daemon_kind, tmp_path, {"iops-total": 300}, members=3):
        guests = [
            Guest(tmp_path, f"t{n}", READ, 512, depth) for n, depth in enumerate((16, 32, 128))
        ]
        start = time.monotonic() + LEAD
        for guest in guests:
            guest.start(LEAD + SPAN)
        for guest in guests:
            guest.join()
        for guest in guests:
            guest.check(start, SPAN, 100)


@unhurried
def test_limits_change(tmp_path: Path, daemon_kind: str) -> None:
    """While requests wait, by qom-set and by another group."""

    def change(daemon: Daemon, **limits: Any) -> None:
        value = {name.replace("_", "-"): limit for name, limit in limits.items()}
        daemon.ok("qom-set", path="/objects/tg", property="limits", value=value)

    with serve(daemon_kind, tmp_path, {"iops-total": 1}) as daemon:
        guest = Guest(tmp_path, "t0", READ, 512)
        start = time.monotonic()
        guest.start(6.0)
        time.sleep(0.5)
        change(daemon, iops_total=400)
        time.sleep(2.5)
        change(daemon, iops_total=0, bps_total=51200)
        guest.join()
        guest.check(start + 1.0, 2.0, 400)
        guest.check(start + 3.5, 2.5, 100)
        limits = {"qom-type": "throttle-group", "id": "other", "limits": {"iops-total": 250}}
        daemon.ok("object-add", **limits)
        (node,) = (n for n in daemon.ok("query-named-block-nodes") if n["drv"] == "null-co")
        options = {"driver": "throttle", "node-name": "t0", "throttle-group": "other"}
        daemon.ok("blockdev-reopen", options=[{**options, "file": node["node-name"]}])
        check_rate(tmp_path, READ, 512, 250)
