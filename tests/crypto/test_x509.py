# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Each way in which a certificate can be unfit, with its message."""

from __future__ import annotations

import datetime as dt

import pytest

from qsd.crypto import pki
from qsd.crypto.x509 import check_authority, check_issued, check_leaf, load_certificates
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
        check_issued([leaf], [other.certificate], "f", "ca")
    assert caught.value.desc == (
        "Our own certificate f failed validation against ca: "
        "The certificate hasn't got a known issuer"
    )


def test_no_certificates() -> None:
    assert load_certificates(b"garbage") == []
    assert load_certificates(b"") == []
