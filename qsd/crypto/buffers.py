# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What ciphers work on, and the library that works on many blocks at once where it is installed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What can be read as bytes: bytes, bytearray, memoryview, numpy array.
Readable: TypeAlias = "bytes | bytearray | memoryview"
#: What can be written as bytes.
Writable: TypeAlias = "bytearray | memoryview"
#: Runs of sectors: (number of the first one, count) of each.
Runs: TypeAlias = "Sequence[tuple[int, int]]"
#: Runs that lie apart: number of the first sector, text, and where the result goes, which is as
#: long and may be the same memory.
Pieces: TypeAlias = "Sequence[tuple[int, Readable, Writable]]"


def load_numpy() -> Any:
    """Return the module numpy, or None."""
    # Its algebra would start a thread for each processor, which nobody here has work for.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        import numpy as np
    except ImportError:
        return None
    return np
