# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import select

import pytest

from qsd.aio import slowness
from qsd.aio.slowness import SLOW_PAUSE, WriteWatch, _voluntary_switches


def test_only_waiting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = [7]
    monkeypatch.setattr(slowness, "_voluntary_switches", lambda: switches[0])
    watch = WriteWatch()
    assert watch.until == 0
    switches[0] += 5  # nobody counted before: this one cannot be judged
    watch.was_slow(10.0, 10.1)
    assert watch.until > 10.1
    assert watch.may_write(10.2)
    watch.was_slow(10.2, 10.3)  # preempted
    assert watch.may_write(10.4)
    switches[0] += 1
    watch.was_slow(10.4, 10.5)  # it waited
    assert not watch.may_write(10.6)
    assert not watch.may_write(10.5 + SLOW_PAUSE - 0.01)
    assert watch.may_write(10.5 + SLOW_PAUSE)
    late = watch.until + 1
    switches[0] += 1  # between two writes the loop waits all the time
    watch.was_slow(late, late + 0.1)
    assert watch.may_write(late + 0.2)


def test_the_kernel_counts_waiting() -> None:
    before = _voluntary_switches()
    select.select([], [], [], 0.001)  # what is tested is that this sleeps
    assert _voluntary_switches() > before
