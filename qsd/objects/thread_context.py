# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``thread-context``: a thread that does nothing but have a CPU affinity.

Threads made from it would inherit the affinity (QMP reference, "ThreadContextProperties").  Nothing
in a storage daemon makes such threads, so the thread only waits for its end; but its identifier is
what management software pins, and so it is a real one.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, ClassVar

from qsd.errors import QmpError
from qsd.objects.base import Property, UserCreatable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qsd.objects.base import Surroundings

#: Where the kernel lists the CPUs of a NUMA node (Documentation/ABI/stable/sysfs-devices-node).
_NODE_CPUS = "/sys/devices/system/node/node{}/cpulist"


def _get_cpus(context: ThreadContext) -> list[int]:
    return context.cpus()


def _set_cpus(context: ThreadContext, cpus: list[int]) -> None:
    context.set_cpus(cpus)


def _set_nodes(context: ThreadContext, nodes: list[int]) -> None:
    context.set_nodes(nodes)


def _get_thread_id(context: ThreadContext) -> int:
    return context.thread_id


class ThreadContext(UserCreatable):
    """A parked thread with a CPU affinity of its own."""

    TYPE = "thread-context"
    SET_ORDER: ClassVar[tuple[str, ...]] = ("cpu-affinity", "node-affinity")
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        Property("thread-id", "int", _get_thread_id),
        Property("node-affinity", "int", None, _set_nodes, value_type="list[UInt16]"),
        Property("cpu-affinity", "int", _get_cpus, _set_cpus, value_type="list[UInt16]"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self._initial_cpus: list[int] | None = None
        self._initial_nodes: list[int] | None = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    @property
    def thread_id(self) -> int:
        """The kernel's identifier of the thread, 0 before there is one."""
        return (self._thread.native_id or 0) if self._thread else 0

    def cpus(self) -> list[int]:
        """Return the CPUs that the thread may run on, sorted."""
        return sorted(os.sched_getaffinity(self.thread_id))

    def set_cpus(self, cpus: list[int]) -> None:
        """Let the thread run on these CPUs only.

        Raises:
            QmpError: There are none, or the kernel refuses.
        """
        if self._initial_nodes:
            raise QmpError("Mixing CPU and node affinity not supported")
        if not cpus:
            raise QmpError("CPU list is empty")
        if self._thread is None:
            self._initial_cpus = cpus
        else:
            self._apply(cpus)

    def set_nodes(self, nodes: list[int]) -> None:
        """Let the thread run on the CPUs of these NUMA nodes only.

        Raises:
            QmpError: There are none, or the kernel refuses.
        """
        if self._initial_cpus:
            raise QmpError("Mixing CPU and node affinity not supported")
        if not nodes:
            raise QmpError("Node list is empty")
        cpus = cpus_of_nodes(nodes)
        if not cpus:
            raise QmpError("The nodes select no CPUs")
        if self._thread is None:
            self._initial_nodes = cpus
        else:
            self._apply(cpus)

    async def complete(self) -> None:
        """Start the thread and pin it."""
        self._thread = threading.Thread(
            target=self._end.wait, name="qsd-thread-context", daemon=True
        )
        self._thread.start()
        cpus = self._initial_cpus or self._initial_nodes
        # Only the first setting may not be mixed; a running thread takes either.
        self._initial_cpus = self._initial_nodes = None
        if cpus:
            self._apply(cpus)

    async def finalize(self) -> None:
        """End the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()  # it only waited for the event: this takes no time
            self._thread = None

    def _apply(self, cpus: Iterable[int]) -> None:
        """Pin the thread."""
        try:
            os.sched_setaffinity(self.thread_id, cpus)
        except OSError as exc:
            raise QmpError(f"Setting CPU affinity failed: {exc.strerror}") from None


def cpus_of_nodes(nodes: Iterable[int]) -> list[int]:
    """Return the CPUs of NUMA nodes; a node that does not exist has none."""
    cpus: list[int] = []
    for node in nodes:
        try:
            with open(_NODE_CPUS.format(node), encoding="ascii") as listing:
                cpus += parse_cpu_list(listing.read())
        except FileNotFoundError:
            continue
    return cpus


def parse_cpu_list(text: str) -> list[int]:
    """Parse the kernel's list format, as in "0-3,8" (cpuset(7), "List format")."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    return cpus
