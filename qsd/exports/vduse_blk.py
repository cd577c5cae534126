# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vduse-blk export, as far as it goes without the kernel's VDUSE.

Options are checked as the C daemon does, then the kernel's control file is opened, late, so that a
kernel without VDUSE is an ordinary error of the command.  Driving a device through it is not
implemented: with the control file there, the export is refused and says why.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final

from qsd.errors import QmpError
from qsd.exports.base import Export
from qsd.exports.virtio_blk import check_block_size

#: Linux Documentation/userspace-api/vduse.rst.
CONTROL: Final = "/dev/vduse/control"
_DEFAULT_QUEUE_SIZE: Final = 256
#: Descriptors; as the C daemon.
_MIN_QUEUE_SIZE, _MAX_QUEUE_SIZE = 4, 1024


class VduseBlkExport(Export):
    """A node as a virtio device of the host."""

    TYPE: ClassVar[str] = "vduse-blk"

    __slots__ = ()

    async def start(self, options: Any) -> None:
        """Check the options and try to open the control file.

        Raises:
            QmpError: Always.
        """
        if options.num_queues == 0:
            raise QmpError("num-queues must be greater than 0")
        size = _DEFAULT_QUEUE_SIZE if options.queue_size is None else options.queue_size
        if not _MIN_QUEUE_SIZE <= size <= _MAX_QUEUE_SIZE or size & (size - 1):
            raise QmpError("queue-size is invalid")
        check_block_size(self.id, options.logical_block_size)
        pool = self.backend.graph.pool
        try:
            fd = await pool.run(os.open, CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            self.registry.report(f"Failed to open {CONTROL}: {exc.strerror}")
            raise QmpError("failed to create vduse device") from exc
        os.close(fd)
        raise QmpError("failed to create vduse device: this daemon cannot drive VDUSE devices")
