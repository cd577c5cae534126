# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Each way in which a certificate can be unfit, with its message."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from qsd.crypto import pki
from qsd.crypto.x509 import (
    check_authority,
    check_issued,
    check_leaf,
    load_certificates,
    load_revoked,
)
from qsd.errors import QmpError


def test_authority_as_server() -> None:
    authority = pki.make_authority("test", 1).certificate
    with pytest.raises(QmpError) as caught:
        check_leaf(authority, "f", "server")
    assert caught.value.desc == (
        "The certificate f basic constraints show a CA, but we need one for a server"
    )


def test_server_as_authority() -> None:
    leaf = pki.make_leaf(pki.make_authority("test", 1), "server", "s", [], 1).certificate
    with pytest.raises(QmpError, match=r"^The certificate f basic constraints do not show a CA$"):
        check_authority(leaf, "f")


def test_validity(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = pki.make_authority("test", 1)
    monkeypatch.setattr(pki, "_SLACK", dt.timedelta(days=3))
    old = pki.make_leaf(authority, "server", "s", [], -1).certificate
    with pytest.raises(QmpError, match=r"^The server certificate f has expired$"):
        check_leaf(old, "f", "server")
    monkeypatch.setattr(pki, "_SLACK", dt.timedelta(days=-1))
    early = pki.make_authority("test", 2).certificate
    with pytest.raises(QmpError, match=r"^The CA certificate f is not yet active$"):
        check_authority(early, "f")


def test_strangers() -> None:
    mine, other = pki.make_authority("test", 1), pki.make_authority("test", 1)
    leaf = pki.make_leaf(mine, "server", "s", [], 1).certificate
    with pytest.raises(QmpError) as caught:
        check_issued(leaf, [other.certificate], "f", "ca")
    assert caught.value.desc == (
        "Our own certificate f failed validation against ca: "
        "The certificate hasn't got a known issuer"
    )
    check_issued(leaf, [other.certificate, mine.certificate], "f", "ca")
    check_issued(leaf, [leaf], "f", "ca")


def test_authority_without_constraints() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - dt.timedelta(1), now + dt.timedelta(1)
    )
    with pytest.raises(QmpError) as caught:
        check_authority(builder.sign(key, hashes.SHA256()), "f")
    assert caught.value.desc == "The certificate f is missing basic constraints for a CA"


def test_no_certificates() -> None:
    assert load_certificates(b"garbage") == []
    assert load_certificates(b"") == []


def test_no_list() -> None:
    for data in (b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"):
        with pytest.raises(ValueError, match=r"revocation list|PEM|ASN|pars"):
            load_revoked(data)
