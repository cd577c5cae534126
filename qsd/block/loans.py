# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Pages of an image file that were handed to a socket and not copied.

sendfile(2) puts references to pages of the kernel's cache into a socket; the client copies them
when it receives.  Until then a change of the page changes what the client gets.  For a range of the
guest that is no harm: a read and a write that overlap in time may meet in any order.  But a format
that frees a cluster may use it for another range, and the client would see that one's data.

So whoever lends pages keeps account here, and a format frees no cluster while clients may still
look at it::

    lend ──▶ note(borrower, place in its stream) ──▶ client receives ──▶ borrower.has_delivered
                                                                               │
    free ──▶ are_out()? ── no ──▶ counts fall                                  │
                 └── yes: `suspended`, nothing more is lent; again later ◀─────┘
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final, Protocol

from qsd.util.namedtuple import NamedTuple

#: Seconds; who has not received what was sent to him by then is not waited for any longer.
_PATIENCE: Final = 10.0
#: Seconds between two looks.
_LOOK: Final = 0.001


class Borrower(Protocol):
    """A stream that pages are sent on."""

    def has_delivered(self, position: int) -> bool:
        """Tell whether the receiver has taken all bytes of the stream up to a position."""


class Loans:
    """Who may still look at pages of one image.

    Attributes:
        suspended: Nothing is to be lent, because something waits for the loans to be returned.
    """

    __slots__ = ("_marks", "suspended")

    def __init__(self) -> None:
        self._marks: dict[Borrower, int] = {}
        self.suspended = False

    def note(self, borrower: Borrower, position: int) -> None:
        """Note that pages were sent on a stream, the last of them in front of `position`."""
        self._marks[borrower] = position

    def are_out(self) -> bool:
        """Tell whether anybody may still look at a page."""
        marks = self._marks
        for borrower in [who for who, position in marks.items() if who.has_delivered(position)]:
            del marks[borrower]
        return bool(marks)

    async def wait(self) -> None:
        """Wait until all loans are returned; a client that does not receive is waited for a while.

        Nothing is lent meanwhile, nor afterwards until the caller clears `suspended`.
        """
        self.suspended = True
        end = monotonic() + _PATIENCE
        # The kernel tells only when asked, so there is no event to wait for.
        while self.are_out() and monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        self._marks.clear()


class Lent(NamedTuple):
    """A range of a file whose pages may be sent.

    Attributes:
        fd: A plain file.
        offset: Bytes.
        loans: Where to note it; None where a place is never used for anything else.
    """

    fd: int
    offset: int
    loans: Loans | None
