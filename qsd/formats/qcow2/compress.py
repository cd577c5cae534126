# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Compressed clusters ("Compressed Clusters Descriptor"): reading and writing them.

A compressed cluster is a byte range of the file, shorter than a cluster and not aligned; several
of them share host clusters, each counting as one reference to every host cluster it touches.  zlib
data is a raw deflate stream with a 4 KiB window, zstd data is a sequence of frames.  Both may be
followed by up to 511 bytes of something else, since lengths are recorded in sectors.

Compressing and decompressing runs in worker threads.
"""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING, Final

from qsd.errors import os_error
from qsd.formats.qcow2.layout import ALL_ALLOCATED, COMPRESSED, COPIED
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_SILENT

if TYPE_CHECKING:
    from qsd.formats.qcow2.changes import Changer
    from qsd.formats.qcow2.image import Image

ZLIB: Final = 0
ZSTD: Final = 1
#: Raw deflate with a window of 4 KiB, what readers of the format expect.
_WINDOW_BITS: Final = -12
#: Bytes; decompressed clusters kept for readers that come in small steps.
_KEEP: Final = 256 << 10


def decompress(data: memoryview, size: int, method: int) -> bytes:
    """Return exactly `size` bytes of what `data` was made of.

    Raises:
        OSError: EIO if it is damaged.
    """
    try:
        if method == ZSTD:
            return _unzstd(data, size)
        # Never more than a cluster comes out, whatever a hostile stream would expand to.
        out = zlib.decompressobj(_WINDOW_BITS).decompress(data, size)
    except (zlib.error, ValueError) as exc:
        raise os_error(errno.EIO) from exc
    if len(out) != size:
        raise os_error(errno.EIO)
    return out


def _unzstd(data: memoryview, size: int) -> bytes:
    import io

    import zstandard

    try:
        reader = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(data), read_across_frames=True
        )
        out = bytearray()
        while len(out) < size:
            part = reader.read(size - len(out))
            if not part:
                raise os_error(errno.EIO)
            out += part
    except zstandard.ZstdError as exc:
        raise os_error(errno.EIO) from exc
    return bytes(out)


def compress(data: bytes, method: int) -> bytes:
    """Compress one cluster; the result may be longer than the input."""
    if method == ZSTD:
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WINDOW_BITS)
    return deflate.compress(data) + deflate.flush()


class Compressor:
    """Compressed clusters of one image."""

    __slots__ = ("_free_end", "_free_start", "_image", "_kept")

    def __init__(self, image: Image) -> None:
        self._image = image
        # Space left in the host cluster that the last compressed data ended in.
        self._free_start = self._free_end = 0
        self._kept: dict[int, bytes] = {}

    async def read(self, entry: int, within: int, view: memoryview) -> None:
        """Fill `view` with what the cluster behind an entry holds from `within` on.

        Raises:
            OSError: EIO if the data is damaged.
        """
        cluster = self._kept.get(entry)
        if cluster is None:
            image = self._image
            size = image.geometry.cluster_size
            offset, length = image.geometry.compressed_range(entry)
            raw = memoryview(bytearray(length))
            image.file.driver.debug_event("read_compressed")
            await image.file.read_or_zero(offset, raw)
            cluster = await image.node.graph.pool.run(
                decompress, raw, size, image.header.compression_type
            )
            while self._kept and (len(self._kept) + 1) * size > _KEEP:
                del self._kept[next(iter(self._kept))]
            self._kept[entry] = cluster
        view[:] = cluster[within : within + len(view)]

    def forget(self) -> None:
        """Drop kept clusters: their space may hold something else from now on."""
        self._kept.clear()

    async def write(self, changer: Changer, offset: int, view: memoryview) -> bool:
        """Store one cluster compressed; the caller holds the exclusive claim.

        Returns:
            False if that would not be shorter: it has to be written plainly.

        Raises:
            OSError: EIO if the cluster is in use and cannot be replaced.
        """
        image = self._image
        geometry = image.geometry
        size = geometry.cluster_size
        if image.external_data:
            raise os_error(errno.ENOTSUP)
        # A cluster is compressed as a whole, also the last one of an image.
        data = bytes(view).ljust(size, b"\0")
        packed = await image.node.graph.pool.run(compress, data, image.header.compression_type)
        if len(packed) >= size:
            return False
        table = await image.writable_slice(offset)
        index = (offset >> geometry.cluster_bits) & (image.slice_entries - 1)
        if table[index * geometry.entry_words] & (COPIED | COMPRESSED):
            raise os_error(errno.EIO)  # compressed data replaces no other, as with the C daemon
        host = await self._take(len(packed))
        entry = geometry.compressed_entry(host, len(packed))
        debug_event = image.file.driver.debug_event
        try:
            debug_event("l2_update_compressed")
            debug_event("write_compressed")
            await image.file.write(host, memoryview(packed))
            table = await image.writable_slice(offset)
        except BaseException:
            changer.free_entry(entry, FREE_SILENT)
            raise
        # Atomic from here on.
        at = index * geometry.entry_words
        old = table[at]
        table[at] = entry
        if geometry.extended:
            table[at + 1] &= ~(ALL_ALLOCATED | ALL_ALLOCATED << 32)
        image.l2.mark(offset >> image.slice_bits, at, at + geometry.entry_words)
        image.needs_barrier = True
        if old:
            changer.free_entry(old, FREE_OTHER)
        self.forget()
        return True

    async def _take(self, length: int) -> int:
        """Take space for compressed data: behind the last piece if it fits, else a new cluster."""
        image = self._image
        image.file.driver.debug_event("cluster_alloc_bytes")
        bits = image.geometry.cluster_bits
        start = self._free_start
        if start >> bits == image.packing and start + length <= self._free_end:
            self._free_start = start + length
            try:
                await image.refcounts.add(start >> bits, 1)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                # The count of that cluster is at its limit: go elsewhere.
            else:
                return start
        first, _ = await image.refcounts.take(1)
        start = first << bits
        image.used(start + image.geometry.cluster_size)
        image.packing = first
        self._free_start = start + length
        self._free_end = start + image.geometry.cluster_size
        return start
