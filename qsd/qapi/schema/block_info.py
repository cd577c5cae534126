# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What queries say of nodes and images (QMP reference, "Block core").

Members are spelled with underscores in ``BlockDeviceInfo`` and with dashes nearly everywhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import Struct, Union, command, commands, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.schema.block_create import Qcow2CompressionType
    from qsd.qapi.schema.block_options import (
        BlockdevDetectZeroesOptions,
        BlockdevQcow2EncryptionFormat,
    )
    from qsd.qapi.schema.block_protocols import RbdImageEncryptionFormat
    from qsd.qapi.schema.crypto import QCryptoBlockInfoLUKS


class SnapshotInfo(Struct):
    """One internal snapshot (QMP reference, "SnapshotInfo")."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int
    icount: int | None = None


class ImageInfoSpecificQCow2EncryptionBase(Struct):
    """QMP reference, "ImageInfoSpecificQCow2EncryptionBase"."""

    format: BlockdevQcow2EncryptionFormat


class ImageInfoSpecificQCow2Encryption(Union, ImageInfoSpecificQCow2EncryptionBase):
    """QMP reference, "ImageInfoSpecificQCow2Encryption"."""

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "luks": "QCryptoBlockInfoLUKS",
    }


class ImageInfoSpecificQCow2(Struct):
    """QMP reference, "ImageInfoSpecificQCow2"."""

    compat: str
    data_file: str | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    lazy_refcounts: bool | None = None
    corrupt: bool | None = None
    refcount_bits: int
    encrypt: ImageInfoSpecificQCow2Encryption | None = None
    bitmaps: list[Qcow2BitmapInfo] | None = None
    compression_type: Qcow2CompressionType


class ImageInfoSpecificVmdk(Struct):
    """QMP reference, "ImageInfoSpecificVmdk"."""

    create_type: str
    cid: int
    parent_cid: int
    extents: list[ImageInfo]


class ImageInfoSpecificRbd(Struct):
    """QMP reference, "ImageInfoSpecificRbd"."""

    encryption_format: RbdImageEncryptionFormat | None = None


ImageInfoSpecificKind: TypeAlias = Literal["qcow2", "vmdk", "luks", "rbd"]
"""QMP reference, "ImageInfoSpecificKind"."""


class ImageInfoSpecificQCow2Wrapper(Struct):
    """QMP reference, "ImageInfoSpecificQCow2Wrapper"."""

    data: ImageInfoSpecificQCow2


class ImageInfoSpecificVmdkWrapper(Struct):
    """QMP reference, "ImageInfoSpecificVmdkWrapper"."""

    data: ImageInfoSpecificVmdk


class ImageInfoSpecificLUKSWrapper(Struct):
    """QMP reference, "ImageInfoSpecificLUKSWrapper"."""

    data: QCryptoBlockInfoLUKS


class ImageInfoSpecificRbdWrapper(Struct):
    """QMP reference, "ImageInfoSpecificRbdWrapper"."""

    data: ImageInfoSpecificRbd


class ImageInfoSpecific(Union):
    """What only the image's own format can tell (QMP reference, "ImageInfoSpecific")."""

    type: ImageInfoSpecificKind

    TAG: ClassVar[str] = "type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "qcow2": "ImageInfoSpecificQCow2Wrapper",
        "vmdk": "ImageInfoSpecificVmdkWrapper",
        "luks": "ImageInfoSpecificLUKSWrapper",
        "rbd": "ImageInfoSpecificRbdWrapper",
    }


class ImageInfo(Struct):
    """What can be said of an image (QMP reference, "ImageInfo")."""

    filename: str
    format: str
    dirty_flag: bool | None = None
    actual_size: int | None = None
    virtual_size: int
    cluster_size: int | None = None
    encrypted: bool | None = None
    compressed: bool | None = None
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: list[SnapshotInfo] | None = None
    backing_image: ImageInfo | None = None
    format_specific: ImageInfoSpecific | None = None


class ImageCheck(Struct):
    """The outcome of a check (QMP reference, "ImageCheck")."""

    filename: str
    format: str
    check_errors: int
    image_end_offset: int | None = None
    corruptions: int | None = None
    leaks: int | None = None
    corruptions_fixed: int | None = None
    leaks_fixed: int | None = None
    total_clusters: int | None = None
    allocated_clusters: int | None = None
    fragmented_clusters: int | None = None
    compressed_clusters: int | None = None


class MapEntry(Struct):
    """One range of an image and where its data lies (QMP reference, "MapEntry")."""

    start: int
    length: int
    data: bool
    zero: bool
    depth: int
    present: bool
    offset: int | None = None
    filename: str | None = None


class BlockdevCacheInfo(Struct):
    """The cache mode of a node (QMP reference, "BlockdevCacheInfo")."""

    writeback: bool
    direct: bool
    no_flush: bool


class BlockDeviceInfo(Struct):
    """One node, as query-named-block-nodes shows it (QMP reference, "BlockDeviceInfo")."""

    file: str
    node_name: str | None = None
    ro: bool
    drv: str
    backing_file: str | None = member("backing_file", default=None)
    backing_file_depth: int = member("backing_file_depth")
    encrypted: bool
    detect_zeroes: BlockdevDetectZeroesOptions = member("detect_zeroes")
    bps: int
    bps_rd: int = member("bps_rd")
    bps_wr: int = member("bps_wr")
    iops: int
    iops_rd: int = member("iops_rd")
    iops_wr: int = member("iops_wr")
    image: ImageInfo
    bps_max: int | None = member("bps_max", default=None)
    bps_rd_max: int | None = member("bps_rd_max", default=None)
    bps_wr_max: int | None = member("bps_wr_max", default=None)
    iops_max: int | None = member("iops_max", default=None)
    iops_rd_max: int | None = member("iops_rd_max", default=None)
    iops_wr_max: int | None = member("iops_wr_max", default=None)
    bps_max_length: int | None = member("bps_max_length", default=None)
    bps_rd_max_length: int | None = member("bps_rd_max_length", default=None)
    bps_wr_max_length: int | None = member("bps_wr_max_length", default=None)
    iops_max_length: int | None = member("iops_max_length", default=None)
    iops_rd_max_length: int | None = member("iops_rd_max_length", default=None)
    iops_wr_max_length: int | None = member("iops_wr_max_length", default=None)
    iops_size: int | None = member("iops_size", default=None)
    group: str | None = None
    cache: BlockdevCacheInfo
    write_threshold: int = member("write_threshold")
    dirty_bitmaps: list[BlockDirtyInfo] | None = None


BlockDeviceIoStatus: TypeAlias = Literal["ok", "failed", "nospace"]
"""Whether a device has run into I/O errors (QMP reference, "BlockDeviceIoStatus")."""


class BlockDirtyInfo(Struct):
    """One dirty bitmap (QMP reference, "BlockDirtyInfo")."""

    name: str | None = None
    count: int
    granularity: int
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool | None = None


Qcow2BitmapInfoFlags: TypeAlias = Literal["in-use", "auto"]
"""QMP reference, "Qcow2BitmapInfoFlags"."""


class Qcow2BitmapInfo(Struct):
    """One bitmap stored in a qcow2 image (QMP reference, "Qcow2BitmapInfo")."""

    name: str
    granularity: int
    flags: list[Qcow2BitmapInfoFlags]


class BlockInfo(Struct):
    """One device, as query-block shows it (QMP reference, "BlockInfo")."""

    device: str
    qdev: str | None = None
    type: str
    removable: bool
    locked: bool
    inserted: BlockDeviceInfo | None = None
    tray_open: bool | None = member("tray_open", default=None)
    io_status: BlockDeviceIoStatus | None = None


class BlockMeasureInfo(Struct):
    """How large an image would get (QMP reference, "BlockMeasureInfo")."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None


COMMANDS: Final = commands(
    __name__,
    command("query-block", returns="list[BlockInfo]"),
)
"""The commands of this module."""
