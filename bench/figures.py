# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a workload gives back, and how it is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import clients
from bench.daemon import Daemon


class Figure(NamedTuple):
    """What one run measured.

    Attributes:
        rate: Operations, or runs, per second: more is better.
        cost_us: Processor time of the daemon for one of them, microseconds; 0 if not measured.
            Unlike the rate it hardly depends on what else the machine does.
    """

    rate: float
    cost_us: float = 0.0


Run = Callable[[list[str], Path, float], Figure]


def metered(daemon: Daemon, load: Callable[[], clients.Load]) -> Figure:
    """Measure what a load costs the daemon."""
    before = daemon.processor_time()
    done = load()
    spent = daemon.processor_time() - before
    return Figure(done.rate, spent * 1e6 / max(done.operations, 1))
