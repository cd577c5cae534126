# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Who goes next: the requests that the limits of a throttle group hold up.

Every member of a group has a queue for reads and one for writes.  When the limits let a request go,
the members take turns, so a member with a hundred requests waiting gets no more than one with two::

    member A   r r r r r \
    member B   r          >-- round robin --> one timer per direction --> go
    member C   r r       /

A request goes at once if nobody of its direction waits and the limits allow it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsd.objects.throttle_group import ThrottleGroup

_NS = 1e-9


class _Waiter:
    """One request that waits."""

    __slots__ = ("future", "length")

    def __init__(self, future: asyncio.Future[None], length: int) -> None:
        self.future = future
        self.length = length


class ThrottleQueue:
    """The waiting requests of one group."""

    __slots__ = ("_group", "_timers", "_waiting")

    def __init__(self, group: ThrottleGroup) -> None:
        self._group = group
        # By direction (reads, writes): queues by member, whose turn it is first.
        self._waiting: tuple[dict[object, deque[_Waiter]], dict[object, deque[_Waiter]]] = ({}, {})
        self._timers: list[asyncio.TimerHandle | None] = [None, None]

    def may_go(self, is_write: bool) -> bool:
        """Tell whether a request may go without waiting; it must then be accounted."""
        throttle = self._group.throttle
        if not throttle.is_limiting:
            return True
        if self._waiting[is_write]:
            return False
        return not throttle.delay_ns(is_write, time.monotonic_ns())

    def account(self, is_write: bool, length: int) -> None:
        """Count a request that goes."""
        throttle = self._group.throttle
        if throttle.is_limiting:
            throttle.account(is_write, length)

    async def enter(self, member: object, is_write: bool, length: int) -> None:
        """Wait until a request may go, and count it.

        Cancelling gives up the place in the queue.
        """
        if self.may_go(is_write):
            self.account(is_write, length)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(future, length)
        self._waiting[is_write].setdefault(member, deque()).append(waiter)
        self._arm(is_write)
        await future

    def release(self, member: object) -> None:
        """Let all waiting requests of a member go, whatever the limits say.

        They are counted, so that what is released now is paid for later.
        """
        for is_write in (False, True):
            for waiter in self._waiting[is_write].pop(member, ()):
                if not waiter.future.done():
                    waiter.future.set_result(None)
                    self.account(is_write, waiter.length)
            self._arm(is_write)

    def kick(self) -> None:
        """Look again: the limits changed."""
        for is_write in (False, True):
            self._dispatch(is_write)

    def _arm(self, is_write: bool) -> None:
        """Make sure that somebody looks again as soon as the next request may go."""
        timer = self._timers[is_write]
        if timer is not None:
            timer.cancel()
            self._timers[is_write] = None
        if self._waiting[is_write]:
            throttle = self._group.throttle
            delay = throttle.delay_ns(is_write, time.monotonic_ns()) if throttle.is_limiting else 0
            self._timers[is_write] = asyncio.get_running_loop().call_later(
                delay * _NS, self._dispatch, is_write
            )

    def _dispatch(self, is_write: bool) -> None:
        """Let requests go while the limits allow it, one of each member at a time."""
        queues = self._waiting[is_write]
        while queues:
            throttle = self._group.throttle
            if throttle.is_limiting and throttle.delay_ns(is_write, time.monotonic_ns()):
                break
            member, queue = next(iter(queues.items()))
            waiter = queue.popleft()
            del queues[member]
            if queue:
                queues[member] = queue  # at the end: the others have their turns first
            if not waiter.future.done():
                self.account(is_write, waiter.length)
                waiter.future.set_result(None)
        self._arm(is_write)
