# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Key derivation."""

from __future__ import annotations

import pytest

from qsd.crypto import kdf


@pytest.mark.parametrize(
    ("iterations", "key"),
    [
        (1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
        (4096, "4b007901b765489abead49d926f721d065a429c1"),
    ],
)
def test_rfc_6070(iterations: int, key: str) -> None:
    assert kdf.pbkdf2("sha1", b"password", b"salt", iterations, 20).hex() == key


@pytest.mark.parametrize("name", kdf.DIGEST_LENGTHS)
def test_digest_lengths(name: str) -> None:
    if not kdf.is_available(name):
        pytest.skip(f"no {name} in this library")
    assert len(kdf.digest(name, b"x")) == kdf.DIGEST_LENGTHS[name]


def test_unknown_hash() -> None:
    assert not kdf.is_available("nonsense")


def test_iterations_grow_with_time() -> None:
    """The clock jumps at each look, so that a measurement seems to take as long as we like."""
    looks = iter(range(100))
    assert kdf.count_iterations("sha256", 20, 2.0, lambda: float(next(looks))) == 1 << 15
    looks = iter(range(100))
    assert kdf.count_iterations("sha256", 20, 0.0, lambda: float(next(looks))) == 1
