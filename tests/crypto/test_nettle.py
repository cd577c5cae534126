# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Serpent and Twofish of a library: like our own, and left alone where it is not right."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from qsd.crypto import nettle
from qsd.crypto.cipher import ALGORITHMS, SLACK, Ecb, make_ecb
from qsd.crypto.nettle import NettleEcb, make_nettle
from qsd.crypto.serpent import Serpent
from qsd.crypto.twofish import Twofish

NAMES = [name for name in ALGORITHMS if name.startswith(("serpent", "twofish"))]
needs_library = pytest.mark.skipif(
    make_nettle("serpent-128", bytes(16)) is None, reason="the library is not installed here"
)


@pytest.fixture
def load_again() -> Iterator[None]:
    """Let a test meet another library, and the tests behind it the right one."""
    nettle._load.cache_clear()
    yield
    nettle._load.cache_clear()


def own(name: str, key: bytes) -> Ecb:
    return (Serpent if name.startswith("serpent") else Twofish)(key)


@needs_library
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("blocks", [1, 2, 7, 100])
def test_like_our_own(name: str, blocks: int) -> None:
    key = os.urandom(ALGORITHMS[name].key_length)
    cipher = make_ecb(name, key)
    assert isinstance(cipher, NettleEcb)
    data = os.urandom(blocks * 16)
    out, expected = bytearray(len(data) + SLACK), bytearray(len(data) + SLACK)
    cipher.encrypt(data, out)
    own(name, key).encrypt(data, expected)
    assert out == expected
    cipher.decrypt(memoryview(bytes(out))[: len(data)], out)
    assert out[: len(data)] == data


@needs_library
def test_part_of_a_buffer() -> None:
    """What lies around the text is left alone."""
    cipher = make_ecb("serpent-256", bytes(32))
    buffer = bytearray(os.urandom(100))
    before = bytes(buffer)
    cipher.encrypt(memoryview(buffer)[10:42], memoryview(buffer)[50:])
    assert buffer[:50] == before[:50]
    assert buffer[82:] == before[82:]
    cipher.decrypt(memoryview(buffer)[50:82], memoryview(buffer)[50:])
    assert buffer[50:82] == before[10:42]


@needs_library
def test_key_schedule_is_overwritten() -> None:
    cipher = make_ecb("twofish-128", os.urandom(16))
    assert isinstance(cipher, NettleEcb)
    context = cipher._context
    assert any(context.raw)
    del cipher
    assert not any(context.raw)


@pytest.mark.parametrize("file", ["libnettle-is-not-here.so.8", "libc.so.6"])
def test_without_the_library(monkeypatch: pytest.MonkeyPatch, load_again: None, file: str) -> None:
    monkeypatch.setattr(nettle, "_FILE", file)
    assert isinstance(make_ecb("serpent-192", bytes(24)), Serpent)
    assert isinstance(make_ecb("twofish-256", bytes(32)), Twofish)


@needs_library
def test_wrong_answers(monkeypatch: pytest.MonkeyPatch, load_again: None) -> None:
    answers = {**nettle._ANSWERS, "twofish-192": ("00" * 24, "00" * 16)}
    monkeypatch.setattr(nettle, "_ANSWERS", answers)
    assert isinstance(make_ecb("serpent-128", bytes(16)), Serpent)


@needs_library
def test_wrong_sizes(monkeypatch: pytest.MonkeyPatch, load_again: None) -> None:
    """A descriptor that does not say what is expected is that of something else."""
    in_dll = nettle._Descriptor.in_dll

    class Changed(nettle._Descriptor):
        @classmethod
        def in_dll(cls, library: ctypes.CDLL, name: str) -> nettle._Descriptor:
            found = nettle._Descriptor.from_buffer_copy(in_dll(library, name))
            found.block_size = 8
            return found

    monkeypatch.setattr(nettle, "_Descriptor", Changed)
    assert isinstance(make_ecb("serpent-128", bytes(16)), Serpent)
