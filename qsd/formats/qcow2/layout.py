# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What stands on disk in a qcow2 image: records, table entries and their meaning; no I/O.

Everything here follows "Qcow2 Image File Format" (docs/interop/qcow2), cited by its headings.  All
numbers on disk are big-endian.  Whole tables are kept as packed arrays in host byte order
(:func:`table_from_bytes`); the functions below explain single entries of them.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, Final

from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = 0x514649FB  #: "QFI\xfb"

# "Header", incompatible_features
INCOMPAT_DIRTY: Final = 1 << 0
INCOMPAT_CORRUPT: Final = 1 << 1
INCOMPAT_DATA_FILE: Final = 1 << 2
INCOMPAT_COMPRESSION: Final = 1 << 3
INCOMPAT_EXTENDED_L2: Final = 1 << 4
INCOMPAT_KNOWN: Final = 0x1F
# compatible_features
COMPAT_LAZY_REFCOUNTS: Final = 1 << 0
# autoclear_features
AUTOCLEAR_BITMAPS: Final = 1 << 0
AUTOCLEAR_DATA_FILE_RAW: Final = 1 << 1
AUTOCLEAR_KNOWN: Final = 3

# Byte offsets of header fields that are rewritten in place.
AT_SIZE: Final = 24
AT_L1: Final = 36  #: l1_size (4 bytes), then l1_table_offset (8)
AT_REFTABLE: Final = 48  #: refcount_table_offset (8), then refcount_table_clusters (4)
AT_SNAPSHOTS: Final = 60  #: nb_snapshots (4), then snapshots_offset (8)
AT_INCOMPAT: Final = 72
AT_AUTOCLEAR: Final = 88

V2_LENGTH: Final = 72
V3_LENGTH: Final = 104
V3_FULL_LENGTH: Final = 112

# "Header extensions"
EXT_END: Final = 0
EXT_BACKING_FORMAT: Final = 0xE2792ACA
EXT_FEATURES: Final = 0x6803F857
EXT_BITMAPS: Final = 0x23852875
EXT_CRYPTO: Final = 0x0537BE77
EXT_DATA_FILE: Final = 0x44415441

# Limits.  Bytes unless said otherwise; all are those of the C implementation, observed on it.
MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
MAX_L1_BYTES: Final = 32 << 20
MAX_REFTABLE_BYTES: Final = 8 << 20
MAX_SNAPSHOTS: Final = 65536  #: count
MAX_BITMAPS: Final = 65535  #: count
MAX_BACKING_NAME: Final = 1023
#: Subclusters are at least this large: clusters with extended entries have 2^14 bytes and more.
MIN_SUBCLUSTER: Final = 512
SUBCLUSTERS: Final = 32  #: per cluster, "Extended L2 Entries"

# L1 and L2 entries
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO_FLAG: Final = 1
OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00
L1_RESERVED: Final = 0x7F000000000001FF
REFTABLE_MASK: Final = 0xFFFFFFFFFFFFFE00
#: In an extended entry's bitmap, the allocation bit of each subcluster; zero bits are 32 higher.
ALL_ALLOCATED: Final = 0xFFFFFFFF
ALL_ZERO: Final = 0xFFFFFFFF << 32

_LITTLE = sys.byteorder == "little"

_HEADER_V2 = struct.Struct(">IIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_FEATURE = struct.Struct(">BB46s")
_BITMAPS_EXT: Final = struct.Struct(">IIQQ")
BITMAPS_EXT_LENGTH: Final = _BITMAPS_EXT.size
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
L1_FIELDS: Final = struct.Struct(">IQ")
REFTABLE_FIELDS: Final = struct.Struct(">QI")
SNAPSHOT_FIELDS: Final = struct.Struct(">IQ")


def table_from_bytes(data: bytes | bytearray | memoryview, typecode: str = "Q") -> array[int]:
    """Turn big-endian table bytes into an array in host order."""
    table: array[int] = array(typecode)
    table.frombytes(data)
    if _LITTLE and table.itemsize > 1:
        table.byteswap()
    return table


def table_to_bytes(table: array[int]) -> bytes:
    """Turn (a slice of) a table into its big-endian bytes."""
    if _LITTLE and table.itemsize > 1:
        table = table[:]
        table.byteswap()
    return table.tobytes()


def c_hex(value: int) -> str:
    """Return a number as C prints it with ``%#x``: zero has no prefix."""
    return f"{value:#x}" if value else "0"


class Extension(NamedTuple):
    """One header extension ("Header extensions")."""

    kind: int
    data: bytes


def backing_format(name: str) -> Extension:
    """Return the extension that records the backing file's format.

    Like the C daemon, which refuses longer ones when it reads them, it keeps 15 bytes.
    """
    return Extension(EXT_BACKING_FORMAT, name.encode()[:15])


class Feature(NamedTuple):
    """One entry of the feature name table ("Feature name table")."""

    kind: int  #: 0 incompatible, 1 compatible, 2 autoclear
    bit: int
    name: str


#: The names every new version 3 image carries, in the order in which the C daemon stores them.
FEATURE_NAMES: Final = (
    Feature(0, 0, "dirty bit"),
    Feature(0, 1, "corrupt bit"),
    Feature(0, 2, "external data file"),
    Feature(0, 3, "compression type"),
    Feature(0, 4, "extended L2 entries"),
    Feature(1, 0, "lazy refcounts"),
    Feature(2, 0, "bitmaps"),
    Feature(2, 1, "raw external data"),
)


def pack_features(features: tuple[Feature, ...] = FEATURE_NAMES) -> bytes:
    """Build the body of a feature name table."""
    return b"".join(_FEATURE.pack(kind, bit, name.encode()) for kind, bit, name in features)


def parse_features(data: bytes) -> list[Feature]:
    """Read a feature name table; an incomplete last entry is ignored."""
    whole = len(data) - len(data) % _FEATURE.size
    return [
        Feature(kind, bit, name.split(b"\0")[0].decode(errors="replace"))
        for kind, bit, name in _FEATURE.iter_unpack(data[:whole])
    ]


class BitmapsExtension(NamedTuple):
    """The bitmaps extension ("Bitmaps extension")."""

    bitmap_count: int
    reserved: int
    directory_size: int
    directory_offset: int

    @classmethod
    def parse(cls, data: bytes) -> BitmapsExtension:
        """Read the 24 bytes of the extension."""
        return cls(*_BITMAPS_EXT.unpack(data))

    def pack(self) -> bytes:
        """Return the 24 bytes of the extension."""
        return _BITMAPS_EXT.pack(*self)


class Header:
    """The header's fixed part ("Header"), field names as there.

    `extensions` and `backing_file` are what follows it.  In a version 2 header the version 3 fields
    have the defaults that the specification gives for it.
    """

    __slots__ = (
        "autoclear_features",
        "backing_file",
        "backing_file_offset",
        "backing_file_size",
        "cluster_bits",
        "compatible_features",
        "compression_type",
        "crypt_method",
        "extensions",
        "header_length",
        "incompatible_features",
        "l1_size",
        "l1_table_offset",
        "nb_snapshots",
        "refcount_order",
        "refcount_table_clusters",
        "refcount_table_offset",
        "size",
        "snapshots_offset",
        "unknown_fields",
        "version",
    )

    def __init__(self) -> None:
        self.version = 3
        self.backing_file_offset = 0
        self.backing_file_size = 0
        self.cluster_bits = 16
        self.size = 0
        self.crypt_method = 0
        self.l1_size = 0
        self.l1_table_offset = 0
        self.refcount_table_offset = 0
        self.refcount_table_clusters = 0
        self.nb_snapshots = 0
        self.snapshots_offset = 0
        self.incompatible_features = 0
        self.compatible_features = 0
        self.autoclear_features = 0
        self.refcount_order = 4
        self.header_length = V2_LENGTH
        self.compression_type = 0
        self.unknown_fields = b""
        self.extensions: list[Extension] = []
        self.backing_file: str | None = None

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Read the fixed part from at least V3_FULL_LENGTH bytes (zero padded); checks nothing.

        The magic is the caller's to check (:func:`magic_and_version`).
        """
        header = cls()
        (
            _magic,
            header.version,
            header.backing_file_offset,
            header.backing_file_size,
            header.cluster_bits,
            header.size,
            header.crypt_method,
            header.l1_size,
            header.l1_table_offset,
            header.refcount_table_offset,
            header.refcount_table_clusters,
            header.nb_snapshots,
            header.snapshots_offset,
        ) = _HEADER_V2.unpack_from(data)
        if header.version >= 3:
            (
                header.incompatible_features,
                header.compatible_features,
                header.autoclear_features,
                header.refcount_order,
                header.header_length,
            ) = _HEADER_V3.unpack_from(data, V2_LENGTH)
            if header.header_length > V3_LENGTH:
                header.compression_type = data[V3_LENGTH]
        return header

    def pack(self) -> bytes:
        """Return the whole header: fixed part, extensions, backing file name.

        `header_length`, `backing_file_offset` and `backing_file_size` are set to fit.
        """
        if self.version >= 3:
            self.header_length = V3_FULL_LENGTH + len(self.unknown_fields)
        else:
            self.header_length = V2_LENGTH
        parts = []
        for kind, body in self.extensions:
            parts.append(_EXTENSION.pack(kind, len(body)) + body + bytes(-len(body) % 8))
        parts.append(_EXTENSION.pack(EXT_END, 0))
        tail = b"".join(parts)
        name = b""
        self.backing_file_offset = self.backing_file_size = 0
        if self.backing_file is not None:
            name = self.backing_file.encode(errors="surrogateescape")
            self.backing_file_offset = self.header_length + len(tail)
            self.backing_file_size = len(name)
        fixed = _HEADER_V2.pack(
            MAGIC,
            self.version,
            self.backing_file_offset,
            self.backing_file_size,
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_table_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        if self.version >= 3:
            fixed += _HEADER_V3.pack(
                self.incompatible_features,
                self.compatible_features,
                self.autoclear_features,
                self.refcount_order,
                self.header_length,
            )
            fixed += bytes((self.compression_type,)).ljust(8, b"\0") + self.unknown_fields
        return fixed + tail + name

    def extension(self, kind: int) -> bytes | None:
        """Return the body of the first extension of a kind."""
        for entry in self.extensions:
            if entry.kind == kind:
                return entry.data
        return None

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """Replace, add or (None) remove the extension of a kind."""
        for index, entry in enumerate(self.extensions):
            if entry.kind == kind:
                if data is None:
                    del self.extensions[index]
                else:
                    self.extensions[index] = Extension(kind, data)
                return
        if data is not None:
            self.extensions.append(Extension(kind, data))


def magic_and_version(data: bytes) -> tuple[int, int]:
    """Return the first two fields of a header."""
    magic, version = _EXTENSION.unpack_from(data)
    return magic, version


def parse_extensions(data: bytes, start: int, end: int) -> Iterator[Extension | None]:
    """Yield the extensions between two offsets of the first cluster.

    The last item is None if an extension does not fit ("Header extension too large").
    """
    while start + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(data, start)
        start += _EXTENSION.size
        if length > end - start:
            yield None
            return
        if kind == EXT_END:
            return
        yield Extension(kind, bytes(data[start : start + length]))
        start += length + -length % 8


class Geometry:
    """Sizes that follow from the header and never change while an image is open.

    Attributes:
        cluster_bits, cluster_size: Of host and guest clusters.
        extended: Whether L2 entries have 128 bits.
        entry_words: 64-bit words of an L2 entry, 1 or 2.
        l2_bits: Binary logarithm of the number of entries of an L2 table.
        l2_span_bits: Binary logarithm of the bytes that one L2 table maps.
        subcluster_size: Bytes; the cluster size without extended entries.
        refcount_order, refcount_bits: Width of a reference count.
        block_bits: Binary logarithm of the number of refcounts in a refcount block.
        max_refcount: The largest refcount that can be stored.
        compressed_shift: First bit of the sector count in a compressed entry.
    """

    __slots__ = (
        "block_bits",
        "cluster_bits",
        "cluster_size",
        "compressed_shift",
        "entry_words",
        "extended",
        "l2_bits",
        "l2_span_bits",
        "max_refcount",
        "refcount_bits",
        "refcount_order",
        "subcluster_bits",
        "subcluster_size",
    )

    def __init__(self, cluster_bits: int, refcount_order: int, extended: bool) -> None:
        self.cluster_bits = cluster_bits
        self.cluster_size = 1 << cluster_bits
        self.extended = extended
        self.entry_words = 2 if extended else 1
        self.l2_bits = cluster_bits - 3 - extended
        self.l2_span_bits = self.l2_bits + cluster_bits
        self.subcluster_bits = cluster_bits - (5 if extended else 0)
        self.subcluster_size = 1 << self.subcluster_bits
        self.refcount_order = refcount_order
        self.refcount_bits = 1 << refcount_order
        self.block_bits = cluster_bits + 3 - refcount_order
        self.max_refcount = (1 << self.refcount_bits) - 1
        self.compressed_shift = 62 - (cluster_bits - 8)

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """Return (host offset, length) of a compressed cluster ("Compressed Clusters Descriptor").

        The length is an upper bound: the data ends in the last 512-byte sector counted.
        """
        shift = self.compressed_shift
        offset = entry & ((1 << shift) - 1)
        sectors = ((entry & ~(COPIED | COMPRESSED)) >> shift) + 1
        return offset, sectors * 512 - (offset & 511)

    def compressed_entry(self, offset: int, length: int) -> int:
        """Return the L2 entry of compressed data."""
        sectors = ((offset + length - 1) >> 9) - (offset >> 9)
        return COMPRESSED | sectors << self.compressed_shift | offset

    def l1_entries(self, size: int) -> int:
        """Return the number of L1 entries that an image of `size` bytes needs."""
        return (size + (1 << self.l2_span_bits) - 1) >> self.l2_span_bits


# Refcount blocks.  Counts narrower than a byte are spread to one byte each in memory.

_TYPECODES: Final = {0: "B", 1: "B", 2: "B", 3: "B", 4: "H", 5: "I", 6: "Q"}


def refcounts_from_bytes(data: bytes | bytearray | memoryview, order: int) -> array[int]:
    """Read a refcount block ("Refcount block": lower bits hold lower indexes)."""
    if order >= 3:
        return table_from_bytes(data, _TYPECODES[order])
    width = 1 << order
    per_byte = 8 >> order
    count = len(data)
    spread = bytearray(count * per_byte)
    # One shift and one mask of a huge integer handle the same field of all bytes at once.
    packed = int.from_bytes(data, "little")
    mask = int.from_bytes(bytes((((1 << width) - 1),)) * count, "little")
    for field in range(per_byte):
        spread[field::per_byte] = ((packed >> (field * width)) & mask).to_bytes(count, "little")
    return array("B", spread)


def refcounts_to_bytes(block: array[int], order: int) -> bytes:
    """Build the bytes of (a byte-aligned slice of) a refcount block."""
    if order >= 3:
        return table_to_bytes(block)
    width = 1 << order
    per_byte = 8 >> order
    raw = block.tobytes()
    packed = 0
    for field in range(per_byte):
        packed |= int.from_bytes(raw[field::per_byte], "little") << (field * width)
    return packed.to_bytes(len(raw) // per_byte, "little")


def empty_refcounts(geometry: Geometry) -> array[int]:
    """Return a refcount block of zeroes."""
    typecode = _TYPECODES[geometry.refcount_order]
    return array(typecode, bytes(array(typecode).itemsize << geometry.block_bits))
