# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Twofish (B. Schneier et al., "Twofish: A 128-Bit Block Cipher", 1998).

The S-boxes depend on the key.  For each key they are computed once, together with the MDS matrix,
as four tables of 256 words ("7.3.1 Implementation options", "Full keying").  Many blocks are done
with numpy, few with integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.crypto.buffers import load_numpy
from qsd.crypto.straightline import BLOCK, LANES, pieces

if TYPE_CHECKING:
    from qsd.crypto.buffers import Readable, Writable

_WORD: Final = 0xFFFFFFFF
_ROUNDS: Final = 16
#: "4.3.5 The Permutations q0 and q1": the 4-bit tables t0 to t3 of each.
_Q_TABLES: Final = (
    ("817D6F320B59ECA4", "ECB81235F4A6709D", "BA5E6D90C8F32471", "D7F4126E9B3085CA"),
    ("28BDF76E31940AC5", "1E2B4C376DA5F908", "4C75169A0ED82B3F", "B951C3DE647F208A"),
)
#: "4.2 MDS matrices"; over the polynomial x^8 + x^6 + x^5 + x^3 + 1.
_MDS: Final = (
    (0x01, 0xEF, 0x5B, 0x5B),
    (0x5B, 0xEF, 0xEF, 0x01),
    (0xEF, 0x5B, 0x01, 0xEF),
    (0xEF, 0x01, 0xEF, 0x5B),
)
_MDS_POLYNOMIAL: Final = 0x169
#: "4.3 The Key Schedule": the matrix RS; over the polynomial x^8 + x^6 + x^3 + x^2 + 1.
_RS: Final = (
    (0x01, 0xA4, 0x55, 0x87, 0x5A, 0x58, 0xDB, 0x9E),
    (0xA4, 0x56, 0x82, 0xF3, 0x1E, 0xC6, 0x68, 0xE5),
    (0x02, 0xA1, 0xFC, 0xC1, 0x47, 0xAE, 0x3D, 0x19),
    (0xA4, 0x55, 0x87, 0x5A, 0x58, 0xDB, 0x9E, 0x03),
)
_RS_POLYNOMIAL: Final = 0x14D
#: "4.3.2 The Function h": for each byte, which permutations it passes, the last one first.
_H_STEPS: Final = ((1, 0, 0, 1, 1), (0, 0, 1, 1, 0), (1, 1, 0, 0, 0), (0, 1, 1, 0, 1))
#: Blocks; fewer are done one by one.
_FEW_BLOCKS: Final = 8


def _permutation(tables: tuple[str, ...]) -> tuple[int, ...]:
    t0, t1, t2, t3 = ([int(digit, 16) for digit in table] for table in tables)

    def mix(a: int, b: int) -> tuple[int, int]:
        return a ^ b, a ^ (b >> 1 | (b & 1) << 3) ^ (a << 3 & 15)

    result = []
    for value in range(256):
        a, b = mix(value >> 4, value & 15)
        a, b = mix(t0[a], t1[b])
        result.append(t3[b] << 4 | t2[a])
    return tuple(result)


_Q: Final = tuple(_permutation(tables) for tables in _Q_TABLES)


def _multiply(one: int, other: int, polynomial: int) -> int:
    result = 0
    while other:
        if other & 1:
            result ^= one
        one <<= 1
        if one & 0x100:
            one ^= polynomial
        other >>= 1
    return result


def _matrix_columns() -> tuple[tuple[int, ...], ...]:
    """For each byte position: the word that each value of the byte adds to the product."""
    return tuple(
        tuple(
            sum(
                _multiply(_MDS[row][column], value, _MDS_POLYNOMIAL) << (8 * row)
                for row in range(4)
            )
            for value in range(256)
        )
        for column in range(4)
    )


_COLUMNS: Final = _matrix_columns()


def _h_byte(position: int, value: int, words: list[bytes]) -> int:
    """Pass one byte through permutations and key bytes; return what it adds to h."""
    steps = _H_STEPS[position]
    for index in reversed(range(len(words))):
        value = _Q[steps[index + 1]][value] ^ words[index][position]
    return _COLUMNS[position][_Q[steps[0]][value]]


def _h(value: int, words: list[bytes]) -> int:
    """Compute h of a word whose four bytes are all `value`."""
    result = 0
    for position in range(4):
        result ^= _h_byte(position, value, words)
    return result


def _rotate(word: int, count: int) -> int:
    """Rotate to the left."""
    return ((word << count) & _WORD) | (word >> (32 - count))


class _Arrays:
    """Twofish with numpy, all blocks at once; every operation is from buffers into buffers.

    The tables of two bytes each are joined: two lookups for a word instead of four.
    """

    __slots__ = ("_buffers", "_keys", "_lower", "_np", "_upper")

    def __init__(self, keys: list[int], tables: list[list[int]], numpy: Any) -> None:
        self._np = numpy
        self._keys = [numpy.uint32(key) for key in keys]
        t0, t1, t2, t3 = (numpy.array(table, numpy.uint32) for table in tables)
        self._lower = (t1[:, None] ^ t0[None, :]).reshape(-1)
        self._upper = (t3[:, None] ^ t2[None, :]).reshape(-1)
        self._buffers = numpy.zeros((8, LANES), "<u4")

    def work(self, source: Any, target: Any, *, encrypting: bool) -> None:
        """Encrypt or decrypt rows of four words, at most LANES; the arrays may be the same."""
        np, keys = self._np, self._keys
        count = len(source)
        buffers = [buffer[:count] for buffer in self._buffers]
        words, scratch = buffers[:4], buffers[4:]
        first, last = (keys[0:4], keys[4:8]) if encrypting else (keys[4:8], keys[0:4])
        for index, key in enumerate(first):
            np.bitwise_xor(source[:, index], key, words[index])
        rounds = self._encrypt if encrypting else self._decrypt
        for index, (word, key) in enumerate(zip(rounds(words, scratch), last, strict=True)):
            np.bitwise_xor(word, key, target[:, index])

    def _look_up(self, word: Any, result: Any, scratch: Any) -> None:
        """Compute g of a word."""
        np = self._np
        halves = word.view("<u2").reshape(-1, 2)
        # Every index is within the table, so it does not matter what is done to others, but this
        # is the way without a check and without a copy.
        np.take(self._lower, halves[:, 0], out=result, mode="wrap")
        np.take(self._upper, halves[:, 1], out=scratch, mode="wrap")
        np.bitwise_xor(result, scratch, result)

    def _turn(self, word: Any, count: int, result: Any, scratch: Any) -> None:
        """Rotate a word to the left; it may be its own result."""
        np = self._np
        np.left_shift(word, np.uint32(count), scratch)
        np.right_shift(word, np.uint32(32 - count), result)
        np.bitwise_or(result, scratch, result)

    def _mix(self, a: Any, b: Any, index: int, scratch: list[Any]) -> tuple[Any, Any]:
        """Compute F of two words ("4.1 The Function F")."""
        np, keys = self._np, self._keys
        f0, f1, turned, spare = scratch
        self._look_up(a, f0, spare)
        self._turn(b, 8, turned, spare)
        self._look_up(turned, f1, spare)
        np.add(f0, f1, f0)
        np.add(f1, f0, f1)
        np.add(f0, keys[index], f0)
        np.add(f1, keys[index + 1], f1)
        return f0, f1

    def _encrypt(self, words: list[Any], scratch: list[Any]) -> tuple[Any, ...]:
        np = self._np
        a, b, c, d = words
        for index in range(8, 8 + 2 * _ROUNDS, 2):
            f0, f1 = self._mix(a, b, index, scratch)
            np.bitwise_xor(c, f0, c)
            self._turn(c, 31, c, scratch[3])
            self._turn(d, 1, d, scratch[3])
            np.bitwise_xor(d, f1, d)
            a, b, c, d = c, d, a, b
        return c, d, a, b

    def _decrypt(self, words: list[Any], scratch: list[Any]) -> tuple[Any, ...]:
        np = self._np
        c, d, a, b = words
        for index in range(6 + 2 * _ROUNDS, 6, -2):
            a, b, c, d = c, d, a, b
            f0, f1 = self._mix(a, b, index, scratch)
            self._turn(c, 1, c, scratch[3])
            np.bitwise_xor(c, f0, c)
            np.bitwise_xor(d, f1, d)
            self._turn(d, 31, d, scratch[3])
        return a, b, c, d


class Twofish:
    """Twofish under one key; see `cipher.Ecb`."""

    __slots__ = ("_arrays", "_keys", "_tables")

    def __init__(self, key: bytes) -> None:
        words = [key[at : at + 4] for at in range(0, len(key), 4)]
        even, odd = words[0::2], words[1::2]
        self._keys: list[int] = []
        for index in range(_ROUNDS + 4):
            a = _h(2 * index, even)
            b = _rotate(_h(2 * index + 1, odd), 8)
            self._keys.append((a + b) & _WORD)
            self._keys.append(_rotate((a + 2 * b) & _WORD, 9))
        mixed = [_mix_key(key[at : at + 8]) for at in range(0, len(key), 8)]
        mixed.reverse()
        self._tables = [
            [_h_byte(position, value, mixed) for value in range(256)] for position in range(4)
        ]
        np = load_numpy()
        self._arrays = None if np is None else _Arrays(self._keys, self._tables, np)

    def encrypt(self, data: Readable, out: Writable, /) -> None:
        """Encrypt whole blocks."""
        self._work(data, out, encrypting=True)

    def decrypt(self, data: Readable, out: Writable, /) -> None:
        """Decrypt whole blocks."""
        self._work(data, out, encrypting=False)

    def _work(self, data: Readable, out: Writable, *, encrypting: bool) -> None:
        count = len(data) // BLOCK
        if self._arrays is None or count < _FEW_BLOCKS:
            self._work_slowly(data, out, count, encrypting=encrypting)
            return
        work = self._arrays.work
        for source, target in pieces(data, out):
            work(source, target, encrypting=encrypting)

    def _work_slowly(self, data: Readable, out: Writable, count: int, *, encrypting: bool) -> None:
        """Work with integers, block by block."""
        rounds = self._encrypt if encrypting else self._decrypt
        source = bytes(data)
        result = bytearray()
        for at in range(0, count * BLOCK, BLOCK):
            a, b, c, d = (
                int.from_bytes(source[start : start + 4], "little")
                for start in range(at, at + BLOCK, 4)
            )
            for word in rounds(a, b, c, d, self._tables):
                result += word.to_bytes(4, "little")
        out[: count * BLOCK] = result

    @staticmethod
    def _g(word: int, tables: list[list[int]]) -> int:
        return (
            tables[0][word & 255]
            ^ tables[1][word >> 8 & 255]
            ^ tables[2][word >> 16 & 255]
            ^ tables[3][word >> 24]
        )

    def _encrypt(self, a: int, b: int, c: int, d: int, tables: list[list[int]]) -> tuple[int, ...]:
        keys, g = self._keys, self._g
        a, b, c, d = a ^ keys[0], b ^ keys[1], c ^ keys[2], d ^ keys[3]
        for index in range(8, 8 + 2 * _ROUNDS, 2):
            t0, t1 = g(a, tables), g(_rotate(b, 8), tables)
            f0 = (t0 + t1 + keys[index]) & _WORD
            f1 = (t0 + t1 + t1 + keys[index + 1]) & _WORD
            a, b, c, d = _rotate(c ^ f0, 31), _rotate(d, 1) ^ f1, a, b
        return c ^ keys[4], d ^ keys[5], a ^ keys[6], b ^ keys[7]

    def _decrypt(self, c: int, d: int, a: int, b: int, tables: list[list[int]]) -> tuple[int, ...]:
        keys, g = self._keys, self._g
        c, d, a, b = c ^ keys[4], d ^ keys[5], a ^ keys[6], b ^ keys[7]
        for index in range(6 + 2 * _ROUNDS, 6, -2):
            a, b, c, d = c, d, a, b
            t0, t1 = g(a, tables), g(_rotate(b, 8), tables)
            f0 = (t0 + t1 + keys[index]) & _WORD
            f1 = (t0 + t1 + t1 + keys[index + 1]) & _WORD
            c, d = _rotate(c, 1) ^ f0, _rotate(d ^ f1, 31)
        return a ^ keys[0], b ^ keys[1], c ^ keys[2], d ^ keys[3]


def _mix_key(part: bytes) -> bytes:
    """Multiply eight bytes of the key with the matrix RS."""
    result = bytearray()
    for row in _RS:
        value = 0
        for factor, byte in zip(row, part, strict=True):
            value ^= _multiply(factor, byte, _RS_POLYNOMIAL)
        result.append(value)
    return bytes(result)
