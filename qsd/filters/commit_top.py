# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The filter that a commit puts above the topmost image that it commits.

While the job writes into the base, the images between base and top show data that does not belong
to them.  The filter keeps their users in place but takes no permission on them, neither for itself
nor on behalf of its users, whom the content above the base does not change for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qsd.block import perms
from qsd.filters.base import FilterDriver, filtered_filename

if TYPE_CHECKING:
    from qsd.block.graph import Edge


class CommitTopDriver(FilterDriver):
    """Passes reads on."""

    name: ClassVar[str] = "commit_top"
    filtered_is_backing: ClassVar[bool] = True

    __slots__ = ()

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Take nothing, share everything."""
        return 0, perms.ALL

    def filename(self) -> str | None:
        """Go by the name of the filtered image."""
        return filtered_filename(self.edge)
