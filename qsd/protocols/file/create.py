# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Making regular files (QMP reference, "BlockdevCreateOptionsFile")."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from qsd.block import perms
from qsd.errors import QmpError
from qsd.protocols.file.image import create_file
from qsd.protocols.file.locks import CAN_LOCK, ImageLock
from qsd.protocols.file.prealloc import resize

if TYPE_CHECKING:
    from qsd.block.graph import Graph
    from qsd.qapi.schema.block_create import BlockdevCreateOptionsFile

#: Bytes; the hint where the options give none: large enough to keep images from fragmenting.
_DEFAULT_EXTENT_SIZE_HINT: Final = 1 << 20
_UINT32_LIMIT: Final = 1 << 32

#: ioctl numbers and flags of linux/fs.h.
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_NOCOW_FL: Final = 0x00800000
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_FS_XFLAG_EXTSIZE: Final = 0x00000800

#: struct fsxattr: fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, fsx_cowextsize, padding.
_FSXATTR: Final = struct.Struct("5I8s")


async def create(graph: Graph, options: BlockdevCreateOptionsFile) -> None:
    """Make a file, or cut an existing one down to nothing first; the creator of the catalog.

    Raises:
        QmpError: With the text a user should read.
    """
    await graph.pool.run(_create, options)


def _create(options: BlockdevCreateOptionsFile) -> None:
    hint = options.extent_size_hint
    if hint is not None and hint >= _UINT32_LIMIT:
        raise QmpError("Extent size hint is too large")
    fd = create_file(options.filename)
    try:
        _lock(fd, options.filename)
        _make(fd, options, _DEFAULT_EXTENT_SIZE_HINT if hint is None else hint)
    finally:
        os.close(fd)  # the locks go with it


def _lock(fd: int, filename: str) -> None:
    """Keep everybody out who writes to the file or relies on its size."""
    if CAN_LOCK:
        status = os.fstat(fd)
        lock = ImageLock(fd, filename, (status.st_dev, status.st_ino))
        lock.prepare(perms.WRITE | perms.RESIZE, perms.ALL & ~perms.RESIZE)
        lock.commit()


def _make(fd: int, options: BlockdevCreateOptionsFile, hint: int) -> None:
    # Cutting the file off drops the old content, which must not shine through.
    resize(fd, 0, 0, "off")
    if options.nocow:
        _set_nocow(fd)
    if hint:
        _set_extent_size(fd, hint)
    resize(fd, 0, options.size, options.preallocation or "off")


def _set_nocow(fd: int) -> None:
    """Turn copy on write off (chattr(1), "C"); file systems without it are fine as they are."""
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
        flags = int.from_bytes(answer[:4], "little") | _FS_NOCOW_FL
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))
    except OSError:
        pass


def _set_extent_size(fd: int, hint: int) -> None:
    """Ask for large extents (xfs(5), "extsize"); only a hint, so that failing is fine."""
    try:
        flags, _, extents, project, cow, rest = _FSXATTR.unpack(
            fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        )
        fcntl.ioctl(
            fd,
            _FS_IOC_FSSETXATTR,
            _FSXATTR.pack(flags | _FS_XFLAG_EXTSIZE, hint, extents, project, cow, rest),
        )
    except OSError:
        pass
