# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Words for certificates and files that are refused."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from qsd.net import tls_verify
from qsd.net.tls_verify import allow_any_purpose, pem_fault, refusal
from tests.support.certificates import make_directories


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (62, "Certificate does not match the hostname h"),
        (23, "The certificate has been revoked"),
        (20, "The certificate hasn't got a known issuer"),
        (18, "The certificate hasn't got a known issuer"),
        (66, "The certificate uses an insecure algorithm"),
        (10, "The certificate is not trusted"),
    ],
)
def test_refusals(code: int, text: str) -> None:
    exc = ssl.SSLCertVerificationError()
    exc.verify_code = code
    assert refusal(exc, "h") == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "Base64 decoding error."),
        (b"hello\n", "Base64 decoding error."),
        (b"-----BEGIN X-----\nno base64!\n-----END X-----\n", "Base64 unexpected header error."),
        (b"-----BEGIN X-----\nAAAA\n", "Base64 unexpected header error."),
        (b"-----BEGIN X-----\nAAAA\n-----END X-----\n", "ASN1 parser: Error in TAG."),
    ],
)
def test_faults_of_files(data: bytes, text: str) -> None:
    assert pem_fault(data) == text


def test_purposes_count_where_openssl_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing fails then; certificates must be what they are used for, which is stricter."""
    monkeypatch.setattr(tls_verify, "find_library", lambda _symbol: None)
    server, _ = make_directories(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    allow_any_purpose(context)
    context.load_cert_chain(f"{server}/server-cert.pem", f"{server}/server-key.pem")
