# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Secrets: passwords and keys that other objects and drivers refer to by identifier.

The data comes as text or from a file, raw or in base64.  With ``keyid`` it is encrypted with
AES-256-CBC; ``keyid`` names the secret that holds the key, ``iv`` is the initialization vector in
base64 (QMP reference, "SecretProperties").

What a secret holds never appears in a message or a repr.  ``qom-get`` does show the ``data`` that
was given, as the C daemon's does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from qsd.errors import QmpError, describe_path_error
from qsd.objects.base import Property, UserCreatable, attribute
from qsd.util.base64_text import decode_base64

if TYPE_CHECKING:
    from qsd.objects.base import Surroundings

#: How much of a file is read at once, bytes.
_CHUNK_LENGTH = 65536


def _is_loaded(secret: SecretCommon) -> bool:
    return secret.is_loaded


class SecretCommon(UserCreatable):
    """Base of the kinds of secrets.

    Attributes:
        format: "raw" or "base64".
        keyid: The secret that holds the key, or None if the data is not encrypted.
        iv: The initialization vector in base64, or None.
    """

    TYPE = "secret_common"
    NOT_FOUND: ClassVar[str] = "No secret with id '{}'"
    WRONG_TYPE: ClassVar[str] = "Object with id '{}' is not a secret"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("iv", "string"),
        attribute("keyid", "string"),
        Property("loaded", "bool", _is_loaded),
        attribute("format", "QCryptoSecretFormat"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.format = "raw"
        self.keyid: str | None = None
        self.iv: str | None = None
        self._value: bytes | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the secret has a value."""
        return self._value is not None

    def value(self) -> bytes:
        """Return what the secret holds, decoded and decrypted.

        Raises:
            QmpError: It holds nothing yet.
        """
        if self._value is None:
            raise QmpError(f"Secret with id '{self.name}' has no data")
        return self._value

    async def complete(self) -> None:
        """Load the secret.

        Raises:
            QmpError: It cannot be read, decoded or decrypted.
        """
        data = self._load()
        if self.keyid is not None:
            data = self._decrypt(data, self.keyid)
        elif self.format == "base64":
            data = decode_base64(data)
        self._value = data

    async def finalize(self) -> None:
        """Forget the value."""
        self._value = None

    def _load(self) -> bytes:
        """Return the data as it was given, encoded and encrypted."""
        raise QmpError(f"object type '{self.type_name}' is abstract")

    def _decrypt(self, data: bytes, keyid: str) -> bytes:
        """Decode and decrypt the data with the key that another secret holds."""
        from qsd.crypto.cbc import BLOCK_LENGTH, KEY_LENGTH, decrypt_aes_256_cbc

        key = self.tree.resolve(keyid, SecretCommon).value()
        if len(key) != KEY_LENGTH:
            raise QmpError(f"Key should be {KEY_LENGTH} bytes in length")
        if self.iv is None:
            raise QmpError("IV is required to decrypt secret")
        iv = decode_base64(to_bytes(self.iv))
        if len(iv) != BLOCK_LENGTH:
            raise QmpError(f"IV should be {BLOCK_LENGTH} bytes in length not {len(iv)}")
        if self.format == "base64":
            data = decode_base64(data)
        return decrypt_aes_256_cbc(key, iv, data)


class Secret(SecretCommon):
    """A secret that is given as text or as the name of a file.

    Attributes:
        data: The text, or None.
        file: The name, or None.
    """

    TYPE = "secret"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("file", "string"),
        attribute("data", "string"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.data: str | None = None
        self.file: str | None = None

    def _load(self) -> bytes:
        """Return the data as it was given."""
        if self.file is not None:
            if self.data is not None:
                raise QmpError("'file' and 'data' are mutually exclusive")
            return _read_file(self.file)
        if self.data is None:
            raise QmpError("Either 'file' or 'data' must be provided")
        return to_bytes(self.data)


def to_bytes(text: str) -> bytes:
    """Return the bytes that the C daemon has for a string option.

    That is UTF-8, with NUL in two bytes ("modified UTF-8"), and bytes of the command line that are
    not UTF-8 as they came.
    """
    return text.encode("utf-8", "surrogateescape").replace(b"\0", b"\xc0\x80")


def _read_file(name: str) -> bytes:
    """Read a file of a secret.

    Small and local, so it is read inline: the objects that follow on the command line need it.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:
        raise QmpError(
            f"Unable to read {name}: Failed to open file “{name}”: {describe_path_error(exc)}"
        ) from None
    chunks = []
    try:
        while chunk := os.read(fd, _CHUNK_LENGTH):
            chunks.append(chunk)
    except OSError as exc:
        raise QmpError(
            f"Unable to read {name}: Error reading file “{name}”: {describe_path_error(exc)}"
        ) from None
    finally:
        os.close(fd)
    return b"".join(chunks)
