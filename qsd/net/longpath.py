# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Unix socket paths that fill sun_path to the last byte.

Linux takes a path of 108 bytes without a terminating NUL (unix(7), "Pathname sockets"); Python's
socket module stops at 107.  Rare enough to live apart, because ctypes is slow to import.
"""

from __future__ import annotations

import ctypes
import os
import socket


def call_with_full_path(function: str, sock: socket.socket, path: bytes) -> None:
    """Call bind() or connect() with a path of exactly 108 bytes.

    Raises:
        OSError: The call failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    name = int(socket.AF_UNIX).to_bytes(2, "little" if _IS_LITTLE else "big") + path
    if getattr(libc, function)(sock.fileno(), name, len(name)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_IS_LITTLE = ctypes.c_uint16.from_buffer_copy(b"\x01\x00").value == 1
