# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Priority strings."""

from __future__ import annotations

import ssl

import pytest

from qsd.errors import QmpError
from qsd.net.tls_priority import apply_priority


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_versions() -> None:
    made = context()
    apply_priority(made, "NORMAL:-VERS-ALL:+VERS-TLS1.2:%SERVER_PRECEDENCE")
    assert made.minimum_version == made.maximum_version == ssl.TLSVersion.TLSv1_2
    assert made.options & ssl.OP_CIPHER_SERVER_PREFERENCE


def test_stronger_set() -> None:
    made = context()
    apply_priority(made, "SECURE256")
    old = [each for each in made.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert old
    assert all(each["strength_bits"] == 256 for each in old)


def test_level_and_hash() -> None:
    made = context()
    apply_priority(made, "NORMAL:-SHA1:%PROFILE_HIGH:+CTYPE-X509:-COMP-ALL:+COMP-NULL")
    assert made.security_level == 3
    assert not [each for each in made.get_ciphers() if each["name"].endswith("-SHA")]
    apply_priority(made, "NORMAL")
    assert made.security_level == 1
    assert [each for each in made.get_ciphers() if each["name"].endswith("-SHA")]


INVALID = "The request is invalid."
NOTHING = "No or insufficient priorities were set."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("GARBAGE", INVALID),
        ("", INVALID),
        ("NORMAL:", INVALID),
        (":NORMAL", INVALID),
        ("NORMAL:BOGUS", INVALID),
        ("NORMAL:+BOGUS", INVALID),
        ("NORMAL:%BOGUS", INVALID),
        ("NONE", NOTHING),
        ("NORMAL:-VERS-ALL", NOTHING),
        ("NORMAL:-AES-128-GCM", "'-AES-128-GCM' has no counterpart in OpenSSL"),
        ("NORMAL:-PSK", "'-PSK' has no counterpart in OpenSSL"),
        ("NORMAL:+VERS-TLS1.0", "'+VERS-TLS1.0' has no counterpart in OpenSSL"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(QmpError) as caught:
        apply_priority(context(), text)
    assert caught.value.desc == f"Unable to set TLS session priority {text}: {reason}"
