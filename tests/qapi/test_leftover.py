# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Against what QEMU 7.2.22 named when ``blockdev-add`` got members, some of them valid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.qapi.leftover import first_leftover


@pytest.mark.parametrize(
    ("names", "taken", "named"),
    [
        ("failed_wr_operations driver on-target-error", "driver", "on-target-error"),
        ("canbus driver conf x-origin", "driver", "conf"),
        (
            "invalid_unmap_operations snapshot compare_timeout read-zeroes driver backing_file",
            "driver read-zeroes",
            "compare_timeout",
        ),
        (
            "reduced-phys-bits bottom iops-size iops-total-max discard node-name "
            "bps_max_length driver",
            "driver node-name discard",
            "reduced-phys-bits",
        ),
        (
            "proxy-password-secret force-share read-only hugetlbsize driver read-zeroes "
            "detect-zeroes node-name",
            "driver node-name read-only force-share detect-zeroes read-zeroes",
            "hugetlbsize",
        ),
        (
            "ivgen-alg driver hash detect-zeroes read-only force-share discard size "
            "latency-ns auto-read-only read-zeroes node-name",
            "driver node-name discard read-only auto-read-only force-share detect-zeroes "
            "size latency-ns read-zeroes",
            "ivgen-alg",
        ),
        (
            "force-share nodes detect-zeroes auto-read-only driver read-only discard "
            "latency-ns node-name parent-cid persistent size read-zeroes",
            "driver node-name discard read-only auto-read-only force-share detect-zeroes "
            "size latency-ns read-zeroes",
            "nodes",
        ),
        (
            "force-share read-zeroes driver format-specific auto-read-only device bps-"
            "write-max max_rd_latency_ns node-name latency-ns iops-read detect-zeroes read-"
            "only version discard",
            "driver node-name discard read-only auto-read-only force-share detect-zeroes "
            "latency-ns read-zeroes",
            "max_rd_latency_ns",
        ),
        (
            "auto-read-only queue-size failed_wr_operations position aio-max-batch "
            "iops_size detect-zeroes iops_rd_max_length driver granularity read-zeroes "
            "force-share cipher-mode iops_rd_max",
            "driver auto-read-only force-share detect-zeroes read-zeroes",
            "queue-size",
        ),
        (
            "parent-cid flush_latency_histogram latency-ns date-sec sslverify x-perf count "
            "node-name size failed_wr_operations read-zeroes force-share auto-read-only "
            "icount bps-read insert detect-zeroes discard driver abstract bps_wr_max read-"
            "only",
            "driver node-name discard read-only auto-read-only force-share detect-zeroes "
            "size latency-ns read-zeroes",
            "sslverify",
        ),
        ("driver discard count export", "driver discard", "count"),
        (
            "x-bps-read-max driver indev read-only latency-ns auth-client-required",
            "driver read-only latency-ns",
            "indev",
        ),
    ],
)
def test_the_member_that_qemu_names(names: str, taken: str, named: str) -> None:
    assert first_leftover(names.split(), taken.split()) == named


def test_a_single_one() -> None:
    assert first_leftover(["a", "b"], ["a"]) == "b"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=3), min_size=2, max_size=40, unique=True), st.data())
def test_it_is_always_one_that_is_left(names: list[str], data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.sampled_from(names[1:]), unique=True))
    assert first_leftover(names, taken) in set(names) - set(taken)


def test_huge_objects_are_not_played_through() -> None:
    names = [f"n{i}" for i in range(5000)]
    assert first_leftover(names, ["n0"]) == "n1"
