# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""LUKS headers: records, key slots, and headers that somebody damaged on purpose."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.crypto import luks
from qsd.crypto.luks import Header, make_header, store, unlock
from qsd.crypto.volume import CipherSpec
from qsd.errors import QmpError

SPEC = CipherSpec("aes-128", "cbc", "essiv", "sha256")


def clock() -> Callable[[], float]:
    """Make a clock on which everything takes a second."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def new_header(spec: CipherSpec = SPEC, hash_spec: str = "sha256") -> tuple[Header, bytes]:
    key = os.urandom(luks.key_length(spec))
    return make_header(spec, hash_spec, key, "u-u-i-d", 0, os.urandom, clock()), key


def test_sizes() -> None:
    """LUKS On-Disk Format Specification, "Figure 4: PHDR layout": 592 bytes."""
    assert luks.HEADER_LENGTH == 592
    assert luks.payload_offset(CipherSpec("aes-256", "xts", "plain64", None)) == 2068480
    assert luks.payload_offset(CipherSpec("aes-128", "cbc", "plain", None)) == 528384


@pytest.mark.parametrize("spec", [
    SPEC,
    CipherSpec("aes-256", "xts", "plain64", None),
    CipherSpec("cast5-128", "cbc", "plain", None),
    CipherSpec("aes-192", "cbc", "plain", None),
])  # fmt: skip
def test_lock_and_unlock(spec: CipherSpec) -> None:
    header, key = new_header(spec, "sha1")
    slot, material = store(header, 3, key, b"open", 0, os.urandom, clock())
    header.slots[3] = slot
    assert slot.iterations == luks.MIN_ITERATIONS
    assert Header.parse(header.pack()).spec() == spec
    assert unlock(header, 3, material[: header.material_length], b"open") == key
    assert unlock(header, 3, material[: header.material_length], b"Open") is None
    assert [index for index, one in enumerate(header.slots) if one.is_active] == [3]


def test_round_trip() -> None:
    header, _ = new_header()
    packed = header.pack()
    assert len(packed) == luks.HEADER_LENGTH
    again = Header.parse(packed)
    assert again.pack() == packed
    assert (again.uuid, again.cipher_mode) == ("u-u-i-d", "cbc-essiv:sha256")


DAMAGE = [
    (0, b"X", "Volume is not in LUKS format"),
    (6, b"\0\2", "LUKS version 2 is not supported"),
    (8, b"x" * 32, "LUKS header cipher name is not NUL terminated"),
    (40, b"x" * 32, "LUKS header cipher mode is not NUL terminated"),
    (72, b"x" * 32, "LUKS header hash spec is not NUL terminated"),
    (8, b"foo\0", "Algorithm 'foo' with key size 16 bytes not supported"),
    (40, b"ecb\0", "Unexpected cipher mode string format 'ecb'"),
    (40, b"foo-plain\0", "Cipher mode 'foo' not supported"),
    (40, b"cbc-bar\0", "IV generator 'bar' not supported"),
    (40, b"cbc-essiv\0", "Missing IV generator hash specification"),
    (40, b"cbc-essiv:sha1\0", "No AES cipher with key size 20 available"),
    (40, b"cbc-plain:foo\0", "Hash algorithm 'foo' not supported"),
    (72, b"foo\0", "Hash algorithm 'foo' not supported"),
    (104, b"\0\0\0\1", "LUKS payload is overlapping with the header"),
    (104, bytes(64), "LUKS payload is overlapping with the header"),
    (104, b"\0\0\0\x08", "Keyslot 0 is overlapping with the encrypted payload"),
    (108, b"\0\0\0\x07", "Algorithm 'aes' with key size 7 bytes not supported"),
    (164, b"\0\0\0\0", "LUKS key iteration count is zero"),
    (164, b"\xff\0\0\0", "LUKS iteration count 4278190080 is too large"),
    (208, b"\0\0\0\0", "Keyslot 0 state (active/disable) is corrupted"),
    (208, b"\0\xac\x71\xf3", "Keyslot 0 iteration count is zero"),
    (252, b"\xff\xff\xff\xff", "Keyslot 0 is corrupted (stripes -1 != 4000)"),
    (248, b"\0\0\0\1", "Keyslot 0 is overlapping with the LUKS header"),
    (296, b"\0\0\0\x09", "Keyslots 0 and 1 are overlapping in the header"),
]


@pytest.mark.parametrize(("at", "data", "text"), DAMAGE)
def test_damage(at: int, data: bytes, text: str) -> None:
    packed = bytearray(new_header()[0].pack())
    packed[at : at + len(data)] = data
    with pytest.raises(QmpError) as caught:
        Header.parse(bytes(packed)).spec()
    assert caught.value.desc == text


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, luks.HEADER_LENGTH - 1), st.integers(1, 255)),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_flips_are_refused_or_harmless(flips: list[tuple[int, int]]) -> None:
    """Whatever a header says, it is refused, or what it asks for is within bounds."""
    packed = bytearray(FLIPPED)
    for at, mask in flips:
        packed[at] ^= mask
    try:
        header = Header.parse(bytes(packed))
        header.spec()
    except QmpError:
        return
    assert header.key_bytes <= luks.MAX_KEY_LENGTH
    assert header.mk_digest_iterations <= luks.MAX_ITERATIONS
    for slot in header.slots:
        assert not slot.is_active or slot.iterations <= luks.MAX_ITERATIONS
        assert slot.offset + header.material_length <= header.payload_offset


FLIPPED = new_header()[0].pack()


def test_check_spec() -> None:
    with pytest.raises(QmpError, match=r"^Unsupported cipher mode xts$"):
        luks.check_spec(CipherSpec("cast5-128", "xts", "plain64", None))
    with pytest.raises(QmpError, match=r"^Cipher cast5-128 not supported with essiv$"):
        luks.check_spec(CipherSpec("cast5-128", "cbc", "essiv", "md5"))
