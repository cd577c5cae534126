# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "blkverify" filter: a driver under test must behave like a raw image (QEMU's developer
documentation, "Block driver correctness testing with blkverify").

Everything is done to both children.  Where they disagree, by data or by failing differently, the
daemon says so and exits: whatever went wrong must not be overwritten by what comes next.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from qsd.aio import eager
from qsd.block import perms
from qsd.errors import os_error
from qsd.filters.base import FilterDriver, filtered_filename, same_buffers

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_options import BlockdevOptionsBlkverify


class BlkverifyDriver(FilterDriver):
    """Compares two children."""

    name: ClassVar[str] = "blkverify"
    native_fua: ClassVar[bool] = False

    __slots__ = ("_test",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._test: Edge

    async def open(self, options: BlockdevOptionsBlkverify, opener: ChildOpener) -> None:
        """Attach both."""
        self.edge = await opener.child("raw", options.raw, perms.ROLE_FILTERED | perms.ROLE_PRIMARY)
        self._test = await opener.child("test", options.test, perms.ROLE_DATA)

    def length(self) -> int:
        """Return the length of the image under test."""
        return self._test.node.length()

    def filename(self) -> str | None:
        """Return the name from which the node could be opened."""
        raw, test = filtered_filename(self.edge), filtered_filename(self._test)
        if raw is None or test is None:
            return None
        return f"blkverify:{raw}:{test}"

    def image_info(self) -> dict[str, Any]:
        """Do not say what the children take on disk."""
        return {"actual-size": None}

    # I/O

    async def _both(
        self,
        kind: str,
        offset: int,
        length: int,
        test: Coroutine[Any, Any, None],
        raw: Coroutine[Any, Any, None],
    ) -> None:
        """Do a request to both children.

        Raises:
            OSError: Both failed, in the same way.
        """
        codes = [0, 0]

        async def note(index: int, request: Coroutine[Any, Any, None]) -> None:
            try:
                await request
            except OSError as exc:
                codes[index] = exc.errno or errno.EIO

        task = eager.start(note(0, test), self.node.graph.tasks, "blkverify")
        await note(1, raw)
        if task is not None:
            await task
        if codes[0] != codes[1]:
            self._disagree(
                kind, offset, length, f"return value mismatch {-codes[0]} != {-codes[1]}"
            )
        if codes[0]:
            raise os_error(codes[0])

    def _disagree(self, kind: str, offset: int, length: int, what: str) -> None:
        sys.stderr.write(f"blkverify: {kind} offset={offset} bytes={length} {what}\n")
        sys.stderr.flush()
        os._exit(1)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Refuse: there is something to be compared."""
        return False

    async def read(self, offset: int, view: memoryview) -> None:
        """Read from both and compare."""
        length = len(view)
        other = memoryview(bytearray(length))
        await self._both(
            "read", offset, length,
            self._test.node.read(offset, view), self.edge.node.read(offset, other),
        )  # fmt: skip
        at = same_buffers(view, other)
        if at >= 0:
            self._disagree("read", offset, length, f"contents mismatch at offset {offset + at}")

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Refuse: both children have to be written to."""
        return False

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write to both."""
        await self._both(
            "write", offset, len(view),
            self._test.node.write(offset, view, flags), self.edge.node.write(offset, view, flags),
        )  # fmt: skip

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Refuse, so that zeroes are written like other data."""
        raise os_error(errno.ENOTSUP)

    async def discard(self, offset: int, length: int) -> None:
        """Refuse: what is discarded may differ."""
        raise os_error(errno.ENOTSUP)

    async def flush(self) -> None:
        """Flush the image under test; the raw one is only compared with."""
        await self._test.node.flush()

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Refuse: there is something to be compared."""
        return None
