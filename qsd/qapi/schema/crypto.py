# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encryption, secrets and TLS credentials (QMP reference, "Cryptography")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from qsd.qapi.model import DEPRECATED, Struct, Union, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import Int32


QCryptoTLSCredsEndpoint: TypeAlias = Literal["client", "server"]
"""Which end of a TLS connection the credentials are for (QMP reference)."""


QCryptoSecretFormat: TypeAlias = Literal["raw", "base64"]
"""How a secret's data is spelt (QMP reference, "QCryptoSecretFormat")."""

QCryptoHashAlgorithm: TypeAlias = Literal[
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "ripemd160",
]
"""QMP reference, "QCryptoHashAlgorithm"."""

QCryptoCipherAlgorithm: TypeAlias = Literal[
    "aes-128",
    "aes-192",
    "aes-256",
    "des",
    "3des",
    "cast5-128",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "twofish-128",
    "twofish-192",
    "twofish-256",
]
"""QMP reference, "QCryptoCipherAlgorithm"."""


QCryptoCipherMode: TypeAlias = Literal["ecb", "cbc", "xts", "ctr"]
"""QMP reference, "QCryptoCipherMode"."""


QCryptoIVGenAlgorithm: TypeAlias = Literal["plain", "plain64", "essiv"]
"""QMP reference, "QCryptoIVGenAlgorithm"."""


QCryptoBlockFormat: TypeAlias = Literal["qcow", "luks"]
"""The encryption formats of images (QMP reference, "QCryptoBlockFormat")."""


class QCryptoBlockOptionsBase(Struct):
    """What all encryption options begin with (QMP reference, "QCryptoBlockOptionsBase")."""

    format: QCryptoBlockFormat


class QCryptoBlockOptionsQCow(Struct):
    """How to open AES-CBC encryption of old qcow images (QMP reference)."""

    key_secret: str | None = None


class QCryptoBlockOptionsLUKS(Struct):
    """How to open LUKS (QMP reference, "QCryptoBlockOptionsLUKS")."""

    key_secret: str | None = None


class QCryptoBlockCreateOptionsLUKS(QCryptoBlockOptionsLUKS):
    """How to create LUKS (QMP reference, "QCryptoBlockCreateOptionsLUKS")."""

    cipher_alg: QCryptoCipherAlgorithm | None = None
    cipher_mode: QCryptoCipherMode | None = None
    ivgen_alg: QCryptoIVGenAlgorithm | None = None
    ivgen_hash_alg: QCryptoHashAlgorithm | None = None
    hash_alg: QCryptoHashAlgorithm | None = None
    iter_time: int | None = None


class QCryptoBlockOpenOptions(Union, QCryptoBlockOptionsBase):
    """How to open an encrypted image (QMP reference, "QCryptoBlockOpenOptions")."""

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "qcow": "QCryptoBlockOptionsQCow",
        "luks": "QCryptoBlockOptionsLUKS",
    }


class QCryptoBlockCreateOptions(Union, QCryptoBlockOptionsBase):
    """How to create an encrypted image (QMP reference, "QCryptoBlockCreateOptions")."""

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "qcow": "QCryptoBlockOptionsQCow",
        "luks": "QCryptoBlockCreateOptionsLUKS",
    }


class QCryptoBlockInfoBase(Struct):
    """QMP reference, "QCryptoBlockInfoBase"."""

    format: QCryptoBlockFormat


class QCryptoBlockInfoLUKSSlot(Struct):
    """One key slot (QMP reference, "QCryptoBlockInfoLUKSSlot")."""

    active: bool
    iters: int | None = None
    stripes: int | None = None
    key_offset: int


class QCryptoBlockInfoLUKS(Struct):
    """What a LUKS header says (QMP reference, "QCryptoBlockInfoLUKS")."""

    cipher_alg: QCryptoCipherAlgorithm
    cipher_mode: QCryptoCipherMode
    ivgen_alg: QCryptoIVGenAlgorithm
    ivgen_hash_alg: QCryptoHashAlgorithm | None = None
    hash_alg: QCryptoHashAlgorithm
    payload_offset: int
    master_key_iters: int
    uuid: str
    slots: list[QCryptoBlockInfoLUKSSlot]


class QCryptoBlockInfo(Union, QCryptoBlockInfoBase):
    """QMP reference, "QCryptoBlockInfo"."""

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "luks": "QCryptoBlockInfoLUKS",
    }


QCryptoBlockLUKSKeyslotState: TypeAlias = Literal["active", "inactive"]
"""QMP reference, "QCryptoBlockLUKSKeyslotState"."""


class QCryptoBlockAmendOptionsLUKS(Struct):
    """How to change key slots (QMP reference, "QCryptoBlockAmendOptionsLUKS")."""

    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | None = None
    old_secret: str | None = None
    keyslot: int | None = None
    iter_time: int | None = None
    secret: str | None = None


class QCryptoBlockAmendOptions(Union, QCryptoBlockOptionsBase):
    """QMP reference, "QCryptoBlockAmendOptions"."""

    TAG: ClassVar[str] = "format"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "luks": "QCryptoBlockAmendOptionsLUKS",
    }


class SecretCommonProperties(Struct):
    """What all kinds of secrets share (QMP reference, "SecretCommonProperties")."""

    loaded: bool | None = member(default=None, features=DEPRECATED)
    format: QCryptoSecretFormat | None = None
    keyid: str | None = None
    iv: str | None = None


class SecretProperties(SecretCommonProperties):
    """A secret given inline or in a file (QMP reference, "SecretProperties")."""

    data: str | None = None
    file: str | None = None

    def __repr__(self) -> str:
        # The one struct whose repr would put a secret into a log or a traceback.
        given = "" if self.data is None else "data=..."
        return f"{type(self).__name__}({given})"


class SecretKeyringProperties(SecretCommonProperties):
    """A secret in the kernel's keyring (QMP reference, "SecretKeyringProperties")."""

    serial: Int32


class TlsCredsProperties(Struct):
    """What all TLS credentials share (QMP reference, "TlsCredsProperties")."""

    verify_peer: bool | None = None
    dir: str | None = None
    endpoint: QCryptoTLSCredsEndpoint | None = None
    priority: str | None = None


class TlsCredsAnonProperties(TlsCredsProperties):
    """QMP reference, "TlsCredsAnonProperties"."""

    loaded: bool | None = member(default=None, features=DEPRECATED)


class TlsCredsPskProperties(TlsCredsProperties):
    """QMP reference, "TlsCredsPskProperties"."""

    loaded: bool | None = member(default=None, features=DEPRECATED)
    username: str | None = None


class TlsCredsX509Properties(TlsCredsProperties):
    """QMP reference, "TlsCredsX509Properties"."""

    loaded: bool | None = member(default=None, features=DEPRECATED)
    sanity_check: bool | None = None
    passwordid: str | None = None


QCryptoAkCipherAlgorithm: TypeAlias = Literal["rsa"]
"""QMP reference, "QCryptoAkCipherAlgorithm"."""


QCryptoAkCipherKeyType: TypeAlias = Literal["public", "private"]
"""QMP reference, "QCryptoAkCipherKeyType"."""


QCryptoRSAPaddingAlgorithm: TypeAlias = Literal["raw", "pkcs1"]
"""QMP reference, "QCryptoRSAPaddingAlgorithm"."""


class QCryptoAkCipherOptionsRSA(Struct):
    """QMP reference, "QCryptoAkCipherOptionsRSA"."""

    hash_alg: QCryptoHashAlgorithm
    padding_alg: QCryptoRSAPaddingAlgorithm


class QCryptoAkCipherOptions(Union):
    """QMP reference, "QCryptoAkCipherOptions"."""

    alg: QCryptoAkCipherAlgorithm

    TAG: ClassVar[str] = "alg"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "rsa": "QCryptoAkCipherOptionsRSA",
    }
