# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""TLS credentials: what a server or client shows, and whom it believes.

All kinds keep their files in a directory, under names that are fixed::

    tls-creds-x509   ca-cert.pem  ca-crl.pem  server-cert.pem  server-key.pem  client-cert.pem
                     client-key.pem  dh-params.pem
    tls-creds-psk    keys.psk     dh-params.pem
    tls-creds-anon   dh-params.pem

Files are checked, and the messages are given, when the object is made.  A TLS context is made of
them at the same time, so what happens to the files later has no effect.  A priority string is
looked at for each connection, as the original does.

QMP reference: "TlsCredsX509Properties", "TlsCredsPskProperties", "TlsCredsAnonProperties".
"""

from __future__ import annotations

import binascii
import os
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.errors import QmpError, describe, describe_path_error
from qsd.objects.base import Property, UserCreatable, attribute

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

    from qsd.crypto.x509 import Revoked
    from qsd.net.tls import TlsSession, TlsSocket
    from qsd.objects.base import Surroundings
    from qsd.objects.tree import ObjectTree

DEFAULT_PRIORITY: Final = "NORMAL"
DEFAULT_USER: Final = "qemu"
#: Bytes; GnuTLS takes no shorter ones.
_SHORTEST_KEY: Final = 4
#: Bytes; longest file of certificates or keys that is read.
_MAX_FILE: Final = 16 << 20


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
    #: Cipher suites in OpenSSL's spelling, where the kind of credentials needs special ones.
    CIPHERS: ClassVar[str | None] = None
    #: How a message begins that refuses the priority string.
    PRIORITY_FAILURE: ClassVar[str] = "Unable to set TLS session priority"
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

    @property
    def is_server(self) -> bool:
        """Whether these are a server's credentials."""
        return self.endpoint == "server"

    def expect(self, endpoint: str) -> None:
        """Refuse credentials for the other side.

        Raises:
            QmpError: They are.
        """
        if self.endpoint != endpoint:
            raise QmpError(f"Expected TLS credentials for a {endpoint} endpoint")

    def context(self) -> ssl.SSLContext:
        """Make a context for new connections.

        Raises:
            QmpError: The object cannot be used for connections.
        """
        raise QmpError(f"TLS credentials of type '{self.type_name}' cannot be used for sessions")

    def session(
        self,
        *,
        hostname: str | None = None,
        check: Callable[[TlsSession], None] | None = None,
    ) -> TlsSession:
        """Begin a connection.

        Args:
            hostname: For clients, whom the server's certificate must name.
            check: See :class:`~qsd.net.tls.TlsSession`.

        Raises:
            QmpError: The priority string is no good, or the host name is missing.
        """
        from qsd.net.tls import TlsSession
        from qsd.net.tls_priority import apply_priority

        context = self.context()
        priority = DEFAULT_PRIORITY if self.priority is None else self.priority
        apply_priority(context, priority, ciphers=self.CIPHERS, what=self.PRIORITY_FAILURE)
        return TlsSession(
            context, server_side=self.is_server, hostname=self.peer_hostname(hostname), check=check
        )

    def peer_hostname(self, hostname: str | None) -> str | None:
        """Return the name that the handshake is to check, None for none."""
        del hostname
        return None

    def connector(self, hostname: str | None) -> Callable[[socket.socket], Awaitable[TlsSocket]]:
        """Return a function that starts TLS on a client's socket."""

        async def start(sock: socket.socket) -> TlsSocket:
            from qsd.net.tls import TlsSocket

            wrapped = TlsSocket(sock, self.session(hostname=hostname))
            await wrapped.handshake()
            return wrapped

        return start

    # Files

    def file_path(self, name: str, *, required: bool) -> str | None:
        """Return the path of a file of the directory, None if it is not there and need not be.

        Raises:
            QmpError: It is needed and cannot be reached.
        """
        path = f"{self.dir}/{name}"
        try:
            os.stat(path)
        except (OSError, ValueError) as exc:
            if not required and isinstance(exc, FileNotFoundError):
                return None
            reason = describe_path_error(exc)
            raise QmpError(f"Unable to access credentials {path}: {reason}") from None
        return path

    def load_dh_params(self, context: ssl.SSLContext) -> None:
        """Load the Diffie-Hellman parameters, if there are any.

        Raises:
            QmpError: They are damaged.
        """
        if self.dir is None or not self.is_server:
            return
        path = self.file_path("dh-params.pem", required=False)
        if path is None:
            return
        try:
            context.load_dh_params(path)
        except OSError:  # ssl.SSLError is one too
            from qsd.net.tls_verify import pem_fault

            data = _read(path)
            # A file without any parameters is told from a damaged one everywhere but here.
            fault = pem_fault(data) if b"-----BEGIN " in data else "Base64 unexpected header error."
            raise QmpError(f"Unable to load DH parameters from {path}: {fault}") from None


class TlsCredsAnon(TlsCreds):
    """Credentials without certificates: encryption, but nobody knows with whom."""

    TYPE = "tls-creds-anon"
    CIPHERS = "aNULL:@SECLEVEL=0"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (Property("loaded", "bool", _is_loaded),)

    async def complete(self) -> None:
        """Check the parameters."""
        self.context()

    def context(self) -> ssl.SSLContext:
        """Make a context: anonymous key exchange exists up to TLS 1.2 only."""
        import ssl

        context = _bare_context(self)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if self.is_server:
            from qsd.net.tls_dh import load_default_params

            load_default_params(context)
        self.load_dh_params(context)
        return context


def _bare_context(creds: TlsCreds) -> ssl.SSLContext:
    """Make a context without certificates."""
    import ssl

    if creds.is_server:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsCredsPsk(TlsCreds):
    """Pre-shared keys.

    Attributes:
        username: Whose key a client uses, or None for the usual one.
    """

    TYPE = "tls-creds-psk"
    CIPHERS = "ECDHEPSK:DHEPSK:PSK:@SECLEVEL=1"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("username", "string"),
        Property("loaded", "bool", _is_loaded),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.username: str | None = None
        self._keys = ""
        # Contexts call back into Python: what they call must not be collected before them.
        self._context: ssl.SSLContext | None = None
        self._kept: object = None

    async def complete(self) -> None:
        """Check that there are keys.

        Raises:
            QmpError: There is no directory, no file, or not the key of the user.
        """
        if self.dir is None:
            raise QmpError("Missing 'dir' property value")
        if self.is_server and self.username is not None:
            raise QmpError("username should not be set when endpoint=server")
        path = self.file_path("keys.psk", required=True)
        assert path is not None
        self._keys = path
        if not self.is_server:
            self._check_key(DEFAULT_USER if self.username is None else self.username, path)
        self.load_dh_params(_bare_context(self))

    def _check_key(self, user: str, path: str) -> None:
        """Look whether a client has a key.

        Raises:
            QmpError: It has none that can be used.
        """
        if os.path.isdir(path):
            reason = f"Error reading file \u201c{path}\u201d: Is a directory"
            raise QmpError(f"Cannot read PSK file {path}: {reason}")
        digits = self._digits_of(user.encode("utf-8", "surrogateescape")) if user else None
        if digits is None:
            raise QmpError(f"Username {user} not found in PSK file {path}")
        try:
            key = binascii.unhexlify(digits)
        except binascii.Error:
            raise QmpError("Cannot set PSK client credentials: Error in parsing.") from None
        if len(key) < _SHORTEST_KEY:
            raise QmpError("Cannot set PSK client credentials: The request is invalid.")

    async def finalize(self) -> None:
        """Let the context go, as soon as no connection uses it."""
        self._context = None

    def find_key(self, user: bytes) -> bytes | None:
        """Return the key of a user; the file is read each time, so that new users are known."""
        try:
            return binascii.unhexlify(self._digits_of(user) or b"") or None
        except binascii.Error:
            return None

    def _digits_of(self, user: bytes) -> bytes | None:
        """Return what the file says behind the name of a user."""
        try:
            with open(self._keys, "rb") as handle:
                content = handle.read(_MAX_FILE)
        except OSError:
            return None
        for line in content.splitlines():
            name, colon, digits = line.partition(b":")
            if colon and name == user and not line.startswith(b"#"):
                return digits.strip()
        return None

    def context(self) -> ssl.SSLContext:
        """Return the one context; it is shared by all connections."""
        import ssl

        from qsd.net.tls_psk import serve_keys, use_key

        if self._context is None:
            context = _bare_context(self)
            context.set_ciphers(self.CIPHERS)
            if self.is_server:
                self._kept = serve_keys(context, self.find_key)
            else:
                user = (self.username or DEFAULT_USER).encode("utf-8", "surrogateescape")
                self._kept = use_key(context, user, self.find_key(user) or b"")
            self.load_dh_params(context)
            self._context = context
        self._context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        return self._context


class TlsCredsX509(TlsCreds):
    """Certificates.

    Attributes:
        sanity_check: Whether the certificates are checked before use.
        passwordid: The secret that decrypts the private key, or None.
    """

    TYPE = "tls-creds-x509"
    PRIORITY_FAILURE = "Cannot set default TLS session priority"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (
        attribute("sanity-check", "bool"),
        attribute("passwordid", "string"),
        Property("loaded", "bool", _is_loaded),
    )

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.sanity_check = True
        self.passwordid: str | None = None
        self._context: ssl.SSLContext | None = None
        self._revoked: Revoked | None = None

    async def complete(self) -> None:
        """Load and check all files.

        Raises:
            QmpError: One is missing or not fit.
        """
        if self.dir is None:
            raise QmpError("Missing 'dir' property value")
        role = self.endpoint
        authority = self.file_path("ca-cert.pem", required=True)
        assert authority is not None
        revoked = self.file_path("ca-crl.pem", required=False) if self.is_server else None
        own = self.file_path(f"{role}-cert.pem", required=self.is_server)
        key = self.file_path(f"{role}-key.pem", required=self.is_server)
        if self.sanity_check:
            _check_files(role, authority, own)
        self._context = self._load(authority, revoked, own, key)

    def _load(
        self, authority: str, revoked: str | None, own: str | None, key: str | None
    ) -> ssl.SSLContext:
        import ssl

        from qsd.net.tls_priority import LEVEL
        from qsd.net.tls_verify import allow_any_purpose

        context = ssl.SSLContext(
            ssl.PROTOCOL_TLS_SERVER if self.is_server else ssl.PROTOCOL_TLS_CLIENT
        )
        context.set_ciphers(f"DEFAULT:{LEVEL}")  # before certificates, whose keys it is about
        allow_any_purpose(context)
        _load_authorities(context, authority)
        if own is not None and key is not None:
            self._load_own(context, own, key)
        if revoked is not None:
            self._revoked = _load_revoked(revoked)
        # Any certificate of the file is trusted, also one that somebody else has issued.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.load_dh_params(context)
        return context

    def _load_own(self, context: ssl.SSLContext, own: str, key: str) -> None:
        import ssl

        # Without a password, OpenSSL would ask for one at the terminal.
        password = b""
        if self.passwordid is not None:
            from qsd.objects.secret import SecretCommon

            password = self.tree.resolve(self.passwordid, SecretCommon).value()
        try:
            context.load_cert_chain(own, key, password)
        except ssl.SSLError as exc:
            reason = exc.reason or ""
            if "MISMATCH" in reason:
                text = "The certificate and the given key do not match."
            elif "DECRYPT" in reason or "PASSWORD" in reason:
                text = "Decryption has failed."
            else:
                text = _why_not(own, key)
            raise QmpError(f"Cannot load certificate '{own}' & key '{key}': {text}") from None
        except OSError as exc:
            raise QmpError(
                f"Cannot load certificate '{own}' & key '{key}': {describe(exc)}"
            ) from None

    def context(self) -> ssl.SSLContext:
        """Return the context, with `verify-peer` as it is now."""
        import ssl

        context = self._context
        if context is None:
            raise QmpError("TLS credentials are not loaded")
        # Whatever another priority string has left.
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        context.check_hostname = not self.is_server and self.verify_peer
        context.verify_mode = ssl.CERT_REQUIRED if self.verify_peer else ssl.CERT_NONE
        return context

    def peer_hostname(self, hostname: str | None) -> str | None:
        """Return the name that the server must show."""
        if self.is_server:
            return None
        if hostname is None and self.verify_peer:
            raise QmpError("No hostname for certificate validation")
        return hostname if self.verify_peer else hostname or None

    def identify(self, session: TlsSession) -> str | None:
        """Return the distinguished name of a client after the handshake, as far as it is known.

        Raises:
            QmpError: It must show a certificate, and that one is revoked or names nobody.
        """
        name = session.peer_name()
        if self.verify_peer:
            if self._revoked is not None and (shown := session.peer_certificate()) is not None:
                self._revoked.check(shown)
            if not name:
                raise QmpError(
                    "Cannot get client distinguished name: The requested data were not available."
                )
        return name

    async def finalize(self) -> None:
        """Forget the key."""
        self._context = None


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    """Trust the certificates of a file; there may be none."""
    try:
        context.load_verify_locations(path)
    except OSError:
        data = _read(path)
        if b"-----BEGIN " in data:
            from qsd.net.tls_verify import pem_fault

            raise QmpError(f"Cannot load CA certificate '{path}': {pem_fault(data)}") from None


def _load_revoked(path: str) -> Revoked:
    from qsd.crypto.x509 import load_revoked
    from qsd.net.tls_verify import pem_fault

    data = _read(path)
    try:
        return load_revoked(data)
    except ValueError:
        raise QmpError(f"Cannot load CRL '{path}': {pem_fault(data)}") from None


def _why_not(own: str, key: str) -> str:
    """Tell why a pair could not be loaded, where OpenSSL only says that PEM failed."""
    from qsd.crypto.x509 import load_certificates
    from qsd.net.tls_verify import pem_fault

    if not load_certificates(_read(own)):
        return pem_fault(_read(own))
    secret = _read(key)
    if b"ENCRYPTED" in secret:
        return "Decryption has failed."
    if b"-----BEGIN " in secret:
        return pem_fault(secret)
    return "The requested data were not available."


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(_MAX_FILE)
    except OSError:
        return b""


def _check_files(role: str, authority: str, own: str | None) -> None:
    """Check certificates before use.

    Raises:
        QmpError: One is not fit for its purpose.
    """
    from qsd.crypto.x509 import check_authority, check_issued, check_leaf, load_certificates

    chain = []
    if own is not None:
        chain = load_certificates(_read(own))
        if not chain:
            raise QmpError(
                f"Unable to import {role} certificate {own}: Base64 unexpected header error."
            )
    authorities = load_certificates(_read(authority))
    if not authorities:
        raise QmpError(f"Unable to import CA certificate list {authority}")
    if chain:
        check_leaf(chain[0], own or "", role)
    for certificate in authorities:
        check_authority(certificate, authority)
    if chain:
        check_issued(chain[0], authorities, own or "", authority)


class TlsCipherSuites(TlsCreds):
    """A list of cipher suites, which only firmware reads."""

    TYPE = "tls-cipher-suites"

    async def complete(self) -> None:
        """Check that there is a list."""
        if self.priority is None:
            raise QmpError("'priority' property is not set")


# Users


def find_creds(objects: ObjectTree, name: str, endpoint: str) -> TlsCreds:
    """Return the credentials of that name for one side.

    Raises:
        QmpError: There are none, or they are for the other side.
    """
    creds = objects.resolve(name, TlsCreds)
    creds.expect(endpoint)
    return creds


class ServerTls:
    """Lets clients in.

    Attributes:
        creds: What the server shows.
        authz: Id of the object that is asked about clients, looked up for each; None for no one.
    """

    __slots__ = ("_objects", "authz", "creds")

    def __init__(self, objects: ObjectTree, creds: TlsCreds, authz: str | None) -> None:
        self._objects = objects
        self.creds = creds
        self.authz = authz

    def session(self) -> TlsSession:
        """Begin a connection."""
        return self.creds.session(check=self._check)

    async def accept(self, sock: socket.socket) -> TlsSocket:
        """Do the TLS handshake on a non-blocking socket and check who the client is.

        Raises:
            QsdError: With the reason why the client is not let in; the socket stays the caller's.
            OSError: The connection failed.
        """
        from qsd.net.tls import TlsSocket

        wrapped = TlsSocket(sock, self.session())
        await wrapped.handshake()
        return wrapped

    def _check(self, session: TlsSession) -> None:
        """Refuse a client that the authorization object does not allow.

        Only certificates name their owner: other kinds of credentials are not asked about.
        """
        if not isinstance(self.creds, TlsCredsX509):
            return
        name = self.creds.identify(session)
        if self.authz is None:
            return
        from qsd.objects.authz import Authz

        found = self._objects.find(self.authz)
        if found is None:
            raise QmpError(f"Cannot find QAuthZ object ID {self.authz}")
        if not isinstance(found, Authz):
            raise QmpError(f"Object '{self.authz}' is not a QAuthZ subclass")
        if name is None or not found.is_allowed(name):
            raise QmpError(f"TLS x509 authz check for {name} is denied")
