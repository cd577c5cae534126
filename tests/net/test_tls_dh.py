# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The built-in group is what makes anonymous key exchange work."""

from __future__ import annotations

import ssl

from qsd.net.tls import TlsSession
from qsd.net.tls_dh import load_default_params


def test_anonymous_handshake() -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for context in (server, client):
        context.set_ciphers("ADH:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    load_default_params(server)
    one = TlsSession(server, server_side=True)
    two = TlsSession(client, server_side=False)
    while not (one.is_ready and two.is_ready):
        two.handshake()
        one.feed(data) if (data := two.output()) else None
        one.handshake()
        two.feed(data) if (data := one.output()) else None
    assert one.peer_name() is None
