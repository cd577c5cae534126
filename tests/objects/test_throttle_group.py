# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Throttle groups: two ways to set the same limits."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.throttle_group import ThrottleGroup
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.throttle import ThrottleGroupProperties, ThrottleLimits
from qsd.util.leaky_bucket import LIMIT_NAMES, default_limits

BOTH = "bps/iops/max total values and read/write values cannot be used at the same time"


def make(tree: ObjectTree | None = None, **options: Any) -> ThrottleGroup:
    properties = ThrottleGroupProperties(**options)
    made = run((tree or ObjectTree()).create("throttle-group", "tg", properties))
    assert isinstance(made, ThrottleGroup)
    return made


def test_defaults() -> None:
    group = make()
    assert group.get_json("limits") == default_limits()
    assert [group.get_json(f"x-{name}") for name in LIMIT_NAMES] == list(default_limits().values())
    assert not group.throttle.is_limiting


def test_members_of_limits() -> None:
    group = make(limits=ThrottleLimits(iops_total=100))
    assert group.get_json("x-iops-total") == 100
    assert group.throttle.is_limiting


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"x_iops_total": 5, "limits": ThrottleLimits(iops_total=10)}, "iops-total", 10),
        ({"x_bps_read": 5, "limits": ThrottleLimits(bps_read=10)}, "bps-read", 5),
        ({"x_iops_total": 5, "limits": ThrottleLimits(iops_total_max=6)}, "iops-total", 5),
    ],
)
def test_given_both_ways(options: dict[str, Any], name: str, value: int) -> None:
    assert make(**options).limits[name] == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_bps_total": -1}, "Property values cannot be negative"),
        ({"x_bps_total": 10**15 + 1},
         "bps/iops/max values must be within [0, 1000000000000000]"),
        ({"x_iops_total_max_length": 0}, "the burst length cannot be 0"),
        ({"x_iops_total_max_length": 1 << 32},
         "x-iops-total-max-length value must be in therange [0, 4294967295]"),
        ({"x_iops_size": 5}, "iops size requires an iops value to be set"),
        ({"x_iops_read": 1, "limits": ThrottleLimits(iops_total=1)}, BOTH),
        ({"limits": ThrottleLimits(bps_write_max_length=1 << 32, bps_read_max_length=1 << 32)},
         "bps-read-max-length value must be in the range [0, 4294967295]"),
        ({"limits": ThrottleLimits(bps_total_max_length=-1)},
         "burst length set without burst rate"),
        ({"limits": ThrottleLimits(bps_total_max=1, bps_total_max_length=-1)},
         "burst length too high for this burst rate"),
    ],
)  # fmt: skip
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        make(**options)
    assert caught.value.desc == message


def test_limits_are_checked_before_the_name() -> None:
    tree = ObjectTree()
    make(tree)
    with pytest.raises(QmpError, match=r"^burst length set without burst rate$"):
        make(tree, limits=ThrottleLimits(bps_total_max_length=5))
    with pytest.raises(QmpError, match=r"^attempt to add duplicate property 'tg'"):
        make(tree, x_bps_total_max_length=5)


def test_live_change() -> None:
    group = make(limits=ThrottleLimits(iops_total=100))
    before = group.throttle
    group.set_json("limits", {"iops-total": 0, "bps-read": 4096})
    assert group.limits == default_limits() | {"bps-read": 4096}
    assert group.throttle is not before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"iops-total": 10, "iops-read": 10}, BOTH),
        ({"bogus": 1}, "Parameter 'limits.bogus' is unexpected"),
        ({"iops-total": "x"}, "Invalid parameter type for 'limits.iops-total', expected: integer"),
        (5, "Invalid parameter type for 'limits', expected: object"),
    ],
)
def test_refused_change_changes_nothing(value: object, message: str) -> None:
    group = make(limits=ThrottleLimits(bps_read=7))
    before = group.throttle
    with pytest.raises(QmpError) as caught:
        group.set_json("limits", value)
    assert caught.value.desc == message
    assert group.limits == default_limits() | {"bps-read": 7}
    assert group.throttle is before


def test_single_limits_are_for_the_start() -> None:
    group = make()
    with pytest.raises(QmpError, match=r"^Property cannot be set after initialization$"):
        group.set_json("x-iops-total", None)


def test_members() -> None:
    group = make()
    user = object()
    group.join(user)
    assert group.members == {user}
    assert not group.can_be_deleted()
    group.leave(user)
    group.leave(user)
    assert group.can_be_deleted()
