# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Certificates that are made here pass the checks that are made here."""

from __future__ import annotations

import pytest
from cryptography import x509

from qsd.crypto.pki import load_identity, make_authority, make_leaf
from qsd.crypto.x509 import check_authority, check_issued, check_leaf
from qsd.errors import QmpError


@pytest.mark.parametrize("role", ["server", "client"])
def test_fit_for_use(role: str) -> None:
    authority = make_authority("test", 1)
    leaf = make_leaf(authority, role, "name", ["localhost", "::1"], 1)
    check_authority(authority.certificate, "a")
    check_leaf(leaf.certificate, "l", role)
    check_issued(leaf.certificate, [authority.certificate], "l", "a")
    names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["::1"]


def test_round_trip() -> None:
    authority = make_authority("test", 1)
    again = load_identity(authority.certificate_pem(), authority.key_pem())
    assert again.certificate == authority.certificate
    with pytest.raises(QmpError):
        load_identity(b"", authority.key_pem())
