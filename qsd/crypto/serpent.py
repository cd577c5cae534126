# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Serpent (R. Anderson, E. Biham, L. Knudsen, "Serpent: A Proposal for the Advanced Encryption
Standard", 1998).

The cipher was designed for *bitslicing* ("2. The Cipher", "An efficient implementation"): four
words hold one bit of 32 S-boxes each, so an S-box is a formula on whole words.  Here a "word" is
one word of all blocks of a request side by side, either a numpy array or one long integer, and the
formulas are written once for both.

The formula of an S-box is its algebraic normal form, computed from the table in the paper.
"""

from __future__ import annotations

from collections import Counter
from functools import reduce
from itertools import combinations
from operator import xor
from typing import TYPE_CHECKING, Any, Final, Protocol

from qsd.crypto.buffers import load_numpy
from qsd.crypto.straightline import BLOCK, WORD, pieces, trace
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.crypto.buffers import Readable, Writable
    from qsd.crypto.straightline import Program

#: "Appendix A.5: S-boxes".
_TABLES: Final = (
    (3, 8, 15, 1, 10, 6, 5, 11, 14, 13, 4, 2, 7, 0, 9, 12),
    (15, 12, 2, 7, 9, 0, 5, 10, 1, 11, 14, 8, 6, 13, 3, 4),
    (8, 6, 7, 9, 3, 12, 10, 15, 13, 1, 14, 4, 0, 11, 5, 2),
    (0, 15, 11, 8, 12, 9, 6, 3, 13, 1, 2, 4, 10, 7, 5, 14),
    (1, 15, 8, 3, 12, 0, 11, 6, 2, 5, 4, 10, 9, 14, 7, 13),
    (15, 5, 2, 11, 4, 10, 9, 12, 0, 3, 14, 8, 13, 6, 7, 1),
    (7, 2, 12, 5, 8, 4, 6, 11, 14, 9, 1, 15, 13, 3, 10, 0),
    (1, 13, 15, 0, 14, 8, 2, 11, 7, 4, 12, 10, 9, 3, 5, 6),
)
_ROUNDS: Final = 32
#: The fractional part of the golden ratio ("3. The Key Schedule").
_PHI: Final = 0x9E3779B9
_WORD: Final = 0xFFFFFFFF
#: Blocks; fewer are done with integers, more with numpy.
_FEW_BLOCKS: Final = 32


class _Box(NamedTuple):
    """An S-box as a formula on whole words.

    Words have numbers: 1, 2, 4, 8 are the inputs, sums of those their products, and 16 and more
    what `sums` makes.

    Attributes:
        products: Numbers of the products that are needed, each behind those it is made of.
        sums: Pairs of words whose sum is the next word.
        outputs: For each output bit, the words to be added.
        inverted: For each output bit, whether one is added.
    """

    products: tuple[int, ...]
    sums: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, ...], ...]
    inverted: tuple[bool, ...]


def _make_box(table: tuple[int, ...]) -> _Box:
    """Find the algebraic normal form of each output bit, by the Moebius transform."""
    outputs: list[set[int]] = []
    inverted = []
    for bit in range(4):
        values = [entry >> bit & 1 for entry in table]
        for step in (1, 2, 4, 8):
            for index in range(16):
                if index & step:
                    values[index] ^= values[index ^ step]
        outputs.append({index for index in range(1, 16) if values[index]})
        inverted.append(bool(values[0]))
    needed = set().union(*outputs)
    for product in sorted(needed, reverse=True):
        needed.add(_factor(product))
    sums = _share(outputs)
    return _Box(
        tuple(sorted(product for product in needed if product & (product - 1))),
        sums,
        tuple(tuple(sorted(output)) for output in outputs),
        tuple(inverted),
    )


def _factor(product: int) -> int:
    """Return a product without its highest factor."""
    return product ^ 1 << (product.bit_length() - 1) or product


def _share(outputs: list[set[int]]) -> tuple[tuple[int, int], ...]:
    """Compute once the sums of two words that several outputs have in common, until none is left.

    Always taking the most common one first is not the best there is, but near.
    """
    sums: list[tuple[int, int]] = []
    while True:
        pairs = Counter(pair for output in outputs for pair in combinations(sorted(output), 2))
        pair, count = pairs.most_common(1)[0]
        if count < 2:
            return tuple(sums)
        name = 16 + len(sums)
        sums.append(pair)
        for output in outputs:
            if output.issuperset(pair):
                output.difference_update(pair)
                output.add(name)


def _inverse(table: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(table.index(value) for value in range(16))


_SBOXES: Final = tuple(_make_box(table) for table in _TABLES)
_INVERSES: Final = tuple(_make_box(_inverse(table)) for table in _TABLES)

_Words = tuple[Any, Any, Any, Any]


class _Lanes(Protocol):
    """Words of many blocks side by side."""

    ones: Any

    def rotate(self, word: Any, count: int) -> Any:
        """Rotate each 32-bit lane to the left."""

    def shift(self, word: Any, count: int) -> Any:
        """Shift each 32-bit lane to the left."""

    def spread(self, value: int) -> Any:
        """Return a word with `value` in each lane."""


class _ArrayLanes:
    """Lanes are elements of arrays."""

    __slots__ = ("ones",)

    def __init__(self) -> None:
        self.ones: Any = _WORD

    def rotate(self, word: Any, count: int) -> Any:
        return (word << count) | (word >> (32 - count))

    def shift(self, word: Any, count: int) -> Any:
        return word << count

    def spread(self, value: int) -> Any:
        return value


class _IntegerLanes:
    """Lanes are 32-bit pieces of one long integer."""

    __slots__ = ("_unit", "ones")

    def __init__(self, count: int) -> None:
        self._unit = int.from_bytes(b"\1\0\0\0" * count, "little")
        self.ones: Any = self._unit * _WORD

    def rotate(self, word: Any, count: int) -> Any:
        low = self._unit * ((1 << count) - 1)
        return ((word << count) & (self.ones ^ low)) | ((word >> (32 - count)) & low)

    def shift(self, word: Any, count: int) -> Any:
        return (word << count) & (self.ones ^ (self._unit * ((1 << count) - 1)))

    def spread(self, value: int) -> Any:
        return self._unit * value


def _substitute(box: _Box, words: _Words, ones: Any) -> _Words:
    known = {1 << index: word for index, word in enumerate(words)}
    for product in box.products:
        known[product] = known[_factor(product)] & known[product ^ _factor(product)]
    for name, (one, other) in enumerate(box.sums, 16):
        known[name] = known[one] ^ known[other]
    outputs = []
    for terms, inverted in zip(box.outputs, box.inverted, strict=True):
        word = reduce(xor, [known[term] for term in terms])
        outputs.append(word ^ ones if inverted else word)
    return outputs[0], outputs[1], outputs[2], outputs[3]


def _transform(words: _Words, lanes: _Lanes) -> _Words:
    """Mix the words ("2. The Cipher", "Linear Transformation")."""
    a, b, c, d = words
    rotate, shift = lanes.rotate, lanes.shift
    a, c = rotate(a, 13), rotate(c, 3)
    b, d = rotate(b ^ a ^ c, 1), rotate(d ^ c ^ shift(a, 3), 7)
    a, c = rotate(a ^ b ^ d, 5), rotate(c ^ d ^ shift(b, 7), 22)
    return a, b, c, d


def _transform_back(words: _Words, lanes: _Lanes) -> _Words:
    a, b, c, d = words
    rotate, shift = lanes.rotate, lanes.shift
    a, c = rotate(a, 27) ^ b ^ d, rotate(c, 10) ^ d ^ shift(b, 7)
    b, d = rotate(b, 31) ^ a ^ c, rotate(d, 25) ^ c ^ shift(a, 3)
    return rotate(a, 19), b, rotate(c, 29), d


def _expand(key: bytes) -> tuple[tuple[int, ...], ...]:
    """Return the 33 round keys, four words each ("3. The Key Schedule")."""
    padded = key if len(key) == 32 else (key + b"\1").ljust(32, b"\0")
    words = [int.from_bytes(padded[at : at + 4], "little") for at in range(0, 32, 4)]
    for index in range(4 * (_ROUNDS + 1)):
        mixed = words[index] ^ words[index + 3] ^ words[index + 5] ^ words[index + 7]
        mixed ^= _PHI ^ index
        words.append((mixed << 11 | mixed >> 21) & _WORD)
    words = words[8:]
    return tuple(
        _substitute(
            _SBOXES[(3 - index) % 8],
            (words[4 * index], words[4 * index + 1], words[4 * index + 2], words[4 * index + 3]),
            _WORD,
        )
        for index in range(_ROUNDS + 1)
    )


class Serpent:
    """Serpent under one key; see `cipher.Ecb`."""

    __slots__ = ("_keys", "_np", "_programs")

    def __init__(self, key: bytes) -> None:
        self._keys = _expand(key)
        self._np = load_numpy()
        # By whether they encrypt.
        self._programs: dict[bool, Program] = {}

    def encrypt(self, data: Readable, out: Writable, /) -> None:
        """Encrypt whole blocks."""
        self._work(data, out, encrypting=True)

    def decrypt(self, data: Readable, out: Writable, /) -> None:
        """Decrypt whole blocks."""
        self._work(data, out, encrypting=False)

    def _work(self, data: Readable, out: Writable, *, encrypting: bool) -> None:
        count = len(data) // BLOCK
        np = self._np
        if np is None or count < _FEW_BLOCKS:
            self._work_slowly(data, out, count, encrypting=encrypting)
            return
        program = self._programs.get(encrypting)
        if program is None:
            rounds = self._encrypt if encrypting else self._decrypt
            lanes = _ArrayLanes()
            program = trace(lambda words: rounds(words, lanes), np)
            self._programs[encrypting] = program
        for source, target in pieces(data, out):
            program.run(source, target)

    def _work_slowly(self, data: Readable, out: Writable, count: int, *, encrypting: bool) -> None:
        """Use long integers, which cost less for few blocks."""
        rounds = self._encrypt if encrypting else self._decrypt
        source = memoryview(bytes(data)).cast("I")
        a, b, c, d = (int.from_bytes(source[index::4].tobytes(), "little") for index in range(4))
        result = bytearray(count * BLOCK)
        columns_out = memoryview(result).cast("I")
        for index, word in enumerate(rounds((a, b, c, d), _IntegerLanes(count))):
            columns_out[index::4] = memoryview(word.to_bytes(count * WORD, "little")).cast("I")
        out[: count * BLOCK] = result

    def _mix_key(self, words: _Words, index: int, lanes: _Lanes) -> _Words:
        a, b, c, d = words
        key = self._keys[index]
        spread = lanes.spread
        return a ^ spread(key[0]), b ^ spread(key[1]), c ^ spread(key[2]), d ^ spread(key[3])

    def _encrypt(self, words: _Words, lanes: _Lanes) -> _Words:
        for index in range(_ROUNDS):
            words = self._mix_key(words, index, lanes)
            words = _substitute(_SBOXES[index % 8], words, lanes.ones)
            if index < _ROUNDS - 1:
                words = _transform(words, lanes)
        return self._mix_key(words, _ROUNDS, lanes)

    def _decrypt(self, words: _Words, lanes: _Lanes) -> _Words:
        words = self._mix_key(words, _ROUNDS, lanes)
        for index in reversed(range(_ROUNDS)):
            if index < _ROUNDS - 1:
                words = _transform_back(words, lanes)
            words = _substitute(_INVERSES[index % 8], words, lanes.ones)
            words = self._mix_key(words, index, lanes)
        return words
