# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""GnuTLS priority strings, as far as OpenSSL can do what they say.

A priority string begins with a set of algorithms and changes it by further words, e.g.
``NORMAL:-VERS-TLS1.3:%SERVER_PRECEDENCE`` (GnuTLS manual, "Priority Strings").  Sets and protocol
versions have counterparts here.  Key exchanges without certificates are switched on by the kind of
credentials, so naming them changes nothing.  Any other word is refused rather than ignored: who
forbids an algorithm must not get it.
"""

from __future__ import annotations

import ssl
from typing import Final

from qsd.errors import QmpError

_SETS: Final = {
    "NORMAL": "DEFAULT",
    "PERFORMANCE": "DEFAULT",
    "LEGACY": "DEFAULT",
    "SYSTEM": "DEFAULT",
    "@SYSTEM": "DEFAULT",
    "PFS": "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:DHE+AESGCM:DHE+CHACHA20:DHE+AES:!aNULL",
    "SECURE128": "HIGH:!aNULL",
    "SECURE192": "AES256:CHACHA20:!aNULL",
    "SECURE256": "AES256:CHACHA20:!aNULL",
}
#: OpenSSL's security level: RSA keys of 1024 bits will do, as for GnuTLS; old hashes will not.
LEVEL: Final = "@SECLEVEL=1"
_VERSIONS: Final = {
    "VERS-TLS1.2": ssl.TLSVersion.TLSv1_2,
    "VERS-TLS1.3": ssl.TLSVersion.TLSv1_3,
}
#: Versions that are never spoken here, so forbidding them changes nothing.
_OLD_VERSIONS: Final = frozenset({"VERS-TLS1.0", "VERS-TLS1.1", "VERS-SSL3.0"})
_ALL_VERSIONS: Final = frozenset({"VERS-ALL", "VERS-TLS-ALL"})
_EXCHANGES: Final = frozenset({"ANON-DH", "ANON-ECDH", "PSK", "DHE-PSK", "ECDHE-PSK"})
#: Switches whose effect OpenSSL has anyway, or whose subject it does not have.
_SWITCHES: Final = frozenset(
    {
        "%COMPAT", "%SAFE_RENEGOTIATION", "%DISABLE_SAFE_RENEGOTIATION", "%PARTIAL_RENEGOTIATION",
        "%UNSAFE_RENEGOTIATION", "%SERVER_PRECEDENCE", "%NO_TICKETS", "%FORCE_ETM", "%NO_ETM",
        "%FORCE_SESSION_HASH", "%NO_SESSION_HASH", "%FALLBACK_SCSV", "%DISABLE_WILDCARDS",
    }
)  # fmt: skip


def apply_priority(context: ssl.SSLContext, priority: str, *, ciphers: str | None = None) -> None:
    """Set what a priority string says.

    Args:
        context: The context.
        priority: The string.
        ciphers: Cipher suites in OpenSSL's spelling that count instead of the set's, or None.

    Raises:
        QmpError: It is no such string, or has no counterpart here.
    """
    first, *words = priority.upper().split(":")
    if first not in _SETS:
        raise QmpError(f"Unable to set TLS session priority {priority}: The request is invalid.")
    context.set_ciphers(ciphers or f"{_SETS[first]}:{LEVEL}")
    allowed = set(_VERSIONS.values())
    for word in words:
        if word in _SWITCHES:
            if word == "%SERVER_PRECEDENCE":
                context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
            elif word == "%NO_TICKETS":
                context.options |= ssl.OP_NO_TICKET
            continue
        sign, name = word[:1], word[1:]
        if sign == "+" and (name in _EXCHANGES or name in _ALL_VERSIONS or name in _VERSIONS):
            allowed.update(_versions(name))
        elif sign in ("-", "!") and name in _OLD_VERSIONS:
            continue
        elif sign in ("-", "!") and (name in _ALL_VERSIONS or name in _VERSIONS):
            allowed.difference_update(_versions(name))
        else:
            raise QmpError(
                f"Unable to set TLS session priority {priority}: "
                f"'{word}' has no counterpart in OpenSSL"
            )
    if context.maximum_version == ssl.TLSVersion.TLSv1_2:
        allowed.discard(ssl.TLSVersion.TLSv1_3)  # anonymous key exchange goes no further
    if not allowed:
        raise QmpError(
            f"Unable to set TLS session priority {priority}: no protocol version is left"
        )
    context.minimum_version, context.maximum_version = min(allowed), max(allowed)


def _versions(name: str) -> list[ssl.TLSVersion]:
    if name in _ALL_VERSIONS:
        return list(_VERSIONS.values())
    return [_VERSIONS[name]] if name in _VERSIONS else []
