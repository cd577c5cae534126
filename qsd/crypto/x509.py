# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Certificates: is a set of them fit for its purpose, before anybody relies on it?

The checks and their texts are those of the C daemon's ``sanity-check``: TLS libraries report a
certificate that cannot work only when a client comes, and then as a riddle.

RFC 5280: "Validity", "Basic Constraints", "Key Usage", "Extended Key Usage", "CRL and CRL
Extensions Profile".
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from qsd.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T", bound=x509.ExtensionType)


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, none if there are none or one is damaged."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        return []


def check_authority(certificate: x509.Certificate, name: str) -> None:
    """Refuse a certificate that cannot be an authority's.

    Args:
        certificate: It.
        name: The file's name, for messages.

    Raises:
        QmpError: It is not fit.
    """
    _check_validity(certificate, f"The CA certificate {name}")
    if _extension(certificate, x509.BasicConstraints) is None:
        raise QmpError(f"The certificate {name} is missing basic constraints for a CA")
    if not _is_authority(certificate):
        raise QmpError(f"The certificate {name} basic constraints do not show a CA")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and usage.critical and not usage.value.key_cert_sign:
        raise QmpError(f"Certificate {name} usage does not permit certificate signing")


def check_leaf(certificate: x509.Certificate, name: str, role: str) -> None:
    """Refuse a certificate that cannot be a server's or client's.

    Args:
        certificate: It.
        name: The file's name, for messages.
        role: "server" or "client".

    Raises:
        QmpError: It is not fit.
    """
    _check_validity(certificate, f"The {role} certificate {name}")
    if _is_authority(certificate):
        raise QmpError(
            f"The certificate {name} basic constraints show a CA, but we need one for a {role}"
        )
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and usage.critical and not usage.value.digital_signature:
        raise QmpError(f"Certificate {name} usage does not permit digital signature")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    wanted = (
        ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    )
    if (
        purposes is not None
        and purposes.critical
        and not (
            wanted in purposes.value or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in purposes.value
        )
    ):
        raise QmpError(f"Certificate {name} purpose does not allow use with a TLS {role}")


def check_issued(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    name: str,
    authority_name: str,
) -> None:
    """Refuse a certificate that none of the authorities has issued.

    Args:
        certificate: It; others in its file are not looked at.
        authorities: Those that are trusted.
        name: The file's name, for messages.
        authority_name: The name of the authorities' file.

    Raises:
        QmpError: None has.
    """
    if certificate in authorities or any(_issued(certificate, each) for each in authorities):
        return
    raise QmpError(
        f"Our own certificate {name} failed validation against {authority_name}: "
        "The certificate hasn't got a known issuer"
    )


class Revoked:
    """The certificates that are on revocation lists.

    A list counts for what its issuer has issued, also when it is old; nothing is asked of the
    certificates of authorities that have published none.
    """

    __slots__ = ("_serials",)

    def __init__(self, serials: Mapping[bytes, frozenset[int]]) -> None:
        """Take serial numbers by the DER form of the issuer's name."""
        self._serials = serials

    def check(self, certificate: bytes) -> None:
        """Refuse a certificate, in DER form, that is on a list.

        Raises:
            QmpError: It is.
        """
        shown = x509.load_der_x509_certificate(certificate)
        if shown.serial_number in self._serials.get(shown.issuer.public_bytes(), ()):
            raise QmpError("The certificate has been revoked")


def load_revoked(data: bytes) -> Revoked:
    """Read the lists of a PEM file.

    Raises:
        ValueError: There is none, or one is damaged.
    """
    mark = b"-----BEGIN X509 CRL-----"
    _, *lists = data.split(mark)
    if not lists:
        raise ValueError("no revocation list")
    serials: dict[bytes, frozenset[int]] = {}
    for text in lists:
        found = x509.load_pem_x509_crl(mark + text)
        issuer = found.issuer.public_bytes()
        numbers = frozenset(entry.serial_number for entry in found)
        serials[issuer] = serials.get(issuer, frozenset()) | numbers
    return Revoked(serials)


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def _check_validity(certificate: x509.Certificate, what: str) -> None:
    now = dt.datetime.now(dt.UTC)
    if certificate.not_valid_after_utc < now:
        raise QmpError(f"{what} has expired")
    if certificate.not_valid_before_utc > now:
        raise QmpError(f"{what} is not yet active")


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.value.ca


def _extension(certificate: x509.Certificate, kind: type[T]) -> x509.Extension[T] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except (x509.ExtensionNotFound, ValueError):
        return None
