# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""BlockdevOptions, the options of formats and filters, and references to nodes.

QMP reference, "BlockdevOptions".  A node's options contain those of its children, so everything
that refers to a node stands in this module with the union itself; the protocol drivers, which do
not, have theirs in ``block_protocols``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import Struct, Union, command, commands, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import Int32, NullType, UInt32, UInt64
    from qsd.qapi.schema.block_bitmap import BlockDirtyBitmap
    from qsd.qapi.schema.block_graph import BlockPermission


BlockdevDiscardOptions: TypeAlias = Literal["ignore", "unmap"]
"""Whether discards reach the image (QMP reference, "BlockdevDiscardOptions")."""


BlockdevDetectZeroesOptions: TypeAlias = Literal["off", "on", "unmap"]
"""Whether written zeroes are turned into zero ranges (QMP reference)."""


class BlockdevCacheOptions(Struct):
    """How the cache of the host is used (QMP reference, "BlockdevCacheOptions")."""

    direct: bool | None = None
    no_flush: bool | None = None


BlockdevDriver: TypeAlias = Literal[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "snapshot-access",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
]
"""All block drivers (QMP reference, "BlockdevDriver")."""


class BlockdevOptionsGenericFormat(Struct):
    """A format over one node (QMP reference, "BlockdevOptionsGenericFormat")."""

    file: BlockdevRef


class BlockdevOptionsLUKS(BlockdevOptionsGenericFormat):
    """LUKS encryption over one node (QMP reference, "BlockdevOptionsLUKS")."""

    key_secret: str | None = None


class BlockdevOptionsGenericCOWFormat(BlockdevOptionsGenericFormat):
    """A format with a backing file (QMP reference, "BlockdevOptionsGenericCOWFormat")."""

    backing: BlockdevRefOrNull | None = None


Qcow2OverlapCheckMode: TypeAlias = Literal["none", "constant", "cached", "all"]
"""How much is checked before a write to a qcow2 image (QMP reference, "Qcow2OverlapCheckMode")."""


class Qcow2OverlapCheckFlags(Struct):
    """What is checked before a write, one by one (QMP reference, "Qcow2OverlapCheckFlags")."""

    template: Qcow2OverlapCheckMode | None = None
    main_header: bool | None = None
    active_l1: bool | None = None
    active_l2: bool | None = None
    refcount_table: bool | None = None
    refcount_block: bool | None = None
    snapshot_table: bool | None = None
    inactive_l1: bool | None = None
    inactive_l2: bool | None = None
    bitmap_directory: bool | None = None


Qcow2OverlapChecks: TypeAlias = "Qcow2OverlapCheckFlags | Qcow2OverlapCheckMode"
"""A preset or single checks (QMP reference, "Qcow2OverlapChecks")."""


BlockdevQcowEncryptionFormat: TypeAlias = Literal["aes"]
"""QMP reference, "BlockdevQcowEncryptionFormat"."""


class BlockdevQcowEncryption(Union):
    """QMP reference, "BlockdevQcowEncryption"."""

    format: BlockdevQcowEncryptionFormat

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "aes": "QCryptoBlockOptionsQCow",
    }


class BlockdevOptionsQcow(BlockdevOptionsGenericCOWFormat):
    """A qcow image, version 1 (QMP reference, "BlockdevOptionsQcow")."""

    encrypt: BlockdevQcowEncryption | None = None


BlockdevQcow2EncryptionFormat: TypeAlias = Literal["aes", "luks"]
"""QMP reference, "BlockdevQcow2EncryptionFormat"."""


class BlockdevQcow2Encryption(Union):
    """QMP reference, "BlockdevQcow2Encryption"."""

    format: BlockdevQcow2EncryptionFormat

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "aes": "QCryptoBlockOptionsQCow",
        "luks": "QCryptoBlockOptionsLUKS",
    }


class BlockdevOptionsPreallocate(BlockdevOptionsGenericFormat):
    """A filter that lets a file grow in large steps (QMP reference)."""

    prealloc_align: int | None = None
    prealloc_size: int | None = None


class BlockdevOptionsQcow2(BlockdevOptionsGenericCOWFormat):
    """A qcow2 image (QMP reference, "BlockdevOptionsQcow2")."""

    lazy_refcounts: bool | None = None
    pass_discard_request: bool | None = None
    pass_discard_snapshot: bool | None = None
    pass_discard_other: bool | None = None
    overlap_check: Qcow2OverlapChecks | None = None
    cache_size: int | None = None
    l2_cache_size: int | None = None
    l2_cache_entry_size: int | None = None
    refcount_cache_size: int | None = None
    cache_clean_interval: int | None = None
    encrypt: BlockdevQcow2Encryption | None = None
    data_file: BlockdevRef | None = None


BlkdebugEvent: TypeAlias = Literal[
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
]
"""Points in drivers at which blkdebug can act (QMP reference, "BlkdebugEvent")."""

BlkdebugIOType: TypeAlias = Literal[
    "read",
    "write",
    "write-zeroes",
    "discard",
    "flush",
    "block-status",
]
"""Requests that blkdebug can make fail (QMP reference, "BlkdebugIOType")."""


class BlkdebugInjectErrorOptions(Struct):
    """A request to fail (QMP reference, "BlkdebugInjectErrorOptions")."""

    event: BlkdebugEvent
    state: int | None = None
    iotype: BlkdebugIOType | None = None
    errno: int | None = None
    sector: int | None = None
    once: bool | None = None
    immediately: bool | None = None


class BlkdebugSetStateOptions(Struct):
    """An event that changes the state (QMP reference, "BlkdebugSetStateOptions")."""

    event: BlkdebugEvent
    state: int | None = None
    new_state: int = member("new_state")


class BlockdevOptionsBlkdebug(Struct):
    """A filter that makes chosen requests fail (QMP reference, "BlockdevOptionsBlkdebug")."""

    image: BlockdevRef
    config: str | None = None
    align: int | None = None
    max_transfer: Int32 | None = None
    opt_write_zero: Int32 | None = None
    max_write_zero: Int32 | None = None
    opt_discard: Int32 | None = None
    max_discard: Int32 | None = None
    inject_error: list[BlkdebugInjectErrorOptions] | None = None
    set_state: list[BlkdebugSetStateOptions] | None = None
    take_child_perms: list[BlockPermission] | None = None
    unshare_child_perms: list[BlockPermission] | None = None


class BlockdevOptionsBlklogwrites(Struct):
    """A filter that logs writes (QMP reference, "BlockdevOptionsBlklogwrites")."""

    file: BlockdevRef
    log: BlockdevRef
    log_sector_size: UInt32 | None = None
    log_append: bool | None = None
    log_super_update_interval: UInt64 | None = None


class BlockdevOptionsBlkverify(Struct):
    """A filter that compares two nodes (QMP reference, "BlockdevOptionsBlkverify")."""

    test: BlockdevRef
    raw: BlockdevRef


class BlockdevOptionsBlkreplay(Struct):
    """A filter for record and replay (QMP reference, "BlockdevOptionsBlkreplay")."""

    image: BlockdevRef


QuorumReadPattern: TypeAlias = Literal["quorum", "fifo"]
"""Which children a quorum reads (QMP reference, "QuorumReadPattern")."""


class BlockdevOptionsQuorum(Struct):
    """Several copies of the same data (QMP reference, "BlockdevOptionsQuorum")."""

    blkverify: bool | None = None
    children: list[BlockdevRef]
    vote_threshold: int
    rewrite_corrupted: bool | None = None
    read_pattern: QuorumReadPattern | None = None


ReplicationMode: TypeAlias = Literal["primary", "secondary"]
"""The side of a replication (QMP reference, "ReplicationMode")."""


class BlockdevOptionsReplication(BlockdevOptionsGenericFormat):
    """A filter for fault-tolerant guests (QMP reference, "BlockdevOptionsReplication")."""

    mode: ReplicationMode
    top_id: str | None = None


class BlockdevOptionsRaw(BlockdevOptionsGenericFormat):
    """An image without a format, or a window into a node (QMP reference, "BlockdevOptionsRaw")."""

    offset: int | None = None
    size: int | None = None


class BlockdevOptionsThrottle(Struct):
    """A filter that delays requests (QMP reference, "BlockdevOptionsThrottle")."""

    throttle_group: str
    file: BlockdevRef


class BlockdevOptionsCor(BlockdevOptionsGenericFormat):
    """A filter that copies what is read into the top image (QMP reference)."""

    bottom: str | None = None


OnCbwError: TypeAlias = Literal["break-guest-write", "break-snapshot"]
"""What gives way when copying before a write fails (QMP reference, "OnCbwError")."""


class BlockdevOptionsCbw(BlockdevOptionsGenericFormat):
    """A filter that saves old data before it is overwritten (QMP reference)."""

    target: BlockdevRef
    bitmap: BlockDirtyBitmap | None = None
    on_cbw_error: OnCbwError | None = None
    cbw_timeout: UInt32 | None = None


class BlockdevOptions(Union):
    """A node: its driver and the options (QMP reference, "BlockdevOptions")."""

    driver: BlockdevDriver
    node_name: str | None = None
    discard: BlockdevDiscardOptions | None = None
    cache: BlockdevCacheOptions | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    detect_zeroes: BlockdevDetectZeroesOptions | None = None

    TAG: ClassVar[str] = "driver"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "blkdebug": "BlockdevOptionsBlkdebug",
        "blklogwrites": "BlockdevOptionsBlklogwrites",
        "blkverify": "BlockdevOptionsBlkverify",
        "blkreplay": "BlockdevOptionsBlkreplay",
        "bochs": "BlockdevOptionsGenericFormat",
        "cloop": "BlockdevOptionsGenericFormat",
        "compress": "BlockdevOptionsGenericFormat",
        "copy-before-write": "BlockdevOptionsCbw",
        "copy-on-read": "BlockdevOptionsCor",
        "dmg": "BlockdevOptionsGenericFormat",
        "file": "BlockdevOptionsFile",
        "ftp": "BlockdevOptionsCurlFtp",
        "ftps": "BlockdevOptionsCurlFtps",
        "gluster": "BlockdevOptionsGluster",
        "host_cdrom": "BlockdevOptionsFile",
        "host_device": "BlockdevOptionsFile",
        "http": "BlockdevOptionsCurlHttp",
        "https": "BlockdevOptionsCurlHttps",
        "iscsi": "BlockdevOptionsIscsi",
        "luks": "BlockdevOptionsLUKS",
        "nbd": "BlockdevOptionsNbd",
        "nfs": "BlockdevOptionsNfs",
        "null-aio": "BlockdevOptionsNull",
        "null-co": "BlockdevOptionsNull",
        "nvme": "BlockdevOptionsNVMe",
        "parallels": "BlockdevOptionsGenericFormat",
        "preallocate": "BlockdevOptionsPreallocate",
        "qcow2": "BlockdevOptionsQcow2",
        "qcow": "BlockdevOptionsQcow",
        "qed": "BlockdevOptionsGenericCOWFormat",
        "quorum": "BlockdevOptionsQuorum",
        "raw": "BlockdevOptionsRaw",
        "rbd": "BlockdevOptionsRbd",
        "replication": "BlockdevOptionsReplication",
        "snapshot-access": "BlockdevOptionsGenericFormat",
        "ssh": "BlockdevOptionsSsh",
        "throttle": "BlockdevOptionsThrottle",
        "vdi": "BlockdevOptionsGenericFormat",
        "vhdx": "BlockdevOptionsGenericFormat",
        "vmdk": "BlockdevOptionsGenericCOWFormat",
        "vpc": "BlockdevOptionsGenericFormat",
        "vvfat": "BlockdevOptionsVVFAT",
    }


BlockdevRef: TypeAlias = "BlockdevOptions | str"
"""A node, defined in place or referred to by name (QMP reference, "BlockdevRef")."""

BlockdevRefOrNull: TypeAlias = "BlockdevOptions | str | NullType"
"""A node, or explicitly none (QMP reference, "BlockdevRefOrNull")."""


class BlockdevReopenArguments(Struct):
    """QMP reference, "blockdev-reopen": the arguments."""

    options: list[BlockdevOptions]


class BlockdevDelArguments(Struct):
    """QMP reference, "blockdev-del": the arguments."""

    node_name: str


COMMANDS: Final = commands(
    __name__,
    command("blockdev-add", "BlockdevOptions"),
    command("blockdev-reopen", "BlockdevReopenArguments"),
    command("blockdev-del", "BlockdevDelArguments"),
)
"""The commands of this module."""
