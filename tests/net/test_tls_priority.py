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


@pytest.mark.parametrize(
    "text",
    [
        "GARBAGE", "", "NORMAL:-AES-128-GCM", "NORMAL:", "NORMAL:-PSK", "NORMAL:-VERS-ALL",
        "NORMAL:+VERS-TLS1.0",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(QmpError, match=r"^Unable to set TLS session priority "):
        apply_priority(context(), text)
