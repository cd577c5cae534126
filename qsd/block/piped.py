# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Writes of data that no layer sees: a fast path.

A long payload that a client has sent is moved from its socket into a pipe and from there into the
page cache, without being in the memory of the daemon at any time.  A node can take it if it would
do no more with it than to hand it on to one place in a file; it says so by its driver's
:meth:`~qsd.block.driver.Driver.receive_nowait`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qsd.block.node import Node


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


def receive_nowait(node: Node, offset: int, payload: Payload) -> bool:
    """Write a payload like `node.write_nowait`, if nobody wants to see it.

    Args:
        node: Where to; with bitmaps, a threshold or the like it does not take it.
        offset: Bytes.
        payload: What to write.

    Returns:
        False if nothing was done, for one reason or another.

    Raises:
        OSError: The file's; a part may have been written.
    """
    driver = node.driver
    return node.write_nowait == driver.write_nowait and driver.receive_nowait(offset, payload)
