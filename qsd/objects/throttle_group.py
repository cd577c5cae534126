# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``throttle-group``: limits that several nodes share.

The limits have two faces: the property ``limits``, which takes any of them at once and may be set
at any time, and a property ``x-LIMIT`` for each, which may be set only while the object is made.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.errors import QmpError
from qsd.objects.base import Property, UserCreatable
from qsd.objects.throttle_queue import ThrottleQueue
from qsd.util.leaky_bucket import LIMIT_NAMES, Throttle, check_limits, default_limits

if TYPE_CHECKING:
    from qsd.objects.base import Surroundings
    from qsd.qapi.schema.throttle import ThrottleLimits

#: Longest burst that can be given, seconds.
_MAX_LENGTH = (1 << 32) - 1

#: What a negative number is cut to where the C daemon takes it for an unsigned one.
_UNSIGNED = (1 << 64) - 1

#: The order in which object-add sets the properties.  It shows when limits are given both ways:
#: those before "limits" are there when "limits" is checked, those after it win over it.
_SET_ORDER: Final = (
    "x-iops-total", "x-bps-read-max", "x-iops-read-max-length", "x-bps-total-max-length",
    "x-iops-size", "x-iops-total-max-length", "limits", "x-bps-read-max-length", "x-bps-read",
    "x-bps-write-max-length", "x-iops-read", "x-iops-read-max", "x-bps-total", "x-bps-total-max",
    "x-iops-write-max", "x-iops-write", "x-bps-write", "x-bps-write-max", "x-iops-total-max",
    "x-iops-write-max-length",
)  # fmt: skip

#: The order in which the C daemon lists them.
_LIST_ORDER: Final = (
    "bps-write-max-length", "iops-total-max-length", "iops-size", "bps-total",
    "iops-read-max-length", "bps-write", "iops-write-max-length", "bps-read-max", "iops-read-max",
    "bps-total-max", "bps-read-max-length", "iops-read", "bps-read", "bps-write-max",
    "iops-total-max", "iops-total", "iops-write", "bps-total-max-length", "iops-write-max",
)  # fmt: skip


def _single_limit(limit: str) -> Property:
    """Declare the property for one limit."""

    def getter(group: ThrottleGroup) -> int:
        return group.limits[limit]

    def setter(group: ThrottleGroup, value: int) -> None:
        if value < 0:
            raise QmpError("Property values cannot be negative")
        if limit.endswith("-length") and value > _MAX_LENGTH:
            # The missing space is the C daemon's.
            raise QmpError(f"x-{limit} value must be in therange [0, {_MAX_LENGTH}]")
        group.limits[limit] = value

    return Property(f"x-{limit}", "int", getter, setter, init_only=True)


def _get_limits(group: ThrottleGroup) -> ThrottleLimits:
    from qsd.qapi.schema.throttle import ThrottleLimits

    return ThrottleLimits(**{name.replace("-", "_"): n for name, n in group.limits.items()})


def _set_limits(group: ThrottleGroup, given: ThrottleLimits) -> None:
    group.set_limits(given)


class ThrottleGroup(UserCreatable):
    """Limits and the buckets that enforce them.

    Attributes:
        limits: All limits, by name.
        throttle: The buckets; replaced when the limits change.
        queue: The requests that the limits hold up.
    """

    TYPE = "throttle-group"
    SET_ORDER = _SET_ORDER
    NOT_FOUND: ClassVar[str] = "Throttle group '{}' does not exist"
    WRONG_TYPE: ClassVar[str] = "Throttle group '{}' does not exist"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        Property("limits", "ThrottleLimits", _get_limits, _set_limits),
        *(_single_limit(name) for name in _LIST_ORDER),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.limits = default_limits()
        self.throttle = Throttle(self.limits)
        self.queue = ThrottleQueue(self)
        self._members: set[object] = set()

    def set_limits(self, given: ThrottleLimits) -> None:
        """Change the limits that `given` has, all at once.

        Members see the new buckets, which are empty, with their next request.

        Raises:
            QmpError: The limits would contradict each other; they stay as they were.
        """
        limits = dict(self.limits)
        for name in LIMIT_NAMES:
            value = getattr(given, name.replace("-", "_"))
            if value is None:
                continue
            if name.endswith("-length"):
                if value > _MAX_LENGTH:
                    raise QmpError(f"{name} value must be in the range [0, {_MAX_LENGTH}]")
                value &= _UNSIGNED  # negative lengths turn into very long ones
            limits[name] = value
        check_limits(limits)
        self._install(limits)

    async def complete(self) -> None:
        """Check the limits together."""
        check_limits(self.limits)
        self._install(self.limits)

    def join(self, member: object) -> None:
        """Count a node as a user of the group, which keeps it from being deleted."""
        self._members.add(member)

    def leave(self, member: object) -> None:
        """Undo :meth:`join`.  Idempotent."""
        self._members.discard(member)

    @property
    def members(self) -> frozenset[object]:
        """Who uses the group."""
        return frozenset(self._members)

    def can_be_deleted(self) -> bool:
        """Tell whether nobody uses the group."""
        return not self._members

    def _install(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.throttle = Throttle(limits, time.monotonic_ns())
        self.queue.kick()
