# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The kernel's side of VDUSE: device files and ioctls, one method each, no decisions.

Source: Linux Documentation/userspace-api/vduse.rst.
"""

from __future__ import annotations

import os
from fcntl import ioctl
from typing import Final

from qsd.wire.virtio import vduse

#: Where the device files are.
FOLDER: Final = "/dev/vduse"


class VduseControl:
    """The control file, by which devices are made and destroyed."""

    __slots__ = ("_fd", "folder")

    def __init__(self, folder: str = FOLDER) -> None:
        """Open it.

        Raises:
            OSError: This kernel has no VDUSE, or it is not allowed.
        """
        self.folder = folder
        self._fd = os.open(os.path.join(folder, "control"), os.O_RDWR | os.O_CLOEXEC)

    def set_version(self) -> None:
        """Tell which version of the interface is spoken.

        Raises:
            OSError: The kernel does not speak it; as all ioctls do when they fail.
        """
        ioctl(self._fd, vduse.SET_API_VERSION, vduse.NUMBER.pack(vduse.API_VERSION))

    def create(self, description: bytes) -> None:
        """Make a device; see :func:`qsd.wire.virtio.vduse.device`."""
        ioctl(self._fd, vduse.CREATE_DEV, description)

    def destroy(self, name: bytes) -> None:
        """Destroy a device that is not open and not on the bus."""
        ioctl(self._fd, vduse.DESTROY_DEV, name)

    def open(self, name: str) -> VduseFile:
        """Open a device."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        return VduseFile(os.open(os.path.join(self.folder, name), flags))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class VduseFile:
    """A device's file.

    Attributes:
        fd: It is readable when the kernel has a request.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def set_up_queue(self, index: int, max_size: int) -> None:
        """Say that there is a queue."""
        ioctl(self.fd, vduse.VQ_SETUP, vduse.VQ_CONFIG.pack(index, max_size))

    def features(self) -> int:
        """Return what was negotiated, 0 while there is no driver."""
        data = bytearray(vduse.NUMBER.size)
        ioctl(self.fd, vduse.DEV_GET_FEATURES, data)
        (features,) = vduse.NUMBER.unpack(data)
        return int(features)

    def queue_info(self, index: int) -> vduse.QueueInfo:
        """Return what the driver has set for a queue."""
        data = bytearray(vduse.VQ_INFO.size)
        vduse.INDEX.pack_into(data, 0, index)
        ioctl(self.fd, vduse.VQ_GET_INFO, data)
        return vduse.parse_queue_info(data)

    def set_kick(self, index: int, fd: int) -> None:
        """Let a queue's driver signal an event."""
        ioctl(self.fd, vduse.VQ_SETUP_KICKFD, vduse.VQ_EVENTFD.pack(index, fd))

    def interrupt(self, index: int) -> None:
        """Call a queue's driver."""
        ioctl(self.fd, vduse.VQ_INJECT_IRQ, vduse.INDEX.pack(index))

    def set_config(self, offset: int, data: bytes) -> None:
        """Change the configuration space and tell the driver."""
        ioctl(self.fd, vduse.DEV_SET_CONFIG, vduse.CONFIG_DATA.pack(offset, len(data)) + data)
        ioctl(self.fd, vduse.DEV_INJECT_CONFIG_IRQ, 0)

    def memory_of(self, first: int, last: int) -> tuple[vduse.Mapping, int]:
        """Return the first region in a range of addresses, and a descriptor to map it from."""
        data = bytearray(vduse.IOTLB_ENTRY.pack(0, first, last, 0))
        fd = ioctl(self.fd, vduse.IOTLB_GET_FD, data)
        return vduse.Mapping(*vduse.IOTLB_ENTRY.unpack(data)), fd

    def close(self) -> None:
        """Close the file; requests that were not answered go to whoever opens it next."""
        os.close(self.fd)
