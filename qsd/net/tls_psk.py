# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Pre-shared keys for a TLS context (RFC 4279, and RFC 8446, "Pre-Shared Key Extension").

From Python 3.13 on the ``ssl`` module has callbacks for them.  Before, they are set on the OpenSSL
context behind the Python object, by way of the C library that the ``ssl`` module has loaded; where
that library cannot be found, pre-shared keys are refused.
"""

from __future__ import annotations

import ctypes
import ssl
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Cipher suites: those with a pre-shared key alone or with a fresh Diffie-Hellman exchange.
#: Security level 1, because keys may be shorter than OpenSSL likes.
CIPHERS: Final = "ECDHEPSK:DHEPSK:PSK:@SECLEVEL=1"
#: Bytes; the longest key that OpenSSL takes (PSK_MAX_PSK_LEN).
MAX_KEY: Final = 512

_SERVER_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint
)
_CLIENT_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_uint,
)
#: Where a PySSLContext keeps its SSL_CTX: right behind the head of every Python object.
_CONTEXT_OFFSET: Final = object.__basicsize__


def find_library(symbol: str) -> ctypes.CDLL | None:
    """Return the OpenSSL that the ``ssl`` module uses; None if it does not show a symbol.

    It does where it is a shared library of its own.
    """
    import _ssl

    # Looking a symbol up through the extension module finds it in the libraries it is linked to.
    library = ctypes.CDLL(_ssl.__file__)
    return library if hasattr(library, symbol) else None


def _library() -> ctypes.CDLL:
    library = find_library("SSL_CTX_set_psk_server_callback")
    if library is None:
        raise QmpError("TLS with pre-shared keys is not available with this Python and OpenSSL")
    return library


def context_pointer(context: ssl.SSLContext) -> ctypes.c_void_p:
    """Return the SSL_CTX behind a context."""
    return ctypes.c_void_p.from_address(id(context) + _CONTEXT_OFFSET)


def serve_keys(context: ssl.SSLContext, find: Callable[[bytes], bytes | None]) -> object:
    """Let a server's context ask for keys.

    Args:
        context: The context, with its cipher suites set to :data:`CIPHERS`.
        find: Returns the key of a user, or None.

    Returns:
        What must live as long as the context.

    Raises:
        QmpError: There is no way to do it here.
    """
    modern: Any = getattr(context, "set_psk_server_callback", None)
    if modern is not None:
        modern(lambda identity: find((identity or "").encode()) or b"")
        return None

    def callback(_: Any, identity: bytes | None, out: Any, room: int) -> int:
        key = find(identity or b"")
        if key is None or len(key) > room:
            return 0
        ctypes.memmove(out, key, len(key))
        return len(key)

    kept = _SERVER_CALLBACK(callback)
    _library().SSL_CTX_set_psk_server_callback(context_pointer(context), kept)
    return kept


def use_key(context: ssl.SSLContext, user: bytes, key: bytes) -> object:
    """Let a client's context use a key.

    Returns:
        What must live as long as the context.

    Raises:
        QmpError: There is no way to do it here.
    """
    modern: Any = getattr(context, "set_psk_client_callback", None)
    if modern is not None:
        modern(lambda _hint: (user.decode(), key))
        return None

    def callback(_: Any, _hint: bytes | None, name: Any, room: int, out: Any, limit: int) -> int:
        if len(user) >= room or len(key) > limit:
            return 0
        ctypes.memmove(name, user + b"\0", len(user) + 1)
        ctypes.memmove(out, key, len(key))
        return len(key)

    kept = _CLIENT_CALLBACK(callback)
    library = _library()
    # In TLS 1.3 OpenSSL treats the key as a session, and refuses it where the context has a name
    # for its sessions, which Python gives to every context.
    library.SSL_CTX_set_session_id_context(context_pointer(context), b"", 0)
    library.SSL_CTX_set_psk_client_callback(context_pointer(context), kept)
    return kept
