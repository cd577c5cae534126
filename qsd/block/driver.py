# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a block driver is.

Three families derive from :class:`Driver`:

* protocol drivers reach bytes outside the graph (a file, a server) and have no children;
* filters have one filtered child and change requests on their way through;
* formats give meaning to the bytes of a child; most derive from
  :class:`qsd.block.mapped.MappedDriver` and only say where a guest range lives.

The engine (:mod:`qsd.block.node`) is the one door to all I/O methods.  It has checked range,
alignment as declared in :attr:`Driver.limits`, read-only state and permissions before it calls, so
drivers carry no such checks.  I/O methods raise OSError with the errno that the user of the node
shall see.

The life of a driver object::

    Driver(node) -> await open(options, opener) -> I/O, reopen, permissions -> await close()

A failed ``open`` must release what it took itself; children opened through the opener are closed by
the engine.  ``close`` is called exactly once after a successful ``open``, with no I/O in flight.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from qsd.block import perms
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, Status
from qsd.errors import QmpError, os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.block.graph import Edge
    from qsd.block.late import LatePath
    from qsd.block.loans import Lent
    from qsd.block.mapping import Patch
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.block.piped import Payload
    from qsd.block.relay import RelayPath
    from qsd.block.runs import Runs


class Limits:
    """What a driver asks of the requests it gets; bytes, 0 means no limit.

    Attributes:
        request_alignment: Offset and length of reads and writes are multiples of it.
        memory_alignment: Preferred alignment of buffers in memory.
        max_transfer: Longest read or write.
        opt_transfer: Preferred granularity.
        zero_alignment: Granularity below which `zero` is not worth a call.
        max_zero: Longest zero request.
        discard_alignment: Granularity of `discard`; head and tail are dropped.
        max_discard: Longest discard request.
        write_alignment: Offset and length of writes are multiples of it, those of reads need not
            be.
    """

    __slots__ = (
        "discard_alignment",
        "max_discard",
        "max_transfer",
        "max_zero",
        "memory_alignment",
        "opt_transfer",
        "request_alignment",
        "write_alignment",
        "zero_alignment",
    )

    def __init__(self) -> None:
        self.request_alignment = 1
        self.memory_alignment = 4096
        self.max_transfer = 0
        self.opt_transfer = 0
        self.zero_alignment = 0
        self.max_zero = 0
        self.discard_alignment = 0
        self.max_discard = 0
        self.write_alignment = 1


class RunPath(Protocol):
    """Serves several short requests together, at once."""

    def read_run(self, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fill the views of the first of several; return how many."""

    def write_run(self, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Write the first of several; return how many.

        Of the others some may have been written too, wholly or in part.
        """


class Driver:
    """Base of all drivers; the defaults suit a driver that can do nothing special."""

    #: The name in QMP, e.g. "qcow2".
    name: ClassVar[str] = ""
    #: "protocol", "format" or "filter".
    family: ClassVar[str] = "format"
    #: Role of the "file" child, which the engine opens before the driver (raw and filters:
    #: FILTERED).
    file_role: ClassVar[int] = perms.ROLE_IMAGE
    #: For filters: whether the filtered child is "backing" (else "file").
    filtered_is_backing: ClassVar[bool] = False
    #: Whether an image names a backing file.
    supports_backing: ClassVar[bool] = False
    #: A write behind the end makes the image longer.  `write_nowait` must refuse such a write, or
    #: call ``node.length_changed()`` after it.
    grows: ClassVar[bool] = False
    #: The length depends on that of a child.
    follows_children: ClassVar[bool] = True
    #: FUA write requests are handled by the driver; else the engine flushes.
    native_fua: ClassVar[bool] = False
    #: `read_nowait` and `write_nowait` refuse requests that are not aligned, so that they may be
    #: called although `limits.request_alignment` asks for more than single bytes.
    checks_alignment: ClassVar[bool] = False
    #: QMP names of options that a reopening may change but not leave out once they were given.
    changeable_options: ClassVar[frozenset[str]] = frozenset()
    #: QMP names of options that it may also leave out.
    resettable_options: ClassVar[frozenset[str]] = frozenset()
    #: Writes with the COMPRESSED flag are understood.
    supports_compressed: ClassVar[bool] = False
    #: They are passed on to the filtered child, whether that understands them or not.
    passes_compressed: ClassVar[bool] = False
    #: Images can hold snapshots of themselves.
    supports_snapshots: ClassVar[bool] = False

    __slots__ = ("limits", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.limits = Limits()

    # Life cycle

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Open the image.

        Args:
            options: The driver's branch of BlockdevOptions (a Struct), defaults not filled in.
            opener: Opens children; the only way a driver may reach other nodes or files.

        Raises:
            QmpError: With the text a user should read.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Write back what is pending and release everything.  Children are closed by the engine."""

    def can_reopen(self) -> bool:
        """Tell whether the driver knows how to take new options."""
        return type(self).prepare_reopen is not Driver.prepare_reopen

    async def prepare_reopen(self, options: Any, read_only: bool) -> Any:
        """Check new options and prepare the change; return a token for commit or abort.

        The children are still the old ones, and options that are neither in `changeable_options`
        nor in `resettable_options` may still differ: the engine refuses that later.  Nothing
        visible may change before `commit_reopen`.

        Raises:
            QmpError: The change is impossible.
        """
        raise QmpError(
            f"Block format '{self.name}' used by node '{self.node.name}' does not support "
            "reopening files"
        )

    async def prepare_read_only(self) -> None:
        """Store what only lives in memory, since a reopening is about to make the node read-only.

        The reopening may still fail.
        """

    async def commit_reopen(self, token: Any) -> None:
        """Make the prepared change.  Must not fail."""

    async def abort_reopen(self, token: Any) -> None:
        """Drop the prepared change.  Must not fail."""

    # Geometry

    def length(self) -> int:
        """Return the length of the image in bytes.

        Raises:
            OSError: It cannot be found out.
        """
        raise NotImplementedError

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Change the length.

        Args:
            length: New length in bytes.
            exact: A longer result is an error (else it is fine, e.g. for devices).
            prealloc: A PreallocMode value.
            flags: 0, or mapping.ZERO_NEW if the new part must read as zeroes.

        Raises:
            QmpError: With the text a user should read.
        """
        raise QmpError("Image format driver does not support resize")

    # I/O.  Offsets and lengths in bytes; views are contiguous and stay the caller's.

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Fill `view` if that is possible at once; False leaves its content undefined."""
        return False

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`."""
        raise os_error(errno.ENOTSUP)

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a read that ends without a coroutine; False if that is not possible.

        `done` is called from the loop, never before this returns: True if `view` is full, False if
        the caller has to call `read` (which then meets whatever went wrong).
        """
        return False

    def read_path(self) -> Callable[[int, memoryview], bool]:
        """Return what the node binds as its `read_nowait`.

        A driver that only hands requests on returns the function below, which saves a call.  Its
        users look at the length of its node first.
        """
        return self.read_nowait

    def view_path(self) -> Callable[[int, int], memoryview | None] | None:
        """Return what the node binds as its `view_nowait`; None for a node without views.

        Given an offset and a length, which the node's user has checked, the function returns the
        range as memory if all of it is plainly there and cached.  Only a driver that lets
        `read_nowait` go the same way may offer views.
        """
        return None

    def view_chunks(self) -> dict[int, memoryview]:
        """Return the chunks of a file of which all can be seen, for a driver that is that file.

        The node binds it beside `view_nowait`; see :class:`qsd.aio.pagemap.FilePages`.
        """
        return {}

    def later_path(self) -> Callable[[int, memoryview, Callable[[bool], None]], bool] | None:
        """Return what the node binds as its `read_later`; None for its own checks and this method.

        A driver that only hands requests on returns the function below; one that checks alignment
        itself, and has no limits, its own.
        """
        return None

    def late_path(self, is_write: bool) -> LatePath | None:
        """Return how many reads or writes at once get to a descriptor; None if they cannot.

        For the same requests as `read_later` and `write_later`; see :mod:`qsd.block.late`.  Called
        again whenever the node's fast paths may have changed.
        """
        return None

    def relay_path(self) -> RelayPath | None:
        """Return how NBD requests get to another server as they are; see :mod:`qsd.block.relay`.

        Called again whenever the node's fast paths may have changed.
        """
        return None

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write all of `view` if that is possible at once, without any flag; else False."""
        return False

    def write_views_nowait(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        """Like :meth:`write_nowait`, for several buffers that follow each other in the node.

        Others call the node's, which is this where nobody wants to see each write, and records
        the range in dirty bitmaps.

        Args:
            offset: Of the first.
            views: The buffers; as many as pwritev(2) takes at most.
            length: Of all of them, bytes.

        Returns:
            False if some of it may not be written; the caller writes all of it again.
        """
        return False

    def receive_nowait(self, offset: int, payload: Payload) -> bool:
        """Write data that nobody sees, like `write_nowait`; see :mod:`qsd.block.piped`.

        Others call the node's, as with :meth:`write_views_nowait`.

        Raises:
            OSError: The file's; a part may have been written.
        """
        return False

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a write that ends without a coroutine; False if that is not possible.

        Only into what exists: it neither allocates nor makes the node longer.  `done` is called
        from the loop, never before this returns: True if all of `view` is written, False if the
        caller has to call `write` (which then meets whatever went wrong).
        """
        return False

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write all of `view`."""
        raise os_error(errno.ENOTSUP)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Make the range read as zeroes without transferring them.

        Raises:
            OSError: ENOTSUP if there is no faster way than writing zeroes; the engine then does.
        """
        raise os_error(errno.ENOTSUP)

    async def discard(self, offset: int, length: int) -> None:
        """Tell that the range is not needed any more.

        Raises:
            OSError: ENOTSUP is ignored by the engine.
        """
        raise os_error(errno.ENOTSUP)

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Copy what is not allocated here from below, so that reads find it in this layer.

        The content does not change, so nobody who watches for changes is told.

        Args:
            offset: Start.
            length: Length.
            flags: COMPRESSED, or 0.
        """

    def is_own_nowait(self, offset: int, length: int) -> bool:
        """Tell whether a range is surely in this layer already: `copy_up` has nothing to do.

        False where that is not known at once.
        """
        return True

    async def flush(self) -> None:
        """Make all completed writes durable, down to the children's own flush."""
        for edge in self.node.children.values():
            if edge.perm & (perms.WRITE | perms.WRITE_UNCHANGED):
                await edge.node.flush()

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Describe the range from `offset`; 0 < result.length <= length.

        Args:
            offset: Start.
            length: How far the caller is interested.
            want_zero: Whether the caller cares for zeroes (else only for allocation).
        """
        return Status(length, ST_DATA | ST_ALLOCATED)

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Describe several extents of this layer at once.

        The fast path of block status for images in many pieces; it may always give up.

        Args:
            offset: Start.
            length: How far the caller is interested; positive.
            limit: Extents; how many the caller has room for.

        Returns:
            What is found from `offset` on without waiting, not empty: ST_DATA for what is data in
            the file below too, ST_ZERO, and 0 for what a backing file, which there is then,
            decides.  The last extent may go on behind its end.  None if something must be waited
            for.
        """
        return None

    def extent_path(self) -> Callable[[int, int], tuple[int, int] | None] | None:
        """Return a function that does what `runs_nowait` does for a single extent.

        It takes offset and length and returns (length, flags) of an extent that ends there, or None
        if something must be waited for.  None if there is no quicker way to find a single extent.
        """
        return None

    def allocated_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Tell of several extents whether this layer decides their content.

        The fast path of block status without zeroes; it may always give up.  Arguments are those
        of :meth:`runs_nowait`.

        Returns:
            What is found from `offset` on without waiting, not empty: 1 for what is allocated in
            this layer, otherwise 0.  None if something must be waited for.
        """
        return None

    async def runs(self, offset: int, length: int, limit: int) -> Runs | None:
        """Describe several extents by one question to somebody else, e.g. a server.

        Args:
            offset: Start.
            length: How far the caller is interested; positive.
            limit: Extents; how many the caller has room for.

        Returns:
            What is found from `offset` on, not empty; flags are ST_DATA and ST_ZERO, 0 for a hole
            of unknown content.  None if there is nobody to ask.
        """
        return None

    def known_data_end(self, offset: int) -> int:
        """Return where data ends that is known to surround a place; 0 if nothing is known."""
        return 0

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Return (descriptor, host offset) if the whole range is plainly there, else None.

        For sendfile and copy_file_range; the answer holds until the caller awaits.
        """
        return None

    def run_path(self) -> RunPath | None:
        """Return what several requests at once are cheaper by than one by one, if there is such.

        Others call :meth:`Node.run_path`, which minds who wants to see each write.
        """
        return None

    def lend_for_write_nowait(
        self, offset: int, length: int
    ) -> tuple[int, int, Callable[[], None]] | None:
        """Let somebody else overwrite a range in a file, in another thread if need be.

        Only for nodes whose `write_nowait` is the driver's: nobody else wants to see the write.

        Returns:
            Descriptor and host offset, and what must be called from the loop after the write,
            whether it went well or not.  None if the range is not plainly there.
        """
        return None

    async def change_backing_file(self, filename: str | None, fmt: str | None) -> None:
        """Record another backing file in the image; the graph stays as it is.

        Args:
            filename: What to record; None or an empty name for an image without backing file.
            fmt: Its format, None if that is not to be recorded.

        Raises:
            OSError: It could not be recorded; the old record stands.  ENOTSUP where images have
                none.
        """
        raise os_error(errno.ENOTSUP)

    def begin_amend(self) -> None:
        """Take what a change of options needs, before a job is started for it.

        Raises:
            QmpError: With the text a user should read; nothing was taken.
        """

    def end_amend(self) -> None:
        """Give back what :meth:`begin_amend` took; the job is over."""

    async def amend(self, options: Any, force: bool) -> None:
        """Change options of the image itself.

        Args:
            options: The driver's branch of BlockdevAmendOptions.
            force: Whether to do what may make the content unreachable.

        Raises:
            QmpError: With the text a user should read.
        """
        raise QmpError("Driver does not support x-blockdev-amend")

    # Cooperation

    def is_served(self) -> bool:
        """Whether I/O may need another node of this daemon: a file that it shows by an export."""
        return False

    def drained_begin(self) -> None:
        """Let go of every request that this driver holds back: a drained section waits for it."""

    def cancel_in_flight(self) -> None:
        """Fail what waits for something that may never come: nobody needs this node's writes.

        Called when a job that writes here was cancelled by force.
        """
        for edge in self.node.children.values():
            if edge.role & perms.ROLE_FILTERED:
                edge.node.driver.cancel_in_flight()

    def write_behind(self) -> None:
        """Start to make durable what was copied here (see `write_from`): a flush will follow.

        A hint; nothing is durable before that flush.
        """
        for edge in self.node.children.values():
            if edge.role & (perms.ROLE_DATA | perms.ROLE_FILTERED):
                edge.node.driver.write_behind()

    def debug_event(self, event: str) -> None:
        """Learn that the parent got to a point that has a name (QMP reference, "BlkdebugEvent")."""

    async def add_child(self, child: Node) -> None:
        """Take one more child (QMP reference, "x-blockdev-change").

        Raises:
            QmpError: The driver cannot.
        """
        raise QmpError(f"The node {self.node.name} does not support adding a child")

    async def remove_child(self, edge: Edge) -> None:
        """Let a child go.

        Raises:
            QmpError: The driver cannot.
        """
        raise QmpError(f"The node {self.node.name} does not support removing a child")

    def lend_nowait(self, offset: int, length: int) -> Lent | None:
        """Answer like :meth:`locate_nowait`, for sending the pages without a copy.

        See :mod:`qsd.block.loans`; None where the range is not in one piece, or not to be lent.
        """
        return None

    def pin_nowait(
        self, offset: int, length: int, holds: list[Callable[[], None]]
    ) -> tuple[int, int, int] | None:
        """Find where the start of a range lies in a file, and keep it there until it is released.

        Only a driver that is read by nothing but the location may answer: a filter that looks at
        reads must not.

        Args:
            offset: Start.
            length: Bytes.
            holds: Takes the functions that release the range; the caller calls them in any case.

        Returns:
            Descriptor, offset there, and for how many bytes that holds; None if it is elsewhere.
        """
        return None

    async def write_from(self, offset: int, descriptor: int, host_offset: int, length: int) -> bool:
        """Write a range whose bytes are in a file, without moving them through this process.

        Returns:
            False if it must be done by :meth:`write`; the range's content is then undefined.
        """
        return False

    async def write_patches(
        self, offset: int, length: int, patches: Sequence[Patch], flags: int
    ) -> int:
        """Write a range of which everything but some patches reads as zeroes, in one go.

        Args:
            offset: Start of the range.
            length: Its length.
            patches: What is data, in order, and where it comes from; at least one.
            flags: Those of the zeroes.

        Returns:
            How much of the start of the range was written; 0 if it must be done by :meth:`write`
            and :meth:`zero`, and then the range's content is undefined.
        """
        return 0

    # Bitmaps

    async def check_storable_bitmap(self, name: str, granularity: int) -> None:
        """Refuse to store a new bitmap in the image.

        Raises:
            QmpError: The image cannot take it.
        """
        raise QmpError(
            f"Can't store persistent bitmaps to {self.node.name}: Operation not supported"
        )

    async def remove_stored_bitmap(self, name: str) -> None:
        """Drop a bitmap from the image, if it is stored there.

        Raises:
            QmpError: The image cannot be changed.
        """

    # Permissions

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Return what this node takes and shares on a child, from what its users take and share."""
        from qsd.block.default_perms import default_child_perms

        return default_child_perms(self.node, edge, perm, shared)

    def check_perms(self, perm: int, shared: int) -> None:
        """Refuse new cumulative permissions, or prepare for them (e.g. take file locks).

        Followed by exactly one of `set_perms` and `abort_perms`.

        Raises:
            QmpError: They cannot be granted.
        """

    def set_perms(self, perm: int, shared: int) -> None:
        """Make the checked permissions effective.  Must not fail."""

    def abort_perms(self) -> None:
        """Undo `check_perms`.  Must not fail."""

    # Description

    def filename(self) -> str | None:
        """Return the plain file name that alone would open this node the same way, or None."""
        return None

    def image_info(self) -> dict[str, Any]:
        """Return the ImageInfo members this driver knows (e.g. cluster-size, format-specific).

        Keys are QMP names in QMP spelling; values plain JSON.
        """
        return {}

    def driver_stats(self) -> dict[str, Any] | None:
        """Return BlockStatsSpecific as plain JSON, or None."""
        return None

    def backing_file(self) -> tuple[str, str | None] | None:
        """Return (file name, format or None) of the backing file as the image records it."""
        return None

    # Internal snapshots

    def snapshots(self) -> list[dict[str, Any]] | None:
        """Return the internal snapshots (SnapshotInfo as plain JSON), None if there can be none."""
        return None

    async def create_snapshot(self, name: str) -> str:
        """Take an internal snapshot; the node is drained.

        Returns:
            Its identifier.

        Raises:
            OSError: It could not be taken.
        """
        raise os_error(errno.ENOTSUP)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete an internal snapshot; the node is drained.

        Raises:
            OSError: ENOENT if there is none, or it could not be deleted.
        """
        raise os_error(errno.ENOTSUP)
