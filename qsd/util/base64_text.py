# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Base64 as QEMU's users may write it: checked for its alphabet, but not for its shape.

RFC 4648 leaves it to the reader how strict to be.  The C daemon refuses characters outside the
alphabet (line feeds are allowed anywhere), but takes any padding: every complete group of four
characters counts, ``=`` stands for six zero bits, and a ``=`` in the third or fourth place of its
group takes away the second or third byte.  What is left over at the end is ignored.
"""

from __future__ import annotations

from binascii import a2b_base64

from qsd.errors import QmpError

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n"


def decode_base64(text: bytes) -> bytes:
    """Decode `text`.

    Raises:
        QmpError: There is a NUL or a character outside the alphabet.  The message does not quote
        the
            text, because it may be a secret.
    """
    if b"\0" in text:
        raise QmpError("Base64 data contains embedded NUL characters")
    if text.translate(None, _ALPHABET):
        raise QmpError("Base64 data contains invalid characters")
    text = text.replace(b"\n", b"")
    text = text[: len(text) & ~3]
    plain = a2b_base64(text.replace(b"=", b"A"))
    if b"=" not in text:
        return plain
    result = bytearray()
    for group in range(len(text) // 4):
        one, two, three = plain[group * 3 : group * 3 + 3]
        result.append(one)
        if text[group * 4 + 2] != ord("="):
            result.append(two)
        if text[group * 4 + 3] != ord("="):
            result.append(three)
    return bytes(result)
