# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Event loops as objects: ``iothread`` and ``main-loop``.

This daemon serves every export on one loop, so these objects hold settings and nothing else: they
can be made, named by exports and nodes, read and changed, which is what management software does
with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qsd.errors import QmpError
from qsd.objects.base import Property, UserCreatable

if TYPE_CHECKING:
    from qsd.objects.base import Surroundings

#: Largest value of every setting.
_MAX_VALUE = (1 << 63) - 1

#: Most threads that a pool may be told to have; they are counted in a C "int".
_MAX_THREADS = (1 << 31) - 1


def _setting(name: str) -> Property:
    """Declare an integer property that is never negative."""
    attr = name.replace("-", "_")

    def getter(loop: EventLoopBase) -> int:
        value: int = getattr(loop, attr)
        return value

    def setter(loop: EventLoopBase, value: int) -> None:
        if value < 0:
            raise QmpError(f"{name} value must be in range [0, {_MAX_VALUE}]")
        setattr(loop, attr, value)
        loop.setting_changed(name)

    return Property(name, "int", getter, setter)


class EventLoopBase(UserCreatable):
    """What all event loops have.

    Attributes:
        aio_max_batch: Most requests in one submission to the kernel; 0 is the engine's default.
        thread_pool_min, thread_pool_max: How many worker threads to keep, and to have.
    """

    TYPE = "event-loop-base"
    SET_ORDER: ClassVar[tuple[str, ...]] = (
        "poll-shrink", "aio-max-batch", "poll-grow", "thread-pool-max", "thread-pool-min",
        "poll-max-ns",
    )  # fmt: skip
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        _setting("thread-pool-min"),
        _setting("aio-max-batch"),
        _setting("thread-pool-max"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.aio_max_batch = 0
        self.thread_pool_min = 0
        self.thread_pool_max = 64

    def setting_changed(self, name: str) -> None:
        """Check the settings after one of them was set.

        A value that turns out not to fit the others stays set, as in the C daemon.
        """
        if self._is_live() and not name.startswith("poll-"):
            self._check_threads()

    async def complete(self) -> None:
        """Check the settings against each other."""
        self._check_threads()

    def _is_live(self) -> bool:
        """Tell whether settings apply as soon as they are set."""
        return self.is_complete

    def _check_threads(self) -> None:
        """Refuse impossible numbers of threads."""
        if (
            self.thread_pool_max == 0
            or self.thread_pool_min > self.thread_pool_max
            or self.thread_pool_max > _MAX_THREADS
        ):
            raise QmpError("bad thread-pool-min/thread-pool-max values")


class IOThread(EventLoopBase):
    """A thread of its own for exports and nodes, by name.

    Attributes:
        poll_max_ns: Longest busy wait, ns.
        poll_grow, poll_shrink: How the busy wait adapts.
    """

    TYPE = "iothread"
    # How exports say it; "x-blockdev-set-iothread" has a wording of its own.
    NOT_FOUND: ClassVar[str] = 'iothread "{}" not found'
    WRONG_TYPE: ClassVar[str] = 'iothread "{}" not found'
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        _setting("poll-max-ns"),
        _setting("poll-grow"),
        _setting("poll-shrink"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.poll_max_ns = 32768
        self.poll_grow = 0
        self.poll_shrink = 0


class MainLoop(EventLoopBase):
    """The daemon's own loop; there is at most one such object, and it cannot be deleted."""

    TYPE = "main-loop"

    async def complete(self) -> None:
        """Check the settings, and that there is no other object for the loop."""
        await super().complete()
        if self._has_other():
            raise QmpError("only one main-loop instance allowed")

    def can_be_deleted(self) -> bool:
        """The loop runs as long as the daemon."""
        return False

    def _is_live(self) -> bool:
        """The loop itself is configured already while a second object for it is being made."""
        return super()._is_live() or self._has_other()

    def _has_other(self) -> bool:
        return any(
            isinstance(obj, MainLoop) and obj is not self for obj in self.tree.objects.children()
        )
