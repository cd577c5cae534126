# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Diffie-Hellman parameters for anonymous TLS, where the user gives none.

They are the group ffdhe2048 (RFC 7919, "Named Finite Field Diffie-Hellman Groups Registry"), whose
prime is public and needs no trust.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

FFDHE2048: Final = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def load_default_params(context: ssl.SSLContext) -> None:
    """Give the parameters to a context, which takes them from a file only."""
    with tempfile.NamedTemporaryFile(prefix="qsd-dh-") as handle:
        handle.write(FFDHE2048)
        handle.flush()
        context.load_dh_params(handle.name)
