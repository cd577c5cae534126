# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reading, checking and rewriting the header of an image.

The checks and their order are those of the C daemon, found by corrupting one field after the other;
their texts are part of the interface, because people search for them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qsd.errors import QmpError, os_error, prefixed
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.layout import Geometry, Header
from qsd.util.ranges import align_up

if TYPE_CHECKING:
    from qsd.block.node import Node

#: Bytes; the longest backing format name plus one, as the C daemon has it.
_MAX_FORMAT_NAME = 16
#: Bytes; where host offsets end: bits 9 to 55 of an entry.
MAX_HOST_OFFSET = 1 << 56


async def read_header(file: Node, read_only: bool) -> Header:
    """Read and check the header.

    Raises:
        QmpError: The image cannot be opened, in the C daemon's words.
        OSError: It could not be read.
    """
    start = memoryview(bytearray(layout.V3_FULL_LENGTH))
    try:
        await file.read_or_zero(0, start)
    except OSError as exc:
        raise prefixed(exc, "Could not read qcow2 header: ") from exc
    magic, version = layout.magic_and_version(bytes(start))
    if magic != layout.MAGIC:
        raise QmpError("Image is not in qcow2 format")
    if version not in (2, 3):
        raise QmpError(f"Unsupported qcow2 version {version}")
    header = Header.parse(bytes(start))
    if not layout.MIN_CLUSTER_BITS <= header.cluster_bits <= layout.MAX_CLUSTER_BITS:
        raise QmpError(f"Unsupported cluster size: 2^{header.cluster_bits}")
    cluster_size = 1 << header.cluster_bits
    if version >= 3 and header.header_length < layout.V3_LENGTH:
        raise QmpError("qcow2 header too short")
    if header.header_length > cluster_size:
        raise QmpError("qcow2 header exceeds cluster size")
    if header.backing_file_offset > cluster_size:
        raise QmpError("Invalid backing file offset")
    cluster = bytearray(cluster_size)
    await file.read_or_zero(0, memoryview(cluster))
    data = bytes(cluster)
    if header.header_length > layout.V3_FULL_LENGTH:
        header.unknown_fields = data[layout.V3_FULL_LENGTH : header.header_length]
    _check_features(header, data, read_only)
    _check_tables(header)
    _read_extensions(header, data)
    _read_backing_name(header, data)
    return header


def _extensions_end(header: Header, data: bytes) -> int:
    return header.backing_file_offset or len(data)


def _check_features(header: Header, data: bytes, read_only: bool) -> None:
    unknown = header.incompatible_features & ~layout.INCOMPAT_KNOWN
    if unknown:
        raise QmpError(f"Unsupported qcow2 feature(s): {_name_features(header, data, unknown)}")
    if header.incompatible_features & layout.INCOMPAT_CORRUPT and not read_only:
        raise QmpError("qcow2: Image is corrupt; cannot be opened read/write")
    extended = bool(header.incompatible_features & layout.INCOMPAT_EXTENDED_L2)
    if extended and (1 << header.cluster_bits) // layout.SUBCLUSTERS < layout.MIN_SUBCLUSTER:
        size = (1 << header.cluster_bits) // layout.SUBCLUSTERS
        raise QmpError(f"Unsupported subcluster size: {size}")
    if header.refcount_order > 6:
        raise QmpError("Reference count entry width too large; may not exceed 64 bits")
    if header.crypt_method > 2:
        raise QmpError(f"Unsupported encryption method {header.crypt_method}")


def _name_features(header: Header, data: bytes, mask: int) -> str:
    """Name unknown incompatible features with the image's own table as far as it knows them."""
    names: dict[int, str] = {}
    start = header.header_length
    for extension in layout.parse_extensions(data, start, _extensions_end(header, data)):
        if extension is not None and extension.kind == layout.EXT_FEATURES:
            names.update(
                (bit, name)
                for kind, bit, name in layout.parse_features(extension.data)
                if kind == 0 and bit < 64 and mask >> bit & 1
            )
    for bit in names:
        mask &= ~(1 << bit)
    texts = list(names.values())
    if mask:
        texts.append(f"Unknown incompatible feature: {mask:x}")
    return ", ".join(texts)


def check_table(
    offset: int, entries: int, entry_size: int, max_bytes: int, cluster_size: int, name: str
) -> None:
    """Refuse a table that is too long, misplaced, or ends beyond what an offset can express.

    Raises:
        QmpError: It is.
    """
    if entries > max_bytes // entry_size:
        raise QmpError(f"{name} too large")
    if offset % cluster_size or offset + entries * entry_size > (1 << 63) - 1:
        raise QmpError(f"{name} offset invalid")


def _check_tables(header: Header) -> None:
    cluster_size = 1 << header.cluster_bits
    geometry = Geometry(
        header.cluster_bits,
        header.refcount_order,
        bool(header.incompatible_features & layout.INCOMPAT_EXTENDED_L2),
    )
    clusters = header.refcount_table_clusters
    if clusters > layout.MAX_REFTABLE_BYTES // cluster_size:
        raise QmpError("Reference count table too large")
    if not clusters:
        raise QmpError("Image does not contain a reference count table")
    check_table(
        header.refcount_table_offset,
        clusters * (cluster_size // 8),
        8,
        layout.MAX_REFTABLE_BYTES,
        cluster_size,
        "Reference count table",
    )
    check_table(
        header.snapshots_offset,
        header.nb_snapshots,
        40,
        layout.MAX_SNAPSHOTS * 40,
        cluster_size,
        "Snapshot table",
    )
    check_table(
        header.l1_table_offset,
        header.l1_size,
        8,
        layout.MAX_L1_BYTES,
        cluster_size,
        "Active L1 table",
    )
    if header.size > (1 << 63) - 1:
        raise QmpError("Could not refresh total sector count: File too large")
    needed = geometry.l1_entries(header.size)
    if needed > 0x7FFFFFFF // 8:
        raise QmpError("Image is too big")
    if header.l1_size < needed:
        raise QmpError("L1 table is too small")


def _read_extensions(header: Header, data: bytes) -> None:
    end = _extensions_end(header, data)
    for extension in layout.parse_extensions(data, header.header_length, end):
        if extension is None:
            raise QmpError("Header extension too large")
        kind, body = extension
        if kind == layout.EXT_BACKING_FORMAT and len(body) >= _MAX_FORMAT_NAME:
            raise QmpError(
                f"ERROR: ext_backing_format: len={len(body)} too large (>={_MAX_FORMAT_NAME})"
            )
        if kind == layout.EXT_CRYPTO and header.crypt_method != 2:
            raise QmpError("CRYPTO header extension only expected with LUKS encryption method")
        if kind == layout.EXT_BITMAPS:
            _check_bitmaps_extension(header, body)
        header.extensions.append(extension)


def _check_bitmaps_extension(header: Header, body: bytes) -> None:
    if len(body) != layout.BITMAPS_EXT_LENGTH:
        raise QmpError("bitmaps_ext: Invalid extension length")
    if not header.autoclear_features & layout.AUTOCLEAR_BITMAPS:
        return  # not consistent: nobody will use it
    extension = layout.BitmapsExtension.parse(body)
    if extension.reserved:
        raise QmpError("bitmaps_ext: Reserved field is not zero")
    if extension.bitmap_count > layout.MAX_BITMAPS:
        raise QmpError(
            f"bitmaps_ext: image has {extension.bitmap_count} bitmaps, exceeding the QEMU "
            f"supported maximum of {layout.MAX_BITMAPS}"
        )
    if not extension.bitmap_count:
        raise QmpError("found bitmaps extension with zero bitmaps")
    if extension.directory_offset % (1 << header.cluster_bits):
        raise QmpError("bitmaps_ext: invalid bitmap directory offset")
    # Each entry has 24 bytes, and some extra: at most 64 KiB times 1 KiB of them.
    if extension.directory_size > layout.MAX_BITMAPS * (24 + 1024):
        raise QmpError(
            f"bitmaps_ext: bitmap directory size ({extension.directory_size}) exceeds the "
            f"maximum supported size ({layout.MAX_BITMAPS * (24 + 1024)})"
        )


def _read_backing_name(header: Header, data: bytes) -> None:
    if not header.backing_file_offset:
        return
    length = header.backing_file_size
    limit = min(layout.MAX_BACKING_NAME, len(data) - header.backing_file_offset)
    if length > limit:
        raise QmpError("Backing file name too long")
    start = header.backing_file_offset
    name = data[start : start + length].split(b"\0")[0]
    header.backing_file = name.decode(errors="surrogateescape")


def check_compression(header: Header) -> None:
    """Check the compression type against the feature bit that announces it.

    Raises:
        QmpError: They disagree, or the type is unknown.
    """
    if header.compression_type > 1:
        raise QmpError(f"qcow2: unknown compression type: {header.compression_type}")
    flagged = bool(header.incompatible_features & layout.INCOMPAT_COMPRESSION)
    if flagged != (header.compression_type != 0):
        verb = "must not" if flagged else "must"
        raise QmpError(f"qcow2: Compression type incompatible feature bit {verb} be set")


async def write_whole(file: Node, header: Header) -> None:
    """Rewrite the header with extensions and backing file name in place.

    Raises:
        OSError: ENOSPC if they do not fit into the first cluster.
    """
    data = header.pack()
    cluster_size = 1 << header.cluster_bits
    if len(data) > cluster_size:
        raise os_error(errno.ENOSPC)
    # Old text behind a shorter new one must not stay: extensions end where reading finds an end.
    length = align_up(len(data), 512)
    await file.write(0, memoryview(data.ljust(min(length, cluster_size), b"\0")))


async def write_features(file: Node, header: Header) -> None:
    """Write the three feature fields in place and make them durable (version 3 only)."""
    fields = (
        header.incompatible_features,
        header.compatible_features,
        header.autoclear_features,
    )
    data = b"".join(layout.U64.pack(value) for value in fields)
    await file.write(layout.AT_INCOMPAT, memoryview(data))
    await file.flush()
