# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The qcow2 driver: opens images, answers the engine, and ties the parts of this package together.

::

    driver.py     life cycle, fast paths                options.py    run-time options
      mapping.py, runs.py   lookups                     header.py     header
      changes.py, quick.py  allocation, zeroes, ...     snapshots.py, bitmaps.py
      compress.py   compressed clusters                 resize.py, create.py, check.py
        image.py      shared state, order of writing
          cache.py, refcount.py, overlap.py
            layout.py     bytes and bits
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, ClassVar

from qsd.aio.pagemap import CHUNK_BITS, CHUNK_MASK
from qsd.block import perms
from qsd.block.loans import Lent
from qsd.block.mapped import MappedDriver
from qsd.block.mapping import HOLE, NO_FALLBACK, ST_DATA, ST_OFFSET, ST_RECURSE, ZERO, Status
from qsd.errors import QmpError, describe, os_error
from qsd.formats.qcow2 import bitmap_store, bitmaps, encryption, layout
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2.changes import Changer
from qsd.formats.qcow2.compress import Compressor
from qsd.formats.qcow2.image import Image
from qsd.formats.qcow2.layout import OFFSET_MASK, Geometry, Header
from qsd.formats.qcow2.lookups import PLAIN, EncryptedLookups, Lookups
from qsd.formats.qcow2.mapping import Mapper
from qsd.formats.qcow2.options import Options
from qsd.formats.qcow2.quick import QuickWriter
from qsd.formats.qcow2.runs import RunFinder
from qsd.util.ranges import align_down, align_up
from qsd.util.zeroes import ZERO_CHUNK, ZEROES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.block.graph import Edge
    from qsd.block.late import LatePath
    from qsd.block.mapping import Allocation, Mapping, Patch
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.block.piped import Payload
    from qsd.block.runs import Runs

#: Bytes; the unit of encryption.
_SECTOR = 512


class Qcow2Driver(Lookups, MappedDriver):
    """One open qcow2 image."""

    name: ClassVar[str] = "qcow2"
    resettable_options: ClassVar[frozenset[str]] = frozenset(
        (
            "lazy-refcounts", "pass-discard-request", "pass-discard-snapshot",
            "pass-discard-other", "overlap-check", "cache-size", "l2-cache-size",
            "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval",
        )
    )  # fmt: skip
    changeable_options: ClassVar[frozenset[str]] = frozenset(("encrypt",))
    supports_backing: ClassVar[bool] = True
    supports_compressed: ClassVar[bool] = True
    supports_snapshots: ClassVar[bool] = True
    # Only with encryption there is anything to check, and its fast paths do.
    checks_alignment: ClassVar[bool] = True

    __slots__ = (
        "_bits",
        "_changer",
        "_cleaner",
        "_compressor",
        "_data_edge",
        "_encryption",
        "_extended",
        "_hot",
        "_index_mask",
        "_mapper",
        "_not_plain",
        "_quick",
        "_ready",
        "_runs",
        "_slice_bits",
        "_within_mask",
        "bitmaps",
        "image",
    )

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.image: Image
        self.bitmaps: list[bitmaps.BitmapEntry] = []
        # Whether what must happen before the first change has happened.
        self._ready = False
        self._cleaner: asyncio.Task[None] | None = None
        self._encryption: encryption.Encryption | None = None

    # Life cycle

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Open an image, its data file, and tell of its backing file."""
        file_edge = await opener.child("file", options.file, perms.ROLE_IMAGE)
        node = self.node
        header = await header_io.read_header(file_edge.node, node.read_only)
        header_io.check_compression(header)
        geometry = Geometry(
            header.cluster_bits,
            header.refcount_order,
            bool(header.incompatible_features & layout.INCOMPAT_EXTENDED_L2),
        )
        checked = Options(options, header, geometry, node.discard_unmap)
        encryption.check_options(options.encrypt, header)
        data_edge = await _open_data_file(options, opener, header, file_edge)
        image = self.image = Image(node, header, checked, file_edge, data_edge)
        from qsd.formats.qcow2.snapshots import read_snapshots

        image.snapshots = await read_snapshots(file_edge.node, header)
        await image.load()
        self._bind(image)
        await self._unlock(options.encrypt)
        self.bitmaps = await bitmaps.read_bitmaps(file_edge.node, header)
        if not node.read_only:
            await self._start_writing()
        if self.bitmaps:
            await bitmap_store.load(image, self.bitmaps)
            if not node.read_only:
                await self._prepare_changes()
        self._start_cleaner()
        backing_format = header.extension(layout.EXT_BACKING_FORMAT)
        await opener.backing(
            options.backing,
            header.backing_file,
            backing_format.decode(errors="replace") if backing_format is not None else None,
        )

    async def _unlock(self, given: Any) -> None:
        image = self.image
        self._encryption = await encryption.Encryption.open(
            self.node.graph, image.file, image.header, given
        )
        if self._encryption is not None:
            self._encryption.bind(EncryptedLookups(self, self.image.l2.hot))
            self.limits.request_alignment = _SECTOR

    def _bind(self, image: Image) -> None:
        """Copy what the fast paths need into attributes of this object."""
        geometry = image.geometry
        self._mapper = Mapper(image)
        self._runs = RunFinder(image)
        self._changer = Changer(image)
        self._quick = QuickWriter(image, self.ranges)
        self._compressor = Compressor(image)
        # Encrypted data is nowhere as it is, so the fast paths shall find none.
        self._hot = image.l2.hot if not image.encrypted else {}
        self._slice_bits = image.slice_bits
        self._bits = geometry.cluster_bits
        self._index_mask = image.slice_entries - 1
        self._within_mask = geometry.cluster_size - 1
        self._extended = geometry.extended
        self._data_edge = image.data_edge
        # An entry without its COPIED flag and without these bits is the host offset of plain data.
        self._not_plain = ~(OFFSET_MASK & ~self._within_mask) & PLAIN
        if self._encryption is not None:
            self._encryption.bind(EncryptedLookups(self, image.l2.hot))
        self.granularity = geometry.cluster_size
        self.limits.discard_alignment = geometry.cluster_size
        image.lazy = image.options.lazy_refcounts and not self.node.read_only

    async def _start_writing(self) -> None:
        """Do what must be done when a writable image is opened."""
        image = self.image
        header = image.header
        if header.incompatible_features & layout.INCOMPAT_DIRTY:
            from qsd.formats.qcow2.check import repair_refcounts

            await repair_refcounts(image, self.bitmaps)
        # "autoclear_features": bits that are not understood must be cleared before writing.
        if header.autoclear_features & ~layout.AUTOCLEAR_KNOWN:
            header.autoclear_features &= layout.AUTOCLEAR_KNOWN
            await header_io.write_features(image.file, header)

    async def _prepare_changes(self) -> None:
        """Do what must be durable before the first change of this session."""
        await bitmaps.mark_in_use(self.image.file, self.image.header, self.bitmaps)
        self.image.guard()
        self._ready = True

    async def close(self) -> None:
        """Write everything back; the image is left as if nobody had used it.

        If that fails, the image is left as a crash would leave it: sound, with all that was
        flushed.
        """
        await self._stop_cleaner()
        await self.image.join_writer()
        if self.node.read_only or self.image.broken:
            if bitmap_store.lost_if_read_only(self.image):
                bitmap_store.warn_lost(self.image, "No write access")
        else:
            await self._store_bitmaps()
            try:
                await self._settle()
            except OSError:
                pass  # there is nobody left to tell; a flush would have told
        if self._encryption is not None:
            self._encryption.forget()

    async def _store_bitmaps(self) -> None:
        """Store the persistent bitmaps; if that fails, the image says that they are in use."""
        try:
            self.bitmaps = await bitmap_store.store(self.image, self.bitmaps)
        except (OSError, QmpError) as exc:
            bitmap_store.warn_lost(self.image, describe(exc))

    async def check_storable_bitmap(self, name: str, granularity: int) -> None:
        """Refuse a persistent bitmap that the image has no room for."""
        bitmap_store.check_storable(self.image, self.bitmaps, name, granularity)

    async def remove_stored_bitmap(self, name: str) -> None:
        """Remove a bitmap from the directory."""
        if all(entry.name != name for entry in self.bitmaps):
            return
        try:
            self.bitmaps = await bitmap_store.remove(self.image, self.bitmaps, name)
        except OSError as exc:
            raise QmpError(
                f"Failed to remove persistent bitmap '{name}' from node '{self.node.name}': "
                f"{describe(exc)}"
            ) from exc

    async def _settle(self) -> None:
        """Write all metadata, lazy or not, and leave the image clean."""
        image = self.image
        while True:
            await image.write_back(durable=not image.is_clean, with_refcounts=True)
            if image.is_clean and not image.refcounts.is_dirty:
                break
        if image.header.incompatible_features & layout.INCOMPAT_DIRTY:
            await image.sync()
            await image.set_clean()

    def _start_cleaner(self) -> None:
        if self.image.options.clean_interval:
            self._cleaner = self._tasks.spawn(self._clean_caches(), f"cache of '{self.node.name}'")

    async def _stop_cleaner(self) -> None:
        if self._cleaner is not None:
            self._cleaner.cancel()
            await asyncio.wait([self._cleaner])
            self._cleaner = None

    async def _clean_caches(self) -> None:
        """Drop tables that were not used for a while (cache-clean-interval)."""
        while True:
            await asyncio.sleep(self.image.options.clean_interval)
            self.image.l2.clean_unused()
            self.image.refcounts.cache.clean_unused()

    # Reopening

    async def prepare_reopen(self, options: Any, read_only: bool) -> Any:
        """Check the new options; caches are written back so that they can be replaced."""
        image = self.image
        encryption.check_options(options.encrypt, image.header)
        checked = Options(options, image.header, image.geometry, self.node.discard_unmap)
        if not read_only and image.header.incompatible_features & layout.INCOMPAT_CORRUPT:
            raise QmpError("qcow2: Image is corrupt; cannot be opened read/write")
        await image.join_writer()
        if not image.broken and not image.file.read_only:
            await self._settle()
        return checked

    async def prepare_read_only(self) -> None:
        """Store the bitmaps; should the node stay writable, the next change marks them again."""
        if not self.image.broken:
            await self._store_bitmaps()
            await self._settle()
            self._ready = False

    async def commit_reopen(self, token: Any) -> None:
        """Switch to the new options with empty caches."""
        old = self.image
        await self._stop_cleaner()
        new = Image(self.node, old.header, token, old.file_edge, old.data_edge)
        new.snapshots = old.snapshots
        new.l1, new.refcounts.table = old.l1, old.refcounts.table
        new.high_water, new.broken = old.high_water, old.broken
        new.loans = old.loans
        try:
            await new.load_overlaps()
        except OSError:
            pass  # what could not be read is not guarded
        self.image = new
        self._bind(new)
        self._ready = False
        bitmap_store.set_read_only(new, self.node.read_only)
        if self.bitmaps and not self.node.read_only:
            try:
                await self._prepare_changes()
            except OSError:
                pass  # the first change tries again, and fails if it must
        self._start_cleaner()

    async def abort_reopen(self, token: Any) -> None:
        """Go on as before; bitmaps that were stored are in use again."""
        self._ready = False
        if self.bitmaps and not self.node.read_only:
            try:
                await self._prepare_changes()
            except OSError:
                pass  # the first change tries again, and fails if it must

    # Geometry

    def length(self) -> int:
        """Return the virtual size."""
        return self.image.header.size

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Change the virtual size."""
        from qsd.formats.qcow2.resize import resize

        await self._begin_change()
        # Requests below both sizes go on; what is added or dropped belongs to nobody else.
        start = align_up(min(length, self.length()), self.granularity)
        hold = await self.ranges.claim(start, 1 << 63, True)
        try:
            await resize(self.image, self._changer, length, prealloc, flags)
        finally:
            self.ranges.release(hold)

    def lend_nowait(self, offset: int, length: int) -> Lent | None:
        """Lend a range that lies in one piece; its clusters are not freed until it is returned."""
        image = self.image
        if image.loans.suspended:
            image.look_after_loans()
            return None
        host = self.locate_data_nowait(offset, length)
        if host < 0:
            return None
        lent = self._data_edge.node.driver.lend_nowait(host, length)
        if lent is None or lent.loans is not None:
            return None
        return Lent(lent.fd, lent.offset, image.loans)

    def data_edge(self) -> Edge:
        """Return the child with guest data."""
        return self._data_edge

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast: read plain data in one piece."""
        host = self.locate_data_nowait(offset, len(view))
        if host < 0:
            if self._encryption is not None:
                return self._encryption.read_nowait(self, offset, view)
            return self.read_pieces_nowait(offset, view)
        return self._data_edge.node.read_nowait(host, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast: overwrite in place, fill fresh clusters, or copy one on write."""
        if self.ranges.exclusive_count:
            return False
        length = len(view)
        host = self.locate_writable_nowait(offset, length)
        if self._encryption is not None:
            if not self._ready or not self._encryption.write_nowait(self, offset, view):
                return False
        elif host >= 0:
            if not self._data_edge.node.write_nowait(host, view):
                return False
        elif not self._ready or not self._quick.write_nowait(offset, (view,), length):
            return False
        node = self.node
        if offset + length > node.wr_highest_offset:
            node.wr_highest_offset = offset + length
        return True

    def write_views_nowait(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        """Fast: overwrite in place, or fill fresh clusters, by one write to the file."""
        if self.ranges.exclusive_count or self._encryption is not None or not self._ready:
            return False
        host = self.locate_writable_nowait(offset, length)
        if host >= 0:
            if not self._data_edge.node.write_views_nowait(host, views, length):
                return False
        elif not self._quick.write_nowait(offset, views, length):
            return False
        node = self.node
        if offset + length > node.wr_highest_offset:
            node.wr_highest_offset = offset + length
        return True

    def receive_nowait(self, offset: int, payload: Payload) -> bool:
        """Fast: overwrite in place, or fill fresh clusters."""
        if self.ranges.exclusive_count or self._encryption is not None or not self._ready:
            return False
        length = payload.length
        host = self.locate_writable_nowait(offset, length)
        if host >= 0:
            if not self._data_edge.node.receive_nowait(host, payload):
                return False
        elif not self._quick.write_nowait(offset, (), length, payload):
            return False
        node = self.node
        node.wr_highest_offset = max(node.wr_highest_offset, offset + length)
        return True

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Fast: begin a read that waits for a device, or for others to be decrypted with."""
        if self._encryption is not None:
            return self._encryption.read_later(self, offset, view, done)
        return super().read_later(offset, view, done)

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Fast: begin a write that waits for a device, or for others to be encrypted with."""
        if self._encryption is not None:
            return self._ready and self._encryption.write_later(self, offset, view, done)
        return super().write_later(offset, view, done)

    def view_nowait(self, offset: int, length: int) -> memoryview | None:
        """Fast: see a part of one cluster, mostly in a chunk of the file of which all is cached.

        One function that calls no other; the plain way is that of all formats, with three.
        """
        table = self._hot.get(offset >> self._slice_bits)
        within = offset & self._within_mask
        if table is not None and within + length <= self._within_mask + 1 and not self._extended:
            host = table[(offset >> self._bits) & self._index_mask] & PLAIN
            if host and not host & self._not_plain:
                file = self._data_edge.node
                chunk = file.view_chunks.get(host >> CHUNK_BITS)
                if chunk is None:
                    return file.view_nowait(host + within, length)
                start = (host & CHUNK_MASK) + within
                return chunk[start : start + length]
        return super().view_nowait(offset, length)

    def view_path(self) -> Callable[[int, int], memoryview | None] | None:
        """Nobody may see encrypted data as it is in the file."""
        return super().view_path() if self._encryption is None else None

    def run_path(self) -> Qcow2Driver | None:
        """Several requests at once are cheaper if they are encrypted."""
        encrypts = self._encryption is not None and not self._encryption.is_slow
        return self if encrypts else None

    def read_run(self, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fast: read and decrypt together."""
        return self._encryption.read_run(self, requests) if self._encryption is not None else 0

    def write_run(self, requests: Sequence[tuple[int, memoryview]]) -> int:
        """Fast: encrypt together, and overwrite in place."""
        if self._encryption is None or not self._ready:
            return 0
        return self._encryption.write_run(self, requests)

    def late_path(self, is_write: bool) -> LatePath | None:
        """Fast: as for any format, unless there is something to be decrypted."""
        return None if self._encryption is not None else super().late_path(is_write)

    def map_nowait(self, offset: int, length: int) -> Mapping | None:
        """Map from memory."""
        return self._mapper.map_nowait(offset, length)

    async def map(self, offset: int, length: int) -> Mapping:
        """Map, loading tables as needed."""
        return await self._mapper.map(offset, length)

    async def read_special(self, offset: int, view: memoryview, mapping: Mapping) -> None:
        """Read from a compressed cluster."""
        await self._compressor.read(mapping.special, offset & self._within_mask, view)

    async def read_data(self, offset: int, edge: Edge, host: int, view: memoryview) -> None:
        """Read plain or encrypted data."""
        if self._encryption is None:
            await edge.node.read_or_zero(host, view)
        else:
            await self._encryption.read(offset, edge, host, view)

    async def write_data(
        self, offset: int, edge: Edge, host: int, view: memoryview, flags: int
    ) -> None:
        """Write data plainly or encrypted."""
        if self._encryption is None:
            await edge.node.write(host, view, flags)
        else:
            await self._encryption.write(offset, edge, host, view, flags)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Translate the mapping; a reserved but unused subcluster shows where its place is."""
        status = await super().block_status(offset, length, want_zero)
        if self._encryption is not None and status.flags & ST_DATA:
            # What the file has there, holes even, means nothing to a guest.
            return Status(status.length, status.flags & ~(ST_OFFSET | ST_RECURSE))
        if not status.flags and self._extended:
            mapping = self.map_nowait(offset, status.length)
            if mapping is not None and mapping.kind == HOLE and mapping.host_offset >= 0:
                return Status(mapping.length, ST_OFFSET, mapping.host_offset, mapping.edge)
        return status

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Describe what cached tables say."""
        return self._runs.runs_nowait(offset, length, limit)

    def allocated_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Tell what cached tables say."""
        return self._runs.allocated_nowait(offset, length, limit)

    # Changes

    async def _begin_change(self) -> None:
        if self.image.broken:
            raise os_error(errno.ENOMEDIUM)
        if not self._ready:
            await self._prepare_changes()

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write any range."""
        await self._begin_change()
        await super().write(offset, view, flags)

    async def write_from(self, offset: int, descriptor: int, host_offset: int, length: int) -> bool:
        """Write data that lies in a file."""
        if self._encryption is not None:
            return False
        await self._begin_change()
        return await super().write_from(offset, descriptor, host_offset, length)

    async def write_patches(
        self, offset: int, length: int, patches: Sequence[Patch], flags: int
    ) -> int:
        """Write to new clusters what comes from files, and zeroes between."""
        if self._encryption is not None:
            return 0
        await self._begin_change()
        from qsd.formats.qcow2.patches import write_patches

        hold = await self.ranges.claim(offset, align_up(offset + length, self.granularity), True)
        try:
            return await write_patches(self.image, offset, length, patches)
        finally:
            self.ranges.release(hold)

    async def allocate(self, offset: int, length: int) -> Allocation:
        """Reserve space."""
        return await self._changer.allocate(offset, length)

    async def commit(self, allocation: Allocation) -> None:
        """Make written space visible."""
        await self._changer.commit(allocation)

    def abandon(self, allocation: Allocation) -> None:
        """Give space back."""
        self._changer.abandon(allocation)

    async def write_compressed(self, offset: int, view: memoryview) -> None:
        """Store a cluster compressed, or plainly if that would not be shorter."""
        if self._encryption is not None:
            raise encryption.refuse_compression()
        if await self._compressor.write(self._changer, offset, view):
            return
        position = 0
        while position < len(view):
            rest = view[position:]
            mapping = await self.map(offset + position, len(rest))
            if mapping.writable:
                edge = mapping.edge or self._data_edge
                piece = rest[: mapping.length]
                await edge.node.write(mapping.host_offset, piece)
                position += len(piece)
                continue
            allocation = await self.allocate(offset + position, len(rest))
            try:
                await self._fill(allocation, rest[: allocation.length])
            except BaseException:
                self.abandon(allocation)
                raise
            await self.commit(allocation)
            position += allocation.length

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero any range.

        Whole subclusters change their entries.  Of a subcluster at either end the rest is looked
        at: if it reads as zeroes, the entry is changed too, else zeroes are written.
        """
        await self._begin_change()
        unit = self.image.geometry.subcluster_size
        end = offset + length
        stop = end if end == self.length() else align_down(end, unit)
        start = align_up(offset, unit)
        if start > stop:
            await self._zero_part(offset, end, flags)
            return
        if offset < start:
            await self._zero_part(offset, start, flags)
        if start < stop:
            await super().zero(start, stop - start, flags)
        if stop < end:
            await self._zero_part(stop, end, flags)

    async def _zero_part(self, start: int, end: int, flags: int) -> None:
        """Zero a part of one subcluster."""
        unit = self.image.geometry.subcluster_size
        first = align_down(start, unit)
        last = min(first + unit, self.length())
        cluster = align_down(start, self.granularity)
        hold = await self.ranges.claim(cluster, cluster + self.granularity, True)
        try:
            if await self._is_hollow(first, last, start, end):
                await self._changer.zero(first, last - first, flags)
                return
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:
                raise
        finally:
            self.ranges.release(hold)
        if flags & NO_FALLBACK:
            raise os_error(errno.ENOTSUP)
        for at in range(start, end, ZERO_CHUNK):
            await super().write(at, ZEROES[: min(ZERO_CHUNK, end - at)], 0)

    async def _is_hollow(self, first: int, last: int, start: int, end: int) -> bool:
        """Tell whether a subcluster holds no data, and reads as zeroes outside ``[start, end)``."""
        from qsd.block.status import chain_status

        at = first
        backing = self.node.children.get("backing")
        while at < last:
            mapping = self.map_nowait(at, last - at) or await self.map(at, last - at)
            if mapping.kind not in (ZERO, HOLE):
                return False
            at += mapping.length
        if backing is None:
            return True
        for low, high in ((first, start), (end, last)):
            while low < high:
                status = await chain_status(self.node, low, high - low)
                if not status.flags & 2:
                    return False
                low += status.length
        return True

    async def zero_aligned(self, offset: int, length: int, flags: int) -> None:
        """Zero whole subclusters."""
        await self._changer.zero(offset, length, flags)

    async def discard(self, offset: int, length: int) -> None:
        """Discard whole clusters."""
        await self._begin_change()
        await super().discard(offset, length)

    async def discard_aligned(self, offset: int, length: int) -> None:
        """Drop whole clusters."""
        await self._changer.discard(offset, length)

    async def flush(self) -> None:
        """Make everything durable."""
        if self.image.broken:
            return
        await self.image.write_back(durable=True)

    # Internal snapshots

    def snapshots(self) -> list[dict[str, Any]] | None:
        """List the internal snapshots; with an external data file there can be none."""
        if self.image.external_data:
            return None
        return [snapshot.info() for snapshot in self.image.snapshots]

    async def create_snapshot(self, name: str) -> str:
        """Take a snapshot of the present content."""
        from qsd.formats.qcow2.snapshot_changes import take

        await self._begin_change()
        return (await take(self.image, name)).id_str

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete the snapshot with this identifier."""
        from qsd.formats.qcow2.snapshot_changes import delete

        await self._begin_change()
        for snapshot in self.image.snapshots:
            if snapshot.id_str == snapshot_id:
                await delete(self.image, snapshot)
                return
        raise os_error(errno.ENOENT)

    async def amend(self, options: Any, force: bool) -> None:
        """Change the keys of an encrypted image."""
        given = options.encrypt
        if given is None:
            return
        if self._encryption is None:
            raise QmpError("image is not encrypted, can't amend")
        if self.node.read_only:
            raise QmpError("Could not read encryption header: Operation not permitted")
        async with self.image.change_lock:
            await self._encryption.amend(self.node.graph, given, force=force)

    # Description

    def backing_file(self) -> tuple[str, str | None] | None:
        """Return the recorded backing file."""
        header = self.image.header
        if header.backing_file is None:
            return None
        fmt = header.extension(layout.EXT_BACKING_FORMAT)
        return header.backing_file, fmt.decode(errors="replace") if fmt is not None else None

    async def change_backing_file(self, filename: str | None, fmt: str | None) -> None:
        """Record another backing file in the header, which is written at once and as a whole."""
        await self._begin_change()
        header = self.image.header
        if filename and len(filename.encode(errors="surrogateescape")) > layout.MAX_BACKING_NAME:
            raise os_error(errno.EINVAL)
        before = header.backing_file, list(header.extensions)
        kept = [item for item in header.extensions if item.kind != layout.EXT_BACKING_FORMAT]
        if filename and fmt:
            kept.insert(0, layout.backing_format(fmt))
        header.backing_file = filename or None
        header.extensions[:] = kept
        try:
            # What the new chain relies on (data that was streamed in) must be there first.
            await self.flush()
            await header_io.write_whole(self.image.file, header)
            await self.image.file.flush()
        except BaseException:
            header.backing_file, header.extensions[:] = before
            raise

    def image_info(self) -> dict[str, Any]:
        """Return ImageInfo members."""
        image = self.image
        if image.broken:
            # The C daemon drops the medium from under the node; whole queries fail then.
            raise QmpError(f"Block device {self.node.name} is ejected")
        header = image.header
        v3 = header.version >= 3
        data: dict[str, Any] = {
            "compat": "1.1" if v3 else "0.10",
            "compression-type": "zstd" if header.compression_type else "zlib",
        }
        if v3:
            data["lazy-refcounts"] = bool(header.compatible_features & layout.COMPAT_LAZY_REFCOUNTS)
        if self.bitmaps:
            data["bitmaps"] = [entry.info() for entry in self.bitmaps]
        data["refcount-bits"] = image.geometry.refcount_bits
        if self._encryption is not None:
            data["encrypt"] = self._encryption.info()
        if v3:
            data["corrupt"] = bool(header.incompatible_features & layout.INCOMPAT_CORRUPT)
            data["extended-l2"] = image.geometry.extended
        if image.external_data:
            name = header.extension(layout.EXT_DATA_FILE)
            if name is not None:
                data["data-file"] = name.decode(errors="replace")
            data["data-file-raw"] = bool(header.autoclear_features & layout.AUTOCLEAR_DATA_FILE_RAW)
        info: dict[str, Any] = {
            "dirty-flag": bool(header.incompatible_features & layout.INCOMPAT_DIRTY),
            "cluster-size": image.geometry.cluster_size,
            "format-specific": {"type": "qcow2", "data": data},
        }
        if self._encryption is not None:
            info["encrypted"] = True
        if image.snapshots:
            info["snapshots"] = [snapshot.info() for snapshot in image.snapshots]
        return info


async def _open_data_file(
    options: Any, opener: ChildOpener, header: Header, file_edge: Edge
) -> Edge:
    """Open the external data file; without one, data is where the metadata is."""
    if not header.incompatible_features & layout.INCOMPAT_DATA_FILE:
        if options.data_file is not None:
            # The C daemon opens it before it notices.
            await opener.image_file("data-file", options.data_file, None, perms.ROLE_DATA)
            raise QmpError("'data-file' can only be set for images with an external data file")
        return file_edge
    recorded = header.extension(layout.EXT_DATA_FILE)
    name = recorded.decode(errors="surrogateescape") if recorded is not None else None
    edge = await opener.image_file("data-file", options.data_file, name, perms.ROLE_DATA)
    if edge is None:
        raise QmpError("'data-file' is required for this image")
    await opener.child("file", options.file, perms.ROLE_METADATA)
    return edge
