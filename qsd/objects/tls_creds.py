# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""TLS credentials: their properties.

Nothing speaks TLS yet.  So the types are listed with their properties and help, their members are
checked as far as that needs no certificates, and then making one is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qsd.errors import QmpError
from qsd.objects.base import Property, UserCreatable, attribute

if TYPE_CHECKING:
    from qsd.objects.base import Surroundings


def _is_loaded(creds: TlsCreds) -> bool:
    return creds.is_complete


class TlsCreds(UserCreatable):
    """Base of the kinds of credentials.

    Attributes:
        endpoint: "client" or "server".
        dir: The directory that holds the files, or None.
        verify_peer: Whether the peer's credentials are checked.
        priority: The cipher priority string, or None.
    """

    TYPE = "tls-creds"
    NOT_FOUND: ClassVar[str] = "No TLS credentials with id '{}'"
    WRONG_TYPE: ClassVar[str] = "Object with id '{}' is not TLS credentials"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("endpoint", "QCryptoTLSCredsEndpoint"),
        attribute("dir", "string"),
        attribute("verify-peer", "bool"),
        attribute("priority", "string"),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.endpoint = "client"
        self.dir: str | None = None
        self.verify_peer = True
        self.priority: str | None = None

    async def complete(self) -> None:
        """Refuse: there is nothing that could use the object."""
        raise QmpError(f"object type '{self.type_name}' is not supported yet: there is no TLS")


class TlsCredsAnon(TlsCreds):
    """Credentials without certificates."""

    TYPE = "tls-creds-anon"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (Property("loaded", "bool", _is_loaded),)


class TlsCredsPsk(TlsCreds):
    """Pre-shared keys.

    Attributes:
        username: Whose key it is, or None.
    """

    TYPE = "tls-creds-psk"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("username", "string"),
        Property("loaded", "bool", _is_loaded),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.username: str | None = None

    async def complete(self) -> None:
        """Refuse, with the reason that the C daemon would give if it has one."""
        if self.dir is None:
            raise QmpError("Missing 'dir' property value")
        await super().complete()


class TlsCredsX509(TlsCreds):
    """Certificates.

    Attributes:
        sanity_check: Whether the certificates are checked before use.
        passwordid: The secret that decrypts the private key, or None.
    """

    TYPE = "tls-creds-x509"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("sanity-check", "bool"),
        attribute("passwordid", "string"),
        Property("loaded", "bool", _is_loaded),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.sanity_check = True
        self.passwordid: str | None = None

    async def complete(self) -> None:
        """Refuse, with the reason that the C daemon would give if it has one."""
        if self.dir is None:
            raise QmpError("Missing 'dir' property value")
        await super().complete()


class TlsCipherSuites(TlsCreds):
    """A list of cipher suites, which only firmware reads."""

    TYPE = "tls-cipher-suites"

    async def complete(self) -> None:
        """Refuse, with the reason that the C daemon would give if it has one."""
        if self.priority is None:
            raise QmpError("'priority' property is not set")
        await super().complete()
