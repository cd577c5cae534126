# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sizes in the form people write them: ``64k``, ``1.5G``, ``0x10000``.

The rules are those of the command line (qemu-storage-daemon(1), "Description": sizes take the usual
suffixes): ``b k m g t p e`` in either case are powers of 1024 bytes, a fraction needs a suffix
larger than one byte and is rounded to whole bytes, a hexadecimal number takes no fraction.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

#: Powers of two; the place of a suffix is its power of 1024.
_SUFFIXES = "BKMGTPE"

_DIGITS = "0123456789"
_HEX_DIGITS = "0123456789abcdefABCDEF"

#: Largest size, bytes; exclusive.  Sizes are unsigned 64-bit numbers.
SIZE_LIMIT = 1 << 64


class SizeRangeError(ValueError):
    """The text is a well-formed size that does not fit 64 bits."""


def parse_size(text: str, default_suffix: str = "B") -> int:
    """Return the number of bytes that `text` means.

    Args:
        text: Digits, an optional fraction, an optional suffix; leading white space is skipped.
        default_suffix: The suffix that counts where `text` has none.

    Raises:
        SizeRangeError: The size is too large.
        ValueError: It is not a size.
    """
    text = text.lstrip(" \t\n\r\f\v")
    if text[:2] in ("0x", "0X"):
        digits, rest = _span(text[2:], _HEX_DIGITS)
        if not digits:
            raise ValueError(text)
        whole, numerator, denominator = int(digits, 16), 0, 1
        # In hexadecimal "b" and "e" are digits, and the other suffixes are taken as they stand.
    else:
        text = text.removeprefix("+")
        digits, rest = _span(text, _DIGITS)
        fraction = ""
        if rest[:1] == ".":
            fraction, rest = _span(rest[1:], _DIGITS)
        if not digits:
            raise ValueError(text)
        whole = int(digits)
        numerator, denominator = int(fraction or "0"), 10 ** len(fraction)
    suffix = (rest or default_suffix).upper()
    power = _SUFFIXES.find(suffix) if len(suffix) == 1 else -1
    if power < 0 or (numerator and power == 0):
        raise ValueError(text)
    unit = 1 << (10 * power)
    size = whole * unit + (2 * numerator * unit + denominator) // (2 * denominator)
    if size >= SIZE_LIMIT:
        raise SizeRangeError(text)
    return size


def _span(text: str, alphabet: str) -> tuple[str, str]:
    """Split `text` after its longest start that consists of `alphabet`."""
    rest = text.lstrip(alphabet)
    return text[: len(text) - len(rest)], rest


def format_size(size: int) -> str:
    """Return `size` in the largest binary unit of which there is at least one, as "1.5 KiB".

    Three significant digits, as ``qemu-img info`` prints sizes.
    """
    power = 0
    value = float(size)
    while value >= 1000 and power < len(_SUFFIXES) - 1:
        value /= 1024
        power += 1
    unit = "B" if power == 0 else f"{_SUFFIXES[power]}iB"
    return f"{value:.3g} {unit}"
