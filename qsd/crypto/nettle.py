# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Serpent and Twofish of the Nettle library, where it is installed (it comes with GnuTLS).

Its descriptors of ciphers (Nettle manual, "Cipher functions", `struct nettle_cipher`) say how much
memory a key schedule takes and where the functions are, so nothing of its layout is guessed.  A
function works on any number of blocks, without the interpreter's lock.

Processor time for 1 MiB, 256-bit keys: Serpent 4 ms, Twofish 4.5; those of
:mod:`qsd.crypto.serpent` and :mod:`qsd.crypto.twofish`, which are used where there is no such
library, take 100 and 40.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Final

from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qsd.crypto.buffers import Readable, Writable

#: The binary interface that this was written for: that of Nettle 3.5 and later.
_FILE: Final = "libnettle.so.8"

_BLOCK: Final = 16
#: Key, and what a block of zeroes becomes: NESSIE, "Serpent", set 1, vector 0; "Twofish: A 128-Bit
#: Block Cipher", appendix B.2.  A library that answers otherwise is not used.
_ANSWERS: Final[Mapping[str, tuple[str, str]]] = {
    "serpent-128": ("80" + "00" * 15, "264e5481eff42a4606abda06c0bfda3d"),
    "serpent-192": ("80" + "00" * 23, "9e274ead9b737bb21efcfca548602689"),
    "serpent-256": ("80" + "00" * 31, "a223aa1288463c0e2be38ebd825616c0"),
    "twofish-128": ("00" * 16, "9f589f5cf6122c32b6bfec2f2ae8c35a"),
    "twofish-192": (
        "0123456789abcdeffedcba98765432100011223344556677",
        "cfd1d2e5a9be9cdf501f13b892bd2248",
    ),
    "twofish-256": (
        "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
        "37527be0052334b89f0cfccae87cfa20",
    ),
}


class _Descriptor(ctypes.Structure):
    """`struct nettle_cipher`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("context_size", ctypes.c_uint),
        ("block_size", ctypes.c_uint),
        ("key_size", ctypes.c_uint),
        ("set_encrypt_key", ctypes.c_void_p),
        ("set_decrypt_key", ctypes.c_void_p),
        ("encrypt", ctypes.c_void_p),
        ("decrypt", ctypes.c_void_p),
    )


_SET_KEY: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
_CRYPT: Final = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p
)


class _Functions(NamedTuple):
    """A cipher with one key length.

    Attributes:
        context_size: Bytes of a key schedule.
        set_key: Called with a schedule to fill and the key; one schedule serves both directions.
        encrypt, decrypt: Called with a schedule, count of bytes, where to, and where from.
    """

    context_size: int
    set_key: Callable[[object, bytes], None]
    encrypt: Callable[[object, int, object, object], None]
    decrypt: Callable[[object, int, object, object], None]


class NettleEcb:
    """A cipher under one key; see :class:`qsd.crypto.cipher.Ecb`."""

    __slots__ = ("_context", "_decrypt", "_encrypt")

    def __init__(self, functions: _Functions, key: bytes) -> None:
        self._context = ctypes.create_string_buffer(functions.context_size)
        functions.set_key(self._context, key)
        self._encrypt, self._decrypt = functions.encrypt, functions.decrypt

    def __del__(self) -> None:
        """Nobody uses the key any more: overwrite it."""
        ctypes.memset(self._context, 0, len(self._context))

    def encrypt(self, data: Readable, out: Writable, /) -> None:
        """Encrypt whole blocks."""
        source, target = _hold(data), ctypes.c_char.from_buffer(out)
        self._encrypt(self._context, memoryview(data).nbytes, ctypes.byref(target), source)

    def decrypt(self, data: Readable, out: Writable, /) -> None:
        """Decrypt whole blocks."""
        source, target = _hold(data), ctypes.c_char.from_buffer(out)
        self._decrypt(self._context, memoryview(data).nbytes, ctypes.byref(target), source)


def _hold(data: Readable) -> object:
    """Return something that a function takes for the address of data, and that keeps it there."""
    if isinstance(data, bytes):
        return data
    if memoryview(data).readonly:
        return bytes(data)  # short: vectors, or a caller without numpy
    return ctypes.byref(ctypes.c_char.from_buffer(data))


@functools.cache
def _load() -> dict[str, _Functions]:
    """Return what the library offers by our names; nothing if there is none or it is not right."""
    try:
        library = ctypes.CDLL(_FILE)
        found = {name: _find(library, name) for name in _ANSWERS}
    except (OSError, ValueError):  # no such file, no such symbol
        return {}
    return found if all(_answers(found[name], name) for name in found) else {}


def _find(library: ctypes.CDLL, name: str) -> _Functions:
    cipher = _Descriptor.in_dll(library, "nettle_" + name.replace("-", ""))
    if cipher.block_size != _BLOCK or cipher.key_size * 8 != int(name.rpartition("-")[2]):
        raise ValueError(name)
    return _Functions(
        cipher.context_size,
        _SET_KEY(cipher.set_encrypt_key),
        _CRYPT(cipher.encrypt),
        _CRYPT(cipher.decrypt),
    )


def _answers(functions: _Functions, name: str) -> bool:
    """Whether a cipher gives the known answer, both ways."""
    key, secret = _ANSWERS[name]
    cipher = NettleEcb(functions, bytes.fromhex(key))
    # Several blocks take other paths through the library than one does.
    count = 9
    text = bytearray(count * _BLOCK)
    cipher.encrypt(text, text)
    good = text.hex() == secret * count
    cipher.decrypt(text, text)
    return good and not any(text)


def make_nettle(name: str, key: bytes) -> NettleEcb | None:
    """Return a cipher under a key; None without the library.

    Args:
        name: A key of :data:`qsd.crypto.cipher.ALGORITHMS`, Serpent or Twofish.
        key: As long as the algorithm wants it.
    """
    functions = _load().get(name)
    return NettleEcb(functions, key) if functions is not None else None
