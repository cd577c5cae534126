# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "blkdebug" filter: makes chosen requests fail, at chosen moments (QMP reference,
"BlockdevOptionsBlkdebug").

Rules wait for an event.  An event arms the error rules that wait for it, in place of those that
were armed before, and may change the state, on which other rules depend::

    event ──▶ rules of this event and state ──▶ armed rules ──▶ a request that matches fails
                        └─▶ set-state ──▶ state

The event "none" has happened when the node is opened.  The other events come from the driver above
(:meth:`qsd.block.driver.Driver.debug_event`), those of plain writing from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.block import perms
from qsd.block.mapping import FUA, Status
from qsd.errors import QmpError, os_error
from qsd.filters.base import FilterDriver, filtered_filename
from qsd.filters.blkdebug_config import (
    InjectError,
    SetState,
    inject_error,
    read_config,
    set_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_graph import BlockPermission
    from qsd.qapi.schema.block_options import BlockdevOptionsBlkdebug

_INT_MAX: Final = (1 << 31) - 1
_BITS: Final = {name.replace(" ", "-"): bit for bit, name in perms.NAMES}


def _permissions(names: Iterable[BlockPermission] | None) -> int:
    bits = 0
    for name in names or ():
        bits |= _BITS[name]
    return bits


class BlkdebugDriver(FilterDriver):
    """Makes requests fail."""

    name: ClassVar[str] = "blkdebug"

    __slots__ = (
        "_armed",
        "_config",
        "_dirty",
        "_error_rules",
        "_options",
        "_quiet",
        "_state",
        "_state_rules",
        "_taken",
        "_unshared",
    )

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._options: BlockdevOptionsBlkdebug
        self._config = ""
        self._state = 1
        self._armed: list[InjectError] = []
        self._error_rules: list[InjectError] = []
        self._state_rules: list[SetState] = []
        self._quiet = True
        self._dirty = False
        self._taken = 0
        self._unshared = 0

    async def open(self, options: BlockdevOptionsBlkdebug, opener: ChildOpener) -> None:
        """Read the rules, then attach the image."""
        self._options = options
        self._config = options.config or ""
        errors: list[InjectError] = []
        states: list[SetState] = []
        if options.config is not None:
            errors, states = read_config(options.config)
        errors += map(inject_error, options.inject_error or ())
        states += map(set_state, options.set_state or ())
        self._error_rules, self._state_rules = errors, states
        self._quiet = not (errors or states)
        self._taken = _permissions(options.take_child_perms)
        self._unshared = _permissions(options.unshare_child_perms)
        self.edge = await opener.child(
            "image", options.image, perms.ROLE_FILTERED | perms.ROLE_PRIMARY
        )
        self._set_limits(options)
        self.debug_event("none")
        _check_lists(options)

    def _set_limits(self, options: BlockdevOptionsBlkdebug) -> None:
        """Take over the limits that requests are cut to.

        Raises:
            QmpError: They contradict each other.
        """
        align = options.align or 0
        _check_natural("align", align)
        if align >= _INT_MAX or align & align - 1:
            raise QmpError(f"Cannot meet constraints with align {align}")
        unit = max(align, self.edge.node.driver.limits.request_alignment)

        def limit(name: str, value: int | None, unit: int) -> int:
            _check_natural(name, value or 0)
            if value and value % unit:
                raise QmpError(f"Cannot meet constraints with {name} {value}")
            return value or 0

        own = self.limits
        own.request_alignment = max(align, 1)
        own.max_transfer = limit("max-transfer", options.max_transfer, unit)
        own.zero_alignment = limit("opt-write-zero", options.opt_write_zero, unit)
        own.max_zero = limit("max-write-zero", options.max_write_zero, own.zero_alignment or unit)
        own.discard_alignment = limit("opt-discard", options.opt_discard, unit)
        own.max_discard = limit("max-discard", options.max_discard, own.discard_alignment or unit)

    async def prepare_reopen(self, options: BlockdevOptionsBlkdebug, read_only: bool) -> None:
        """Accept anything that changes nothing."""

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Add what the options ask for."""
        return perm & perms.ALL | self._taken, shared & perms.ALL & ~self._unshared

    def filename(self) -> str | None:
        """Return the name from which the node could be opened, without further options."""
        from qsd.block.naming import strong_options

        child = filtered_filename(self.edge)
        if child is None or strong_options(self.node).keys() - {"config"}:
            return None
        return f"blkdebug:{self._config}:{child}"

    def image_info(self) -> dict[str, Any]:
        """Do not say what the child takes on disk."""
        return {"actual-size": None}

    # Rules

    def debug_event(self, event: str) -> None:
        """Arm the rules that waited for the event."""
        if self._quiet:
            return
        state = self._state
        armed = [
            rule for rule in self._error_rules
            if rule.event == event and rule.state in (0, state)
        ]  # fmt: skip
        if armed:
            self._armed = armed
        for change in self._state_rules:
            if change.event == event and change.state in (0, state):
                self._state = change.new_state

    def _check(self, iotype: str, offset: int, length: int) -> None:
        """Fail if a rule says so."""
        for rule in self._armed:
            if iotype not in rule.iotypes:
                continue
            if rule.offset is not None and not offset <= rule.offset < offset + length:
                continue
            if rule.once:
                self._armed = [other for other in self._armed if other is not rule]
                self._error_rules = [other for other in self._error_rules if other is not rule]
            if rule.errno > 0:
                raise os_error(rule.errno)
            return

    # I/O

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read at once unless there are rules to be looked at."""
        return self._quiet and self.edge.node.read_nowait(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        """Read, or fail."""
        self._check("read", offset, len(view))
        await self.edge.node.read_or_zero(offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write at once unless there are rules to be looked at."""
        if not self._quiet or not super().write_nowait(offset, view):
            return False
        self._dirty = True
        return True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write, or fail."""
        self.debug_event("pwritev")
        try:
            self._check("write", offset, len(view))
            await self.edge.node.write(offset, view, flags & ~FUA)
            await self._finish(flags)
        finally:
            self._dirty = True

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero, or fail."""
        self.debug_event("pwritev_zero")
        try:
            self._check("write-zeroes", offset, length)
            await self.edge.node.zero(offset, length, flags & ~FUA)
            await self._finish(flags)
        finally:
            self._dirty = True

    async def _finish(self, flags: int) -> None:
        """Flush after a write that has to be durable.

        In the C daemon the write itself does not count yet: such a flush meets the rules only if
        there was another write before.  Afterwards it does, even if it failed.
        """
        if flags & FUA:
            await self.flush()
        self.debug_event("pwritev_done")

    async def discard(self, offset: int, length: int) -> None:
        """Discard, or fail."""
        try:
            self._check("discard", offset, length)
            await self.edge.node.discard(offset, length)
        finally:
            self._dirty = True

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Look what is there and copy the rest up, or fail; the copy counts as a write."""
        self._check("block-status", offset, length)
        if not self.is_own_nowait(offset, length):
            self.debug_event("cor_write")
            self._check("write", offset, length)
        await super().copy_up(offset, length, flags)

    async def flush(self) -> None:
        """Flush, or fail; that needs something written since the last time."""
        if self._dirty:
            self._check("flush", 0, 0)
            self._dirty = False
        await self.edge.node.flush()

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Ask the child unless there are rules to be looked at."""
        return super().locate_nowait(offset, length) if self._quiet else None

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Describe the child, or fail."""
        self._check("block-status", offset, length)
        return await super().block_status(offset, length, want_zero)


def _check_lists(options: BlockdevOptionsBlkdebug) -> None:
    """Refuse empty lists.

    The C daemon takes each element away as it reads it; what is left of a list without any is an
    option that nobody asked for.

    Raises:
        QmpError: There is one.
    """
    for name in ("set-state", "inject-error", "take-child-perms", "unshare-child-perms"):
        if getattr(options, name.replace("-", "_")) == []:
            raise QmpError(f"Block protocol 'blkdebug' doesn't support the option '{name}'")


def _check_natural(name: str, value: int) -> None:
    if value < 0:
        raise QmpError(f"Parameter '{name}' expects a non-negative number below 2^64")
