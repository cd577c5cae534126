# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Character devices that remember the last bytes written to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from qsd.chardev.base import Chardev
from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevRingbuf

DEFAULT_SIZE: Final = 65536


class RingbufChardev(Chardev):
    """A ring buffer: when it is full, the oldest bytes are overwritten."""

    KIND: ClassVar[str] = "ringbuf"
    OFFERS_OOB = False

    def __init__(self, label: str, options: ChardevRingbuf) -> None:
        super().__init__(label, self.KIND)
        self._size = options.size or DEFAULT_SIZE
        self._buffer = bytearray()

    async def _open(self, env: Environment) -> None:
        del env
        if self._size < 0 or self._size & (self._size - 1):
            raise QmpError("size of ringbuf chardev must be power of two")
        self._opened()

    def put(self, data: bytes) -> None:
        """Append bytes."""
        self._buffer += data[-self._size :]
        surplus = len(self._buffer) - self._size
        if surplus > 0:
            del self._buffer[:surplus]

    _write = put

    def take(self, size: int) -> bytes:
        """Remove and return the oldest bytes, at most `size`."""
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


class MemoryChardev(RingbufChardev):
    """The same under its older name."""

    KIND = "memory"
