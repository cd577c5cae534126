# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Options of the protocol drivers (QMP reference, "BlockdevOptions").

None of these refers to another node, so none depends on ``block_options``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from qsd.qapi.model import UNSTABLE, Struct, Union, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import UInt32, UInt64
    from qsd.qapi.schema.common import OnOffAuto
    from qsd.qapi.schema.crypto import QCryptoCipherAlgorithm
    from qsd.qapi.schema.sockets import InetSocketAddress, InetSocketAddressBase, SocketAddress


class BlockdevOptionsNull(Struct):
    """A device that throws writes away (QMP reference, "BlockdevOptionsNull")."""

    size: int | None = None
    latency_ns: UInt64 | None = None
    read_zeroes: bool | None = None


class BlockdevOptionsNVMe(Struct):
    """An NVMe controller, driven from user space (QMP reference, "BlockdevOptionsNVMe")."""

    device: str
    namespace: int


class BlockdevOptionsVVFAT(Struct):
    """A directory shown as a FAT disk (QMP reference, "BlockdevOptionsVVFAT")."""

    dir: str
    fat_type: int | None = None
    floppy: bool | None = None
    label: str | None = None
    rw: bool | None = None


class BlockdevOptionsFile(Struct):
    """A file, or a device of the host (QMP reference, "BlockdevOptionsFile")."""

    FEATURES: ClassVar[tuple[str, ...]] = ("dynamic-auto-read-only",)

    filename: str
    pr_manager: str | None = None
    locking: OnOffAuto | None = None
    aio: BlockdevAioOptions | None = None
    aio_max_batch: int | None = None
    drop_cache: bool | None = None
    x_check_cache_dropped: bool | None = member(default=None, features=UNSTABLE)


BlockdevAioOptions: TypeAlias = Literal["threads", "native", "io_uring"]
"""How a file is read and written (QMP reference, "BlockdevAioOptions")."""


SshHostKeyCheckMode: TypeAlias = Literal["none", "hash", "known_hosts"]
"""QMP reference, "SshHostKeyCheckMode"."""


SshHostKeyCheckHashType: TypeAlias = Literal["md5", "sha1", "sha256"]
"""QMP reference, "SshHostKeyCheckHashType"."""


class SshHostKeyHash(Struct):
    """QMP reference, "SshHostKeyHash"."""

    type: SshHostKeyCheckHashType
    hash: str


class SshHostKeyCheck(Union):
    """QMP reference, "SshHostKeyCheck"."""

    mode: SshHostKeyCheckMode

    TAG: ClassVar[str] = "mode"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "hash": "SshHostKeyHash",
    }


class BlockdevOptionsSsh(Struct):
    """A file on a host reached by SSH (QMP reference, "BlockdevOptionsSsh")."""

    server: InetSocketAddress
    path: str
    user: str | None = None
    host_key_check: SshHostKeyCheck | None = None


class BlockdevOptionsGluster(Struct):
    """A file on a Gluster volume (QMP reference, "BlockdevOptionsGluster")."""

    volume: str
    path: str
    server: list[SocketAddress]
    debug: int | None = None
    logfile: str | None = None


IscsiTransport: TypeAlias = Literal["tcp", "iser"]
"""QMP reference, "IscsiTransport"."""


IscsiHeaderDigest: TypeAlias = Literal["crc32c", "none", "crc32c-none", "none-crc32c"]
"""QMP reference, "IscsiHeaderDigest"."""


class BlockdevOptionsIscsi(Struct):
    """A LUN of an iSCSI target (QMP reference, "BlockdevOptionsIscsi")."""

    transport: IscsiTransport
    portal: str
    target: str
    lun: int | None = None
    user: str | None = None
    password_secret: str | None = None
    initiator_name: str | None = None
    header_digest: IscsiHeaderDigest | None = None
    timeout: int | None = None


RbdAuthMode: TypeAlias = Literal["cephx", "none"]
"""QMP reference, "RbdAuthMode"."""


RbdImageEncryptionFormat: TypeAlias = Literal["luks", "luks2"]
"""QMP reference, "RbdImageEncryptionFormat"."""


class RbdEncryptionOptionsLUKSBase(Struct):
    """QMP reference, "RbdEncryptionOptionsLUKSBase"."""

    key_secret: str


class RbdEncryptionCreateOptionsLUKSBase(RbdEncryptionOptionsLUKSBase):
    """QMP reference, "RbdEncryptionCreateOptionsLUKSBase"."""

    cipher_alg: QCryptoCipherAlgorithm | None = None


class RbdEncryptionOptionsLUKS(RbdEncryptionOptionsLUKSBase):
    """QMP reference, "RbdEncryptionOptionsLUKS"."""


class RbdEncryptionOptionsLUKS2(RbdEncryptionOptionsLUKSBase):
    """QMP reference, "RbdEncryptionOptionsLUKS2"."""


class RbdEncryptionCreateOptionsLUKS(RbdEncryptionCreateOptionsLUKSBase):
    """QMP reference, "RbdEncryptionCreateOptionsLUKS"."""


class RbdEncryptionCreateOptionsLUKS2(RbdEncryptionCreateOptionsLUKSBase):
    """QMP reference, "RbdEncryptionCreateOptionsLUKS2"."""


class RbdEncryptionOptions(Union):
    """QMP reference, "RbdEncryptionOptions"."""

    format: RbdImageEncryptionFormat

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "luks": "RbdEncryptionOptionsLUKS",
        "luks2": "RbdEncryptionOptionsLUKS2",
    }


class RbdEncryptionCreateOptions(Union):
    """QMP reference, "RbdEncryptionCreateOptions"."""

    format: RbdImageEncryptionFormat

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "luks": "RbdEncryptionCreateOptionsLUKS",
        "luks2": "RbdEncryptionCreateOptionsLUKS2",
    }


class BlockdevOptionsRbd(Struct):
    """An image in a Ceph cluster (QMP reference, "BlockdevOptionsRbd")."""

    pool: str
    namespace: str | None = None
    image: str
    conf: str | None = None
    snapshot: str | None = None
    encrypt: RbdEncryptionOptions | None = None
    user: str | None = None
    auth_client_required: list[RbdAuthMode] | None = None
    key_secret: str | None = None
    server: list[InetSocketAddressBase] | None = None


NFSTransport: TypeAlias = Literal["inet"]
"""QMP reference, "NFSTransport"."""


class NFSServer(Struct):
    """QMP reference, "NFSServer"."""

    type: NFSTransport
    host: str


class BlockdevOptionsNfs(Struct):
    """A file on an NFS server (QMP reference, "BlockdevOptionsNfs")."""

    server: NFSServer
    path: str
    user: int | None = None
    group: int | None = None
    tcp_syn_count: int | None = None
    readahead_size: int | None = None
    page_cache_size: int | None = None
    debug: int | None = None


class BlockdevOptionsCurlBase(Struct):
    """What all drivers based on URLs share (QMP reference, "BlockdevOptionsCurlBase")."""

    url: str
    readahead: int | None = None
    timeout: int | None = None
    username: str | None = None
    password_secret: str | None = None
    proxy_username: str | None = None
    proxy_password_secret: str | None = None


class BlockdevOptionsCurlHttp(BlockdevOptionsCurlBase):
    """A file behind an http URL (QMP reference, "BlockdevOptionsCurlHttp")."""

    cookie: str | None = None
    cookie_secret: str | None = None


class BlockdevOptionsCurlHttps(BlockdevOptionsCurlBase):
    """A file behind an https URL (QMP reference, "BlockdevOptionsCurlHttps")."""

    cookie: str | None = None
    sslverify: bool | None = None
    cookie_secret: str | None = None


class BlockdevOptionsCurlFtp(BlockdevOptionsCurlBase):
    """A file behind an ftp URL (QMP reference, "BlockdevOptionsCurlFtp")."""


class BlockdevOptionsCurlFtps(BlockdevOptionsCurlBase):
    """A file behind an ftps URL (QMP reference, "BlockdevOptionsCurlFtps")."""

    sslverify: bool | None = None


class BlockdevOptionsNbd(Struct):
    """An export of an NBD server (QMP reference, "BlockdevOptionsNbd")."""

    server: SocketAddress
    export: str | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    x_dirty_bitmap: str | None = member(default=None, features=UNSTABLE)
    reconnect_delay: UInt32 | None = None
    open_timeout: UInt32 | None = None
