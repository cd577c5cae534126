# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Creating and amending images (QMP reference, "BlockdevCreateOptions")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import UNSTABLE, Struct, Union, command, commands
from qsd.qapi.schema.crypto import QCryptoBlockAmendOptionsLUKS, QCryptoBlockCreateOptionsLUKS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import Size
    from qsd.qapi.schema.block_options import BlockdevDriver, BlockdevRef
    from qsd.qapi.schema.block_protocols import (
        BlockdevOptionsGluster,
        BlockdevOptionsNfs,
        BlockdevOptionsRbd,
        BlockdevOptionsSsh,
        RbdEncryptionCreateOptions,
    )
    from qsd.qapi.schema.crypto import QCryptoBlockAmendOptions, QCryptoBlockCreateOptions


PreallocMode: TypeAlias = Literal["off", "metadata", "falloc", "full"]
"""How much of a new image is allocated at once (QMP reference, "PreallocMode")."""


class BlockdevCreateOptionsFile(Struct):
    """How to create a file (QMP reference, "BlockdevCreateOptionsFile")."""

    filename: str
    size: Size
    preallocation: PreallocMode | None = None
    nocow: bool | None = None
    extent_size_hint: Size | None = None


class BlockdevCreateOptionsGluster(Struct):
    """QMP reference, "BlockdevCreateOptionsGluster"."""

    location: BlockdevOptionsGluster
    size: Size
    preallocation: PreallocMode | None = None


class BlockdevCreateOptionsLUKS(QCryptoBlockCreateOptionsLUKS):
    """How to create a LUKS image (QMP reference, "BlockdevCreateOptionsLUKS")."""

    file: BlockdevRef
    size: Size
    preallocation: PreallocMode | None = None


class BlockdevCreateOptionsNfs(Struct):
    """QMP reference, "BlockdevCreateOptionsNfs"."""

    location: BlockdevOptionsNfs
    size: Size


class BlockdevCreateOptionsParallels(Struct):
    """How to create a Parallels image (QMP reference, "BlockdevCreateOptionsParallels")."""

    file: BlockdevRef
    size: Size
    cluster_size: Size | None = None


class BlockdevCreateOptionsQcow(Struct):
    """How to create a qcow image, version 1 (QMP reference, "BlockdevCreateOptionsQcow")."""

    file: BlockdevRef
    size: Size
    backing_file: str | None = None
    encrypt: QCryptoBlockCreateOptions | None = None


BlockdevQcow2Version: TypeAlias = Literal["v2", "v3"]
"""The versions of qcow2 (QMP reference, "BlockdevQcow2Version")."""


Qcow2CompressionType: TypeAlias = Literal["zlib", "zstd"]
"""How clusters are compressed (QMP reference, "Qcow2CompressionType")."""


class BlockdevCreateOptionsQcow2(Struct):
    """How to create a qcow2 image (QMP reference, "BlockdevCreateOptionsQcow2")."""

    file: BlockdevRef
    data_file: BlockdevRef | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    size: Size
    version: BlockdevQcow2Version | None = None
    backing_file: str | None = None
    backing_fmt: BlockdevDriver | None = None
    encrypt: QCryptoBlockCreateOptions | None = None
    cluster_size: Size | None = None
    preallocation: PreallocMode | None = None
    lazy_refcounts: bool | None = None
    refcount_bits: int | None = None
    compression_type: Qcow2CompressionType | None = None


class BlockdevCreateOptionsQed(Struct):
    """How to create a QED image (QMP reference, "BlockdevCreateOptionsQed")."""

    file: BlockdevRef
    size: Size
    backing_file: str | None = None
    backing_fmt: BlockdevDriver | None = None
    cluster_size: Size | None = None
    table_size: int | None = None


class BlockdevCreateOptionsRbd(Struct):
    """QMP reference, "BlockdevCreateOptionsRbd"."""

    location: BlockdevOptionsRbd
    size: Size
    cluster_size: Size | None = None
    encrypt: RbdEncryptionCreateOptions | None = None


BlockdevVmdkSubformat: TypeAlias = Literal[
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
]
"""QMP reference, "BlockdevVmdkSubformat"."""


BlockdevVmdkAdapterType: TypeAlias = Literal["ide", "buslogic", "lsilogic", "legacyESX"]
"""QMP reference, "BlockdevVmdkAdapterType"."""


class BlockdevCreateOptionsVmdk(Struct):
    """How to create a VMDK image (QMP reference, "BlockdevCreateOptionsVmdk")."""

    file: BlockdevRef
    size: Size
    extents: list[BlockdevRef] | None = None
    subformat: BlockdevVmdkSubformat | None = None
    backing_file: str | None = None
    adapter_type: BlockdevVmdkAdapterType | None = None
    hwversion: str | None = None
    toolsversion: str | None = None
    zeroed_grain: bool | None = None


class BlockdevCreateOptionsSsh(Struct):
    """QMP reference, "BlockdevCreateOptionsSsh"."""

    location: BlockdevOptionsSsh
    size: Size


class BlockdevCreateOptionsVdi(Struct):
    """How to create a VDI image (QMP reference, "BlockdevCreateOptionsVdi")."""

    file: BlockdevRef
    size: Size
    preallocation: PreallocMode | None = None


BlockdevVhdxSubformat: TypeAlias = Literal["dynamic", "fixed"]
"""QMP reference, "BlockdevVhdxSubformat"."""


class BlockdevCreateOptionsVhdx(Struct):
    """How to create a VHDX image (QMP reference, "BlockdevCreateOptionsVhdx")."""

    file: BlockdevRef
    size: Size
    log_size: Size | None = None
    block_size: Size | None = None
    subformat: BlockdevVhdxSubformat | None = None
    block_state_zero: bool | None = None


BlockdevVpcSubformat: TypeAlias = Literal["dynamic", "fixed"]
"""QMP reference, "BlockdevVpcSubformat"."""


class BlockdevCreateOptionsVpc(Struct):
    """How to create a VPC (VHD) image (QMP reference, "BlockdevCreateOptionsVpc")."""

    file: BlockdevRef
    size: Size
    subformat: BlockdevVpcSubformat | None = None
    force_size: bool | None = None


class BlockdevCreateOptions(Union):
    """What to create, by the driver that does it (QMP reference, "BlockdevCreateOptions")."""

    driver: BlockdevDriver

    TAG: ClassVar[str] = "driver"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "file": "BlockdevCreateOptionsFile",
        "gluster": "BlockdevCreateOptionsGluster",
        "luks": "BlockdevCreateOptionsLUKS",
        "nfs": "BlockdevCreateOptionsNfs",
        "parallels": "BlockdevCreateOptionsParallels",
        "qcow": "BlockdevCreateOptionsQcow",
        "qcow2": "BlockdevCreateOptionsQcow2",
        "qed": "BlockdevCreateOptionsQed",
        "rbd": "BlockdevCreateOptionsRbd",
        "ssh": "BlockdevCreateOptionsSsh",
        "vdi": "BlockdevCreateOptionsVdi",
        "vhdx": "BlockdevCreateOptionsVhdx",
        "vmdk": "BlockdevCreateOptionsVmdk",
        "vpc": "BlockdevCreateOptionsVpc",
    }


class BlockdevCreateArguments(Struct):
    """QMP reference, "blockdev-create": the arguments."""

    job_id: str
    options: BlockdevCreateOptions


class BlockdevAmendOptionsLUKS(QCryptoBlockAmendOptionsLUKS):
    """QMP reference, "BlockdevAmendOptionsLUKS"."""


class BlockdevAmendOptionsQcow2(Struct):
    """QMP reference, "BlockdevAmendOptionsQcow2"."""

    encrypt: QCryptoBlockAmendOptions | None = None


class BlockdevAmendOptions(Union):
    """What to change in an image, by driver (QMP reference, "BlockdevAmendOptions")."""

    driver: BlockdevDriver

    TAG: ClassVar[str] = "driver"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "luks": "BlockdevAmendOptionsLUKS",
        "qcow2": "BlockdevAmendOptionsQcow2",
    }


class XBlockdevAmendArguments(Struct):
    """QMP reference, "x-blockdev-amend": the arguments."""

    job_id: str
    node_name: str
    options: BlockdevAmendOptions
    force: bool | None = None


COMMANDS: Final = commands(
    __name__,
    command("blockdev-create", "BlockdevCreateArguments"),
    command("x-blockdev-amend", "XBlockdevAmendArguments", features=UNSTABLE),
)
"""The commands of this module."""
