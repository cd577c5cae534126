# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A bitmap whose content tells who marked it, and when."""

from __future__ import annotations


class Marks:
    """A bitmap that notes what it is told."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def mark(self, offset: int, length: int) -> None:
        self.ranges.append((offset, length))

    def resized(self, length: int) -> None:
        raise AssertionError
