# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Changing the size of a regular file, with or without reserving space (may block).

QMP reference, "PreallocMode".
"""

from __future__ import annotations

import os
from typing import Final

from qsd.aio.fdio import fallocate, write_full
from qsd.errors import QmpError, describe
from qsd.util.ranges import align_down
from qsd.util.zeroes import ZERO_CHUNK, ZEROES

#: Bytes; what is written to the start of a file that grows from nothing.
_FIRST_BLOCK: Final = 4096
_SECTOR: Final = 512
#: Sizes the kernel has no number for.
_OFF_T_LIMIT: Final = 1 << 63


def resize(fd: int, old: int, new: int, prealloc: str) -> None:
    """Give a file a new size.

    Args:
        fd: A writable descriptor.
        old: The size now, bytes.
        new: The size wanted, bytes.
        prealloc: A PreallocMode value, how the new part is reserved.

    Raises:
        QmpError: With the text a user should read; the size is `old` again if that is possible.
    """
    if prealloc != "off" and prealloc in ("falloc", "full") and new < old:
        raise QmpError("Preallocation can't be used for shrinking files")
    if prealloc == "falloc":
        _reserve(fd, old, new)
    elif prealloc == "full":
        _write_zeroes(fd, old, new)
    elif prealloc == "off":
        _set_size(fd, new)
        if not old and new:
            _allocate_first_block(fd, new)
    else:
        raise QmpError(f"Unsupported preallocation mode: {prealloc}")


def _set_size(fd: int, size: int) -> None:
    try:
        # The size arrives unsigned; the kernel takes it as signed and refuses what is negative.
        os.ftruncate(fd, size if size < _OFF_T_LIMIT else -1)
    except OSError as exc:
        raise QmpError(f"Could not resize file: {describe(exc)}") from exc


def _allocate_first_block(fd: int, size: int) -> None:
    """Make sure that reads of the first block reach the disk.

    Some file systems answer reads from holes whatever their alignment, and then a later opening
    with O_DIRECT could not find out the alignment that matters.
    """
    length = min(_FIRST_BLOCK, align_down(size, _SECTOR))
    try:
        write_full(fd, [ZEROES[:length]], 0)
    except OSError:
        pass  # no harm done: it would only have helped to probe


def _reserve(fd: int, old: int, new: int) -> None:
    if new == old:
        return
    try:
        if new >= _OFF_T_LIMIT:
            raise OverflowError
        fallocate(fd, 0, old, new - old)
    except OSError as exc:
        _restore(fd, old)
        raise QmpError(f"Could not preallocate new data: {describe(exc)}") from exc
    except OverflowError as exc:
        raise QmpError("Could not preallocate new data: Invalid argument") from exc


def _write_zeroes(fd: int, old: int, new: int) -> None:
    _set_size(fd, new)
    try:
        position = old
        while position < new:
            piece = min(ZERO_CHUNK, new - position)
            write_full(fd, [ZEROES[:piece]], position)
            position += piece
    except OSError as exc:
        _restore(fd, old)
        raise QmpError(f"Could not write zeros for preallocation: {describe(exc)}") from exc
    try:
        os.fsync(fd)
    except OSError as exc:
        _restore(fd, old)
        raise QmpError(f"Could not flush file to disk: {describe(exc)}") from exc


def _restore(fd: int, old: int) -> None:
    try:
        os.ftruncate(fd, old)
    except OSError:
        pass  # the first error is the one to report
