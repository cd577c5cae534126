# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Hashes and PBKDF2 (RFC 8018, "5.2. PBKDF2"), and how many iterations take a given time.

:func:`pbkdf2` may run for seconds: call it in a worker thread.  The library lets go of the
interpreter meanwhile.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Digest lengths in bytes by the names of QMP, which are those of LUKS headers as well (QMP
#: reference, "QCryptoHashAlgorithm").
DIGEST_LENGTHS: Final[Mapping[str, int]] = {
    "md5": 16,
    "sha1": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "ripemd160": 20,
}

#: Iterations of the first measurement; count.
_FIRST_TRIAL: Final = 1 << 14
#: Seconds; a measurement shorter than this is not trusted.
_LEAST_TRIAL: Final = 0.02
#: Iterations that are never exceeded in measurements; count.
_MOST: Final = 1 << 30


def is_available(name: str) -> bool:
    """Tell whether the library has a hash; ripemd160 is missing in some."""
    try:
        hashlib.new(name, usedforsecurity=False)
    except ValueError:
        return False
    return True


def digest(name: str, data: bytes) -> bytes:
    """Return the hash of `data`."""
    return hashlib.new(name, data, usedforsecurity=False).digest()


def pbkdf2(name: str, password: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """Derive `length` bytes from a password, with HMAC over the named hash."""
    return hashlib.pbkdf2_hmac(name, password, salt, iterations, length)


def count_iterations(name: str, length: int, seconds: float, clock: Callable[[], float]) -> int:
    """Return how many iterations of PBKDF2 take a given time on this machine.

    Args:
        name: The hash.
        length: Bytes that will be derived.
        seconds: The time.
        clock: Returns seconds; processor time of the calling thread is best.
    """
    if not seconds:
        return 1
    trial = _FIRST_TRIAL
    while True:
        start = clock()
        pbkdf2(name, b"password", b"salt" * 8, trial, length)
        elapsed = clock() - start
        if elapsed >= _LEAST_TRIAL or trial >= _MOST:
            return max(1, int(trial * seconds / max(elapsed, 1e-9)))
        trial *= 4
