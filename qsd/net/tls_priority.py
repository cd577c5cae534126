# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""GnuTLS priority strings, as far as OpenSSL can do what they say.

A priority string begins with a set of algorithms and changes it by further words, e.g.
``NORMAL:-VERS-TLS1.3:%SERVER_PRECEDENCE`` (GnuTLS manual, "Priority Strings").  Sets and protocol
versions have counterparts here.  Key exchanges without certificates are switched on by the kind of
credentials, so naming them changes nothing.  A profile is a security level.  Any other word is
refused rather than ignored: who forbids an algorithm must not get it.
"""

from __future__ import annotations

import ssl
from typing import Final

from qsd.errors import QmpError

_INVALID: Final = "The request is invalid."
_NOTHING_LEFT: Final = "No or insufficient priorities were set."

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
_LEVELS: Final = {
    "%PROFILE_VERY_WEAK": "@SECLEVEL=1",
    "%PROFILE_LOW": "@SECLEVEL=1",
    "%PROFILE_LEGACY": "@SECLEVEL=1",
    "%PROFILE_MEDIUM": "@SECLEVEL=2",
    "%PROFILE_HIGH": "@SECLEVEL=3",
    "%PROFILE_FUTURE": "@SECLEVEL=4",
    "%PROFILE_ULTRA": "@SECLEVEL=4",
}
_VERSIONS: Final = {
    "VERS-TLS1.2": ssl.TLSVersion.TLSv1_2,
    "VERS-TLS1.3": ssl.TLSVersion.TLSv1_3,
}
#: Versions that are never spoken here, so forbidding them changes nothing.
_OLD_VERSIONS: Final = frozenset({"VERS-TLS1.0", "VERS-TLS1.1", "VERS-SSL3.0"})
_ALL_VERSIONS: Final = frozenset({"VERS-ALL", "VERS-TLS-ALL"})
#: What there is one of: certificates are X.509's, and nothing is compressed.
_SINGLE: Final = frozenset({"+CTYPE-X509", "+CTYPE-X.509", "-COMP-ALL", "+COMP-NULL", "+COMP-ALL"})
#: How names of algorithms begin that GnuTLS knows; other words are mistakes.
_KNOWN: Final = (
    "AES-", "3DES-", "ARCFOUR-", "ARIA-", "CAMELLIA-", "CHACHA20-", "CIPHER-", "NULL", "MAC-",
    "AEAD", "SHA", "MD5", "KX-", "RSA", "DHE-", "ECDHE-", "PSK", "ANON-", "SRP", "VKO-", "GOST",
    "GROUP-", "CURVE-", "SIGN-", "CTYPE-", "COMP-", "VERS-",
)  # fmt: skip
_EXCHANGES: Final = frozenset({"ANON-DH", "ANON-ECDH", "PSK", "DHE-PSK", "ECDHE-PSK"})
#: Switches whose effect OpenSSL has anyway, or whose subject it does not have.
_SWITCHES: Final = frozenset(
    {
        "%COMPAT", "%SAFE_RENEGOTIATION", "%DISABLE_SAFE_RENEGOTIATION", "%PARTIAL_RENEGOTIATION",
        "%UNSAFE_RENEGOTIATION", "%SERVER_PRECEDENCE", "%NO_TICKETS", "%FORCE_ETM", "%NO_ETM",
        "%FORCE_SESSION_HASH", "%NO_SESSION_HASH", "%FALLBACK_SCSV", "%DISABLE_WILDCARDS",
    }
)  # fmt: skip


def apply_priority(
    context: ssl.SSLContext,
    priority: str,
    *,
    ciphers: str | None = None,
    what: str = "Unable to set TLS session priority",
) -> None:
    """Set what a priority string says.

    Args:
        context: The context.
        priority: The string.
        ciphers: Cipher suites in OpenSSL's spelling that count instead of the set's, or None.
        what: What messages call it.

    Raises:
        QmpError: It is no such string, or has no counterpart here.
    """
    try:
        _apply(context, priority.upper().split(":"), ciphers)
    except ValueError as exc:
        raise QmpError(f"{what} {priority}: {exc}") from None


def _apply(context: ssl.SSLContext, parts: list[str], ciphers: str | None) -> None:
    first, *words = parts
    if first == "NONE":
        raise ValueError(_NOTHING_LEFT)
    if first not in _SETS:
        raise ValueError(_INVALID)
    level, removed = LEVEL, ""
    allowed = set(_VERSIONS.values())
    for word in words:
        sign, name = word[:1], word[1:]
        if word in _SWITCHES:
            if word == "%SERVER_PRECEDENCE":
                context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
            elif word == "%NO_TICKETS":
                context.options |= ssl.OP_NO_TICKET
        elif word in _LEVELS:
            level = _LEVELS[word]
        elif sign == "+" and (name in _EXCHANGES or name in _ALL_VERSIONS or name in _VERSIONS):
            allowed.update(_versions(name))
        elif sign in ("-", "!") and (name in _ALL_VERSIONS or name in _VERSIONS):
            allowed.difference_update(_versions(name))
        elif sign in ("-", "!") and name == "SHA1":
            removed = ":!SHA1"
        elif word not in _SINGLE and not (sign in ("-", "!") and name in _OLD_VERSIONS):
            raise ValueError(_why_not(word))
    if context.maximum_version == ssl.TLSVersion.TLSv1_2:
        allowed.discard(ssl.TLSVersion.TLSv1_3)  # anonymous key exchange goes no further
    if not allowed:
        raise ValueError(_NOTHING_LEFT)
    context.set_ciphers(ciphers or f"{_SETS[first]}{removed}:{level}")
    context.minimum_version, context.maximum_version = min(allowed), max(allowed)


def _why_not(word: str) -> str:
    """Tell a word that GnuTLS knows from a mistake."""
    if word[:1] in ("+", "-", "!") and word[1:].startswith(_KNOWN):
        return f"'{word}' has no counterpart in OpenSSL"
    return _INVALID


def _versions(name: str) -> list[ssl.TLSVersion]:
    if name in _ALL_VERSIONS:
        return list(_VERSIONS.values())
    return [_VERSIONS[name]] if name in _VERSIONS else []
