# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What files, pipes, terminals and the standard streams have in common: plain descriptors."""

from __future__ import annotations

import os

from qsd.chardev.base import Chardev
from qsd.net.stream import ByteStream


class DescriptorChardev(Chardev):
    """A device on one descriptor for each direction, which it owns."""

    def __init__(self, label: str, kind: str) -> None:
        super().__init__(label, kind)
        self._stream: ByteStream | None = None
        self._owned: tuple[int, ...] = ()

    def _use(self, read_fd: int | None, write_fd: int | None) -> None:
        """Begin with these descriptors; the device closes them."""
        self._owned = tuple({fd for fd in (read_fd, write_fd) if fd is not None})
        self._stream = ByteStream(
            read_fd,
            write_fd,
            on_data=self._received,
            on_eof=self._ended,
            on_drained=self._drained,
        )
        self._opened()

    def _ended(self) -> None:
        """No more input will come; what was written goes on being sent."""
        self._closed()

    async def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        for fd in self._owned:
            os.close(fd)
        self._owned = ()

    @property
    def pending(self) -> int:
        """Bytes that were written but not taken by the kernel yet."""
        return 0 if self._stream is None else self._stream.pending

    def _write(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.write(data)

    def pause(self) -> None:
        """Stop reading."""
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        """Go on reading if there is a user; without one input waits."""
        if self._stream is not None and self.frontend is not None and self.is_open:
            self._stream.start()
