# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Writes of data that no layer sees: a fast path.

A long payload that a client has sent is moved from its socket into a pipe and from there into the
page cache, without being in the memory of the daemon at any time.  A node can take it if it would
do no more with it than to hand it on to one place in a file; it says so by its driver's
:meth:`~qsd.block.driver.Driver.receive_nowait`.  Where it went is recorded in dirty bitmaps all the
same; a node that has to look at the data or to know of each write before takes none.
"""

from __future__ import annotations

from typing import Protocol


class Payload(Protocol):
    """What is to be written.

    Attributes:
        length: Bytes.
    """

    length: int

    def write_to(self, fd: int, offset: int) -> None:
        """Write all of it to a file.

        Raises:
            OSError: A part may have been written.
        """


def refuse_payload(offset: int, payload: Payload) -> bool:
    """Take nothing."""
    return False
