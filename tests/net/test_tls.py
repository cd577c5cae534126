# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sessions against each other, and sockets under pressure."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError
from qsd.net.tls import TlsFilter, TlsSession, TlsSocket, distinguished_name, reason_of
from tests.support.certificates import make_directories


def contexts(place: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server_dir, client_dir = make_directories(place)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{server_dir}/server-cert.pem", f"{server_dir}/server-key.pem")
    server.load_verify_locations(f"{server_dir}/ca-cert.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_cert_chain(f"{client_dir}/client-cert.pem", f"{client_dir}/client-key.pem")
    client.load_verify_locations(f"{client_dir}/ca-cert.pem")
    return server, client


def test_name_of_the_peer(tmp_path: Path) -> None:
    server_context, client_context = contexts(tmp_path)
    server = TlsSession(server_context, server_side=True)
    client = TlsSession(client_context, server_side=False, hostname="localhost")
    while not (server.handshake() and client.is_ready):
        client.handshake()
        if data := client.output():
            server.feed(data)
        server.handshake()
        if data := server.output():
            client.feed(data)
        client.handshake()
    assert server.peer_name() == "CN=alice"
    server.write(b"hello")
    client.feed(server.output())
    buffer = memoryview(bytearray(16))
    assert client.read_into(buffer) == 5
    assert client.read_into(buffer) is None
    server.close()
    client.feed(server.output())
    assert client.read_into(buffer) == 0


def test_wrong_host(tmp_path: Path) -> None:
    server_context, client_context = contexts(tmp_path)
    server = TlsSession(server_context, server_side=True)
    client = TlsSession(client_context, server_side=False, hostname="elsewhere.example")
    client.handshake()
    server.feed(client.output())
    server.handshake()
    client.feed(server.output())
    with pytest.raises(QmpError, match=r"^Certificate does not match the hostname elsewhere"):
        client.handshake()


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ((), ""),
        (
            ((("organizationName", "Acme, Inc."),), (("commonName", " a+b "),)),
            "O=Acme\\, Inc.,CN=\\ a\\+b\\ ",
        ),
        (((("commonName", "a"), ("userId", "b")),), "CN=a+UID=b"),
    ],
)
def test_distinguished_names(subject: object, text: str) -> None:
    assert distinguished_name({"subject": subject}) == text


def test_sockets_that_are_full(tmp_path: Path) -> None:
    """What is accepted arrives once, however little the kernel takes at a time."""
    server_context, client_context = contexts(tmp_path)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = TlsSocket(ours, TlsSession(server_context, server_side=True))
        session = TlsSession(client_context, server_side=False, hostname="localhost")
        client = TlsSocket(theirs, session)
        tasks = TaskOwner("test")
        other = tasks.spawn(server.handshake(), "server")
        await client.handshake()
        await other
        data = memoryview(bytes(range(256)) * 4096)
        got = bytearray()
        room = memoryview(bytearray(10000))
        sent = 0
        while len(got) < len(data):
            if sent < len(data):
                try:
                    sent += server.sendmsg([data[sent : sent + 300_000], data[sent + 300_000 :]])
                except BlockingIOError:
                    pass
            try:
                got += room[: client.recv_into(room)]
            except BlockingIOError:
                pass
        assert sent == len(data)
        assert got == data
        server.close()
        assert client.recv_into(room) == 0
        client.close()

    run(main())


def test_filter_reports_nonsense(tmp_path: Path) -> None:
    server_context, _ = contexts(tmp_path)
    reports: list[str] = []
    tls = TlsFilter(TlsSession(server_context, server_side=True), reports.append)
    assert tls.start() == b""
    data, _, goes_on = tls.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert (data, goes_on) == (b"", False)
    assert reports[0].startswith("TLS handshake failed: ")


@pytest.mark.parametrize(
    ("version", "says_why"), [(ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, False)]
)
def test_who_lacks_a_certificate(tmp_path: Path, version: ssl.TLSVersion, says_why: bool) -> None:
    """Where the client thinks that the handshake is over, it sees the end and no alert."""
    server_context, _ = contexts(tmp_path)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.maximum_version = version
    server = TlsSession(server_context, server_side=True)
    client = TlsSession(client_context, server_side=False)
    client.handshake()
    server.feed(client.output())
    server.handshake()
    client.feed(server.output())
    assert client.handshake() == (not says_why)
    server.feed(client.output())
    with pytest.raises(QmpError, match=r"^Verify failed: No certificate was found\.$"):
        server.handshake()
    assert bool(server.output()) == says_why


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("BINDER_DOES_NOT_VERIFY", "An illegal parameter has been received."),
        ("NO_SUITABLE_SIGNATURE_ALGORITHM", "An illegal parameter has been received."),
        ("NO_SHARED_CIPHER", "No supported cipher suites have been found."),
        ("WRONG_VERSION_NUMBER", "wrong version number"),
    ],
)
def test_reasons(word: str, text: str) -> None:
    error = ssl.SSLError(1, "words of OpenSSL")
    error.reason = word
    assert reason_of(error) == text
