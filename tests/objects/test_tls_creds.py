# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""TLS credentials: declared, and refused with one clear message."""

from __future__ import annotations

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.tls_creds import TlsCreds, TlsCredsX509
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.crypto import TlsCredsProperties, TlsCredsX509Properties

KINDS = ["tls-cipher-suites", "tls-creds-anon", "tls-creds-psk", "tls-creds-x509"]


@pytest.mark.parametrize("kind", KINDS)
def test_refused(kind: str) -> None:
    tree = ObjectTree()
    with pytest.raises(QmpError) as caught:
        run(tree.create(kind, "t", TlsCredsProperties(dir="/x", priority="NORMAL")))
    assert caught.value.desc == f"object type '{kind}' is not supported yet: there is no TLS"
    assert tree.find("t") is None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tls-creds-x509", "Missing 'dir' property value"),
        ("tls-creds-psk", "Missing 'dir' property value"),
        ("tls-cipher-suites", "'priority' property is not set"),
    ],
)
def test_missing_members(kind: str, message: str) -> None:
    with pytest.raises(QmpError) as caught:
        run(ObjectTree().create(kind, "t"))
    assert caught.value.desc == message


def test_loaded_is_read_only() -> None:
    options = TlsCredsX509Properties(dir="/x", loaded=True)
    with pytest.raises(QmpError, match=r"^Property 'tls-creds-x509.loaded' is not writable$"):
        run(ObjectTree().create("tls-creds-x509", "t", options))


def test_defaults() -> None:
    creds = TlsCredsX509(ObjectTree())
    shown = {item.name: creds.get_json(item.name) for item in creds.properties()}
    assert shown == {
        "type": "tls-creds-x509", "endpoint": "client", "dir": "", "verify-peer": True,
        "priority": "", "sanity-check": True, "passwordid": "", "loaded": False,
    }  # fmt: skip


def test_messages_of_users() -> None:
    tree = ObjectTree()
    run(tree.create("iothread", "io"))
    with pytest.raises(QmpError, match=r"^No TLS credentials with id 'zz'$"):
        tree.resolve("zz", TlsCreds)
    with pytest.raises(QmpError, match=r"^Object with id 'io' is not TLS credentials$"):
        tree.resolve("io", TlsCreds)
