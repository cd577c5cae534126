# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Pre-shared keys, in both versions of the protocol that have them."""

from __future__ import annotations

import ssl

import pytest

from qsd.errors import QmpError
from qsd.net.tls import TlsSession
from qsd.net.tls_psk import CIPHERS, serve_keys, use_key

KEYS = {b"alice": b"k" * 16}


def sessions(
    user: bytes, key: bytes, version: ssl.TLSVersion
) -> tuple[TlsSession, TlsSession, object]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for context in (server, client):
        context.set_ciphers(CIPHERS)
        context.maximum_version = version
    kept = (serve_keys(server, KEYS.get), use_key(client, user, key), server, client)
    return TlsSession(server, server_side=True), TlsSession(client, server_side=False), kept


def meet(server: TlsSession, client: TlsSession) -> None:
    while not (server.is_ready and client.is_ready):
        client.handshake()
        if data := client.output():
            server.feed(data)
        server.handshake()
        if data := server.output():
            client.feed(data)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_same_key(version: ssl.TLSVersion) -> None:
    server, client, kept = sessions(b"alice", b"k" * 16, version)
    meet(server, client)
    client.write(b"hello")
    server.feed(client.output())
    buffer = memoryview(bytearray(8))
    assert server.read_into(buffer) == 5
    assert kept is not None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("user", "key"), [(b"alice", b"x" * 16), (b"bob", b"k" * 16)])
def test_refused(user: bytes, key: bytes, version: ssl.TLSVersion) -> None:
    server, client, kept = sessions(user, key, version)
    with pytest.raises(QmpError, match=r"^TLS handshake failed: "):
        meet(server, client)
    assert kept is not None
