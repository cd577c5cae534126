# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Finding out whether files can be seen in memory here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qsd.aio import loop
from qsd.aio.pagemap import FilePages, PageMaps

if TYPE_CHECKING:
    from pathlib import Path


def need_views(path: Path) -> None:
    """Skip the running test unless a file that was just written can be seen.

    Where ``QSD_REQUIRE_TOOLS`` is set the skip counts as a failure; see the top-level conftest.
    """
    fd = os.open(path, os.O_RDONLY)

    async def can_see() -> bool:
        pages = FilePages(PageMaps(), fd)
        try:
            return pages.view_nowait(0, 1) is not None
        finally:
            pages.drop()

    try:
        if not loop.run(can_see()):
            pytest.skip("no views of files here")
    finally:
        os.close(fd)
