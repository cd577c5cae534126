# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""How peers are judged by their certificates, where that is not OpenSSL's usual way.

The C daemon lets GnuTLS look at a certificate once the handshake is over.  Users see that in what
is accepted, and in the words of a refusal, so here it is the same:

* The purposes in a certificate ("Extended Key Usage") are not looked at.
* Revocation lists are not OpenSSL's business, see :class:`qsd.crypto.x509.Revoked`.
* A refusal says one of a few sentences.

RFC 5280: "Extended Key Usage".
"""

from __future__ import annotations

import ctypes
import ssl
from typing import Final

from qsd.net.tls_psk import context_pointer, find_library

#: X509_PURPOSE_ANY of OpenSSL's x509v3.h.
_ANY_PURPOSE: Final = 7
#: Results of OpenSSL's verification (x509_vfy.h) by what a user is told of them.
_REVOKED: Final = frozenset({23})
_NO_ISSUER: Final = frozenset({2, 18, 19, 20, 21, 24})
_WEAK: Final = frozenset({66, 67, 68})
_WRONG_NAME: Final = frozenset({62, 64})


def allow_any_purpose(context: ssl.SSLContext) -> None:
    """Let certificates be shown whatever they were issued for.

    Where the library cannot be reached, they must be for a server or a client respectively.
    """
    library = find_library("X509_VERIFY_PARAM_set_purpose")
    if library is None:
        return
    parameters = library.SSL_CTX_get0_param
    parameters.restype = ctypes.c_void_p
    library.X509_VERIFY_PARAM_set_purpose(
        ctypes.c_void_p(parameters(context_pointer(context))), _ANY_PURPOSE
    )


def refusal(exc: ssl.SSLCertVerificationError, hostname: str | None) -> str:
    """Return why a peer's certificate is refused."""
    code = exc.verify_code
    if code in _WRONG_NAME:
        return f"Certificate does not match the hostname {hostname or ''}"
    if code in _REVOKED:
        return "The certificate has been revoked"
    if code in _NO_ISSUER:
        return "The certificate hasn't got a known issuer"
    if code in _WEAK:
        return "The certificate uses an insecure algorithm"
    return "The certificate is not trusted"


def pem_fault(data: bytes) -> str:
    """Tell what is wrong with the first block of a PEM file that was refused."""
    import base64
    import binascii

    _, found, rest = data.partition(b"-----BEGIN ")
    if not found:
        return "Base64 decoding error."
    text, end, _ = rest.partition(b"-----END ")
    try:
        if end:
            base64.b64decode(b"".join(text.split(b"\n")[1:]), validate=True)
            return "ASN1 parser: Error in TAG."
    except binascii.Error:
        pass
    return "Base64 unexpected header error."
