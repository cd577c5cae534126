# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What both sides of the NBD handshake are: a machine with phases, fed with bytes, giving bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Phases that both sides have.
TLS: Final = "tls"
DONE: Final = "done"
FAILED: Final = "failed"

#: What an end of the stream in the middle of something is called.
EOF_TEXT: Final = "Unexpected end-of-file before all data were read"


class Machine:
    """One side of a handshake.

    Attributes:
        phase: Where it is.
    """

    #: The legal steps: phases that follow a phase.
    moves: ClassVar[Mapping[str, tuple[str, ...]]]

    __slots__ = ("_buffer", "_out", "phase")

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self._buffer = bytearray()
        self._out = bytearray()

    def _move(self, phase: str) -> None:
        """Go to another phase.

        Raises:
            RuntimeError: There is no such step.
        """
        if phase not in self.moves[self.phase]:
            raise RuntimeError(f"NBD handshake cannot go from {self.phase} to {phase}")
        self.phase = phase

    def take_output(self) -> bytes:
        """Return what must be sent to the peer now."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def take_rest(self) -> bytes:
        """Return the bytes that came behind the handshake."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
