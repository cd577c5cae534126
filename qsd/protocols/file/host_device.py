# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "host_device" and "host_cdrom" drivers: block and character devices of this machine.

They do their I/O like the file driver, and take the same locks.  What differs: a device has a size
of its own, the kernel knows its block size, holes cannot be found in it, and discarding and zeroing
have system calls of their own (linux/fs.h).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.block.mapping import MAY_UNMAP, ST_ALLOCATED, ST_DATA, ST_OFFSET, Status
from qsd.errors import QmpError, os_error
from qsd.protocols.file.driver import FileDriver
from qsd.util.ranges import align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.protocols.file.image import OpenFile

#: ioctl numbers of linux/fs.h and linux/cdrom.h.
_BLKROGET: Final = 0x125E
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_BLKSSZGET: Final = 0x1268
_CDROM_DRIVE_STATUS: Final = 0x5326
_CDSL_CURRENT: Final = 0x7FFFFFFF
_CDS_DISC_OK: Final = 4

#: The arguments of BLKDISCARD and BLKZEROOUT: start and length in bytes.
_RANGE: Final = struct.Struct("QQ")
_INT: Final = struct.Struct("i")


def _range_ioctl(fd: int, request: int, offset: int, length: int) -> None:
    fcntl.ioctl(fd, request, _RANGE.pack(offset, length))


def _int_ioctl(fd: int, request: int) -> int:
    value: int = _INT.unpack(fcntl.ioctl(fd, request, bytes(_INT.size)))[0]
    return value


class HostDeviceDriver(FileDriver):
    """A block or character device."""

    name: ClassVar[str] = "host_device"
    grows: ClassVar[bool] = False

    __slots__ = ()

    def _check_mode(self, mode: int) -> None:
        if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
            raise QmpError(
                f"'{self.name}' driver requires '{self.options.filename}' to be either a "
                "character or block device"
            )

    def _open_now(self, flags: int, check: Callable[[int], None]) -> OpenFile:
        opened = super()._open_now(flags, check)
        if stat.S_ISBLK(opened.mode):
            try:
                self._look_at_device(opened)
            except BaseException:
                opened.close()
                raise
        return opened

    def _look_at_device(self, opened: OpenFile) -> None:
        if opened.flags & os.O_RDWR and _int_ioctl(opened.fd, _BLKROGET):
            raise QmpError("The device is not writable: Permission denied")
        opened.block = _int_ioctl(opened.fd, _BLKSSZGET)
        if opened.flags & os.O_DIRECT:
            opened.align = opened.block

    def _use_file(self) -> None:
        super()._use_file()
        # Zeroing refuses parts of blocks, even where the page cache would take them.
        self.limits.zero_alignment = self.file.block

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Accept what changes nothing: devices have the size they have."""
        if prealloc != "off":
            raise QmpError(f"Preallocation mode '{prealloc}' unsupported for this non-regular file")
        size = await self.io.call(os.lseek, 0, os.SEEK_END)
        if length > size:
            raise QmpError("Cannot grow device files")
        if exact and length != size:
            raise QmpError("Cannot resize device files")

    async def _zero_in_place(self, offset: int, length: int) -> None:
        # Through the page cache writing zeroes is safer: the ioctl goes around it.
        if self.io.bounce is None or not self._can_zero:
            raise os_error(errno.ENOTSUP)
        if not await self._try_ioctl(_BLKZEROOUT, offset, length):
            self._can_zero = False
            raise os_error(errno.ENOTSUP)

    async def _try_ioctl(self, request: int, offset: int, length: int) -> bool:
        try:
            await self.io.call(_range_ioctl, request, offset, length)
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL):
                return False
            raise
        return True

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero a range: by a hole, by an ioctl, or not at all."""
        if stat.S_ISCHR(self.file.mode):
            raise os_error(errno.ENOTSUP)
        await super().zero(offset, length, flags & MAY_UNMAP)

    async def _discard_range(self, offset: int, length: int) -> bool:
        start = align_up(offset, self.file.block)
        end = align_down(offset + length, self.file.block)
        return start >= end or await self._try_ioctl(_BLKDISCARD, start, end - start)

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """All of a device is data."""
        return Status(length, ST_DATA | ST_OFFSET | ST_ALLOCATED, offset)


class HostCdromDriver(HostDeviceDriver):
    """A CD-ROM drive, which may be empty."""

    name: ClassVar[str] = "host_cdrom"

    __slots__ = ()

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Never: the drive must be asked first."""
        return False

    def read_path(self) -> Callable[[int, memoryview], bool]:
        """Return the function above."""
        return self.read_nowait

    async def read(self, offset: int, view: memoryview) -> None:
        """Read, if there is a disc.

        Raises:
            OSError: ENOMEDIUM, there is none.
        """
        await self.io.call(_check_disc)
        await super().read(offset, view)

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        """Accept what changes nothing, if there is a disc."""
        try:
            await self.io.call(_check_disc)
        except OSError as exc:
            raise QmpError("No medium inserted") from exc
        await super().truncate(length, exact, prealloc, flags)

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Never: the drive must be asked first."""
        return None

    def image_info(self) -> dict[str, Any]:
        """Tell the space taken on disk."""
        info = super().image_info()
        del info["dirty-flag"]
        return info

    def driver_stats(self) -> dict[str, Any] | None:
        """Nothing is counted."""
        return None


def _check_disc(fd: int) -> None:
    try:
        state = fcntl.ioctl(fd, _CDROM_DRIVE_STATUS, _CDSL_CURRENT)
    except OSError:
        state = -1
    if state != _CDS_DISC_OK:
        raise os_error(errno.ENOMEDIUM)
