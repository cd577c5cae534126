# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""TLS on non-blocking sockets.

:class:`TlsSession` turns plain bytes into records and back, without a socket.  :class:`TlsSocket`
puts one on a socket and offers what the data planes use of a socket, with two differences that
follow from TLS being a layer of its own:

* Records may wait inside although the descriptor shows nothing.  After a receive that filled the
  whole buffer, and after the handshake, the user must try again without waiting for the descriptor.
* What was accepted for sending is encrypted for good.  While the kernel has not taken all of it,
  ``send`` counts one byte too few, so that the user waits for room and calls again with the rest.

The event loop's own TLS transports are not used: they copy payload more often.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from typing import TYPE_CHECKING, Final, Protocol, cast

from qsd.errors import QmpError, QsdError, describe

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

#: Bytes taken from the kernel at once; several records.
_RECEIVE: Final = 256 << 10
#: Bytes encrypted before the kernel is offered the result.  They are copied twice on their way out
#: of the library, so they should stay in the processor's second cache.
_ENCRYPT: Final = 64 << 10
#: Bytes in a record at most (RFC 8446, "Record Layer").
_RECORD: Final = 16 << 10

#: How distinguished names abbreviate attributes (RFC 4514, "Converting Distinguished Names from
#: ASN.1 to a String", and what GnuTLS adds).
_SHORT_NAMES: Final = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "streetAddress": "street",
    "domainComponent": "DC",
    "userId": "UID",
    "emailAddress": "EMAIL",
    "title": "title",
    "serialNumber": "serialNumber",
    "givenName": "givenName",
    "surname": "surName",
}

#: Characters that a value of a distinguished name may not have unescaped.
_SPECIAL: Final = ',+"\\<>;'


def distinguished_name(certificate: dict[str, object]) -> str:
    """Return the subject of a certificate, as authorization rules spell it.

    Args:
        certificate: What :meth:`ssl.SSLObject.getpeercert` returns.
    """
    subject = certificate.get("subject", ())
    assert isinstance(subject, tuple)
    return ",".join(
        "+".join(f"{_SHORT_NAMES.get(key, key)}={_escaped(value)}" for key, value in part)
        for part in subject
    )


def _escaped(value: str) -> str:
    text = "".join("\\" + char if char in _SPECIAL else char for char in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    if text.endswith(" ") and len(value) > 1:
        text = text[:-1] + "\\ "
    return text


#: What GnuTLS says where OpenSSL has another word: another key than ours, a user that has none, and
#: a peer with other kinds of credentials.
_REASONS: Final = {
    "BINDER_DOES_NOT_VERIFY": "An illegal parameter has been received.",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "An illegal parameter has been received.",
    "NO_SHARED_CIPHER": "No supported cipher suites have been found.",
}


def reason_of(exc: ssl.SSLError) -> str:
    """Return what went wrong in words, without OpenSSL's places in its source."""
    known = _REASONS.get(exc.reason or "")
    if known is not None:
        return known
    reason = exc.reason or (exc.args[1] if len(exc.args) > 1 else str(exc))
    return str(reason).lower().replace("_", " ")


class TlsSession:
    """One TLS connection without its socket.

    Attributes:
        is_ready: Whether the handshake is over.
        is_truncated: The stream ended without a word from the peer, who alone may end it.
    """

    __slots__ = ("_hostname", "_in", "_object", "_out", "check", "is_ready", "is_truncated")

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        hostname: str | None = None,
        check: Callable[[TlsSession], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            context: Credentials and rules.
            server_side: Which side this is.
            hostname: Whom a client wants to talk to.
            check: Called after the handshake; raises a QsdError to refuse the peer.
        """
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._hostname = hostname
        self.check = check
        self.is_ready = False
        self.is_truncated = False
        try:
            self._object = context.wrap_bio(
                self._in, self._out, server_side=server_side, server_hostname=hostname
            )
        except ValueError:  # not the form of a name, so no certificate has it
            raise QmpError(f"Certificate does not match the hostname {hostname}") from None
        except ssl.SSLError as exc:
            raise QmpError(f"Unable to set up TLS: {exc}") from None

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer; none mean that it has closed."""
        if len(data):
            self._in.write(data)
        else:
            self._in.write_eof()

    def output(self) -> bytes:
        """Return bytes for the peer."""
        return self._out.read()

    def handshake(self) -> bool:
        """Go on with the handshake; tell whether it is over.

        Raises:
            QsdError: It failed, or the peer is refused.  There may be output that tells the peer.
            ConnectionError: The peer went away.
        """
        if self.is_ready:
            return True
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLEOFError:
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "The TLS connection was non-properly terminated."
            ) from None
        except ssl.SSLCertVerificationError as exc:
            from qsd.net.tls_verify import refusal

            self._say_no_more()
            raise QmpError(refusal(exc, self._hostname)) from None
        except ssl.SSLError as exc:
            if exc.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
                self._say_no_more()
                raise QmpError("Verify failed: No certificate was found.") from None
            raise QmpError(f"TLS handshake failed: {reason_of(exc)}") from None
        if self.check is not None:
            self.check(self)
        self.is_ready = True
        return True

    def _say_no_more(self) -> None:
        """Keep from a client what its certificate lacks.

        With TLS 1.3 it believes by then that the handshake is over, and the original, which looks
        at certificates after it, only ends the connection.
        """
        cipher = self._object.cipher()
        if self._object.server_side and cipher is not None and cipher[1] == "TLSv1.3":
            self._out.read()

    def peer_name(self) -> str | None:
        """Return the distinguished name of the peer, None if it showed no certificate."""
        certificate = self._object.getpeercert()
        return distinguished_name(dict(certificate)) if certificate else None

    def peer_certificate(self) -> bytes | None:
        """Return the peer's certificate in DER form, None if it showed none."""
        return self._object.getpeercert(binary_form=True)

    def read_into(self, buffer: memoryview) -> int | None:
        """Decrypt into a buffer.

        Returns:
            Bytes; 0 at the end of the stream, None if more input is needed first.

        Raises:
            OSError: The stream is damaged.
        """
        total = 0
        length = len(buffer)
        # typeshed knows the form that returns bytes; with a buffer, it is their number.
        read = cast("Callable[[int, memoryview], int]", self._object.read)
        try:
            while total < length:
                count = read(length - total, buffer[total:])
                if not count:
                    break
                total += count
        except ssl.SSLWantReadError:
            return total or None
        except ssl.SSLZeroReturnError:
            return total
        except ssl.SSLEOFError:
            self.is_truncated = True
            return total
        except ssl.SSLError as exc:
            text = f"Cannot read from TLS channel: {reason_of(exc)}"
            raise ConnectionAbortedError(errno.ECONNABORTED, text) from None
        return total

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt all of `data`."""
        view = memoryview(data)
        write = self._object.write
        while view:
            view = view[write(view) :]

    def close(self) -> None:
        """Tell the peer that this is the end; the output says it."""
        with contextlib.suppress(ssl.SSLError, OSError):
            self._object.unwrap()


class StreamSocket(Protocol):
    """What a plain non-blocking socket and :class:`TlsSocket` both offer to a data plane."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what is there; BlockingIOError if nothing is, 0 at the end."""

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits; BlockingIOError if nothing does."""

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send what fits of several views."""

    def shutdown(self, how: int) -> None:
        """Tell the peer that this is the end."""

    def close(self) -> None:
        """Close the socket."""


class TlsSocket:
    """A non-blocking socket with TLS on it; see the module for what is different."""

    __slots__ = ("_owed", "_pending", "_scratch", "_session", "_sock")

    def __init__(self, sock: socket.socket, session: TlsSession) -> None:
        """Wrap a socket, which belongs to this object from the end of the handshake on."""
        self._sock = sock
        self._session = session
        self._scratch = memoryview(bytearray(_RECEIVE))
        self._pending = memoryview(b"")
        self._owed = 0

    async def handshake(self) -> None:
        """Carry out the handshake.

        Raises:
            QsdError: It failed; the socket stays the caller's.
            OSError: The connection failed.
        """
        session = self._session
        while True:
            try:
                done = session.handshake()
            except QsdError:
                # Let the peer know why, if that is possible at once.
                with contextlib.suppress(OSError):
                    self._sock.send(session.output())
                raise
            await self._send_output()
            if done:
                return
            await self._wait(writing=False)
            with contextlib.suppress(BlockingIOError):
                self._fill()

    async def _send_output(self) -> None:
        view = memoryview(self._session.output())
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await self._wait(writing=True)

    async def _wait(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        fd = self._sock.fileno()
        if writing:
            loop.add_writer(fd, wake)
        else:
            loop.add_reader(fd, wake)
        try:
            await future
        finally:
            if writing:
                loop.remove_writer(fd)
            else:
                loop.remove_reader(fd)

    def _fill(self) -> None:
        count = self._sock.recv_into(self._scratch)
        self._session.feed(self._scratch[:count])

    @property
    def is_truncated(self) -> bool:
        """Whether the stream ended without a word from the peer, who alone may end it."""
        return self._session.is_truncated

    # What a socket does

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._sock.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what is there; BlockingIOError if nothing is, 0 at the end."""
        total = 0
        length = len(buffer)
        session = self._session
        while total < length:
            count = session.read_into(buffer[total:])
            if count == 0:
                break
            if count is not None:
                total += count
                continue
            try:
                self._fill()
            except BlockingIOError:
                if total:
                    break
                raise
        return total

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits; BlockingIOError if nothing does."""
        self._push()
        view = memoryview(data)
        length = len(view)
        sent, self._owed = self._owed, 0
        while sent < length:
            piece = view[sent : sent + _ENCRYPT]
            self._session.write(piece)
            sent += len(piece)
            self._pending = memoryview(self._session.output())
            try:
                self._push()
            except BlockingIOError:
                # All of it is encrypted; one byte is held back in the count, as a pledge.
                self._owed = 1
                return sent - 1
        return sent

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send what fits of several views."""
        # Short pieces get a record together, at the price of a copy; long ones go as they are.
        total = 0
        batch: list[bytes | memoryview] = []
        size = 0
        for piece in buffers:
            if size and size + len(piece) > _RECORD:
                break
            batch.append(piece)
            size += len(piece)
        data = batch[0] if len(batch) == 1 else b"".join(batch)
        total += self.send(data)
        return total

    def _push(self) -> None:
        """Send what is encrypted.

        Raises:
            BlockingIOError: The kernel did not take all of it.
        """
        while self._pending:
            self._pending = self._pending[self._sock.send(self._pending) :]

    def shutdown(self, how: int) -> None:
        """Tell the peer that this is the end."""
        self._say_goodbye()
        self._sock.shutdown(how)

    def _say_goodbye(self) -> None:
        self._session.close()
        with contextlib.suppress(OSError):
            self._push()
            self._sock.send(self._session.output())

    def close(self) -> None:
        """Close the socket."""
        self._say_goodbye()
        self._sock.close()


class TlsFilter:
    """TLS between the socket and a character device; see :mod:`qsd.chardev.socket`.

    Attributes:
        is_ready: Whether the handshake is over.
    """

    __slots__ = ("_report", "_session", "is_ready")

    def __init__(self, session: TlsSession, report: Callable[[str], None] | None = None) -> None:
        self._session = session
        self._report = report
        self.is_ready = False

    def start(self) -> bytes:
        """Return what is said first: a client's greeting."""
        self._session.handshake()
        return self._session.output()

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Take bytes from the socket; see the protocol class."""
        session = self._session
        session.feed(data)
        plain = bytearray()
        goes_on = True
        try:
            if session.handshake():
                self.is_ready = True
                buffer = memoryview(bytearray(_RECORD))
                while (count := session.read_into(buffer)) is not None:
                    if not count:
                        goes_on = False
                        break
                    plain += buffer[:count]
        except (QsdError, OSError) as exc:
            if self._report is not None:
                self._report(describe(exc))
            goes_on = False
        return bytes(plain), session.output(), goes_on

    def encode(self, data: bytes) -> bytes:
        """Wrap bytes of the device for the socket."""
        self._session.write(data)
        return self._session.output()
