# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The vduse-blk export: a node becomes a virtio disk of the host, by the kernel's VDUSE.

Options are checked as the C daemon does, then the kernel's control file is opened, late, so that a
kernel without VDUSE is an ordinary error of the command.  A device of the same name that is there
already was left by a daemon that died: it is gone on with.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.block import perms
from qsd.errors import QmpError, os_error
from qsd.exports.base import DELETED, Export
from qsd.exports.vduse_device import VduseDevice, log_size
from qsd.exports.vduse_kernel import VduseControl, VduseFile
from qsd.exports.virtio_blk import VirtioBlk, check_block_size
from qsd.wire.virtio import blk, vduse

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.exports.base import ExportRegistry

#: Turns of the loop in which a device without requests in flight ends.
_TURNS_TO_END: Final = 10
_DEFAULT_QUEUE_SIZE: Final = 256
#: Descriptors; as the C daemon.
_MIN_QUEUE_SIZE, _MAX_QUEUE_SIZE = 4, 1024
#: Where logs of chains in flight are kept, to outlive the daemon but not the machine.
_LOG_FOLDER: Final = "/dev/shm"  # noqa: S108 (opened with care: no link, our own file)


class VduseBlkExport(Export):
    """A node as a virtio device of the host."""

    TYPE: ClassVar[str] = "vduse-blk"

    __slots__ = ("_control", "_device", "_file", "_is_ours", "_log_path", "_name")

    def __init__(
        self, registry: ExportRegistry, export_id: str, backend: Backend, writable: bool
    ) -> None:
        super().__init__(registry, export_id, backend, writable)
        self._name = b""
        self._log_path = ""
        self._is_ours = False  # the kernel's device
        self._control: VduseControl | None = None
        self._file: VduseFile | None = None
        self._device: VduseDevice

    async def start(self, options: Any) -> None:
        """Make the device, or take over one that is there.

        Raises:
            QmpError: An option is impossible, or the kernel refuses.
        """
        num_queues = 1 if options.num_queues is None else options.num_queues
        if not num_queues:
            raise QmpError("num-queues must be greater than 0")
        size = _DEFAULT_QUEUE_SIZE if options.queue_size is None else options.queue_size
        if not _MIN_QUEUE_SIZE <= size <= _MAX_QUEUE_SIZE or size & (size - 1):
            raise QmpError("queue-size is invalid")
        block_size = check_block_size(self.id, options.logical_block_size)
        # The driver can be told of a new length.
        perm = perms.CONSISTENT_READ | (perms.WRITE if self.writable else 0)
        self.backend.set_perms(perm, perms.ALL)
        device = VirtioBlk(
            self.backend,
            self.registry.tasks,
            writable=self.writable,
            block_size=block_size,
            num_queues=num_queues,
            serial=(options.serial or "").encode(),
            seg_max=size - 2,
        )
        try:
            self._name = vduse.name(options.name)
        except ValueError as exc:
            self.registry.report("Invalid parameter for vduse")
            raise QmpError("failed to create vduse device") from exc
        control = await self._open_control()
        try:
            if not options.name or "/" in options.name:
                raise os_error(errno.EINVAL)  # no name for a device file
            is_new = self._create(control, device)
            self._is_ours = is_new
            self._file = control.open(options.name)
            self._is_ours = True  # nobody else has it open
            for index in range(num_queues if is_new else 0):
                self._file.set_up_queue(index, size)
            log = self._open_log(options.name, log_size(num_queues, size), is_new)
        except OSError as exc:
            self._close(control)
            self.registry.report(f"vduse-blk export '{self.id}': {exc}")
            raise QmpError("failed to create vduse device") from exc
        self._control = control
        self._device = VduseDevice(device, self._file, log, self._report)
        self.add_user()
        self.registry.tasks.spawn(self._serve(), f"vduse-blk {self.id}")

    async def _open_control(self) -> VduseControl:
        try:
            control: VduseControl = await self.backend.graph.pool.run(VduseControl)
        except OSError as exc:
            self.registry.report(f"Failed to open {exc.filename}: {exc.strerror}")
            raise QmpError("failed to create vduse device") from exc
        return control

    def _create(self, control: VduseControl, device: VirtioBlk) -> bool:
        """Make the device; return False if it is there already."""
        control.set_version()
        # The kernel takes no device whose configuration the driver may write.
        features = device.features() & ~blk.F_CONFIG_WCE | vduse.REQUIRED_FEATURES
        config = device.config()
        try:
            control.create(
                vduse.device(self._name, features, device.num_queues, mmap.PAGESIZE, config)
            )
        except OSError as exc:
            if exc.errno != errno.EEXIST:
                raise
            return False
        return True

    def _open_log(self, name: str, size: int, is_new: bool) -> memoryview:
        """Map the log of chains in flight; nothing is in flight in a new device."""
        self._log_path = os.path.join(_LOG_FOLDER, f"vduse-blk-{name}")
        if is_new and os.path.lexists(self._log_path):
            os.unlink(self._log_path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._log_path, flags, 0o600)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "not our file", self._log_path)
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
            return memoryview(mmap.mmap(fd, size))
        finally:
            os.close(fd)

    def _report(self, text: str) -> None:
        self.registry.report(f"vduse-blk export '{self.id}': {text}")

    async def _serve(self) -> None:
        try:
            await self._device.run()
        finally:
            self.remove_user()

    def resized(self) -> None:
        """Tell the driver."""
        if self._control is not None:
            self._device.resized()

    @property
    def is_busy(self) -> bool:
        """Never: a driver does not keep the export from being deleted."""
        return False

    async def shut_down(self) -> None:
        """Begin to end; the end is waited for unless requests are in flight."""
        await super().shut_down()
        for _ in range(_TURNS_TO_END):
            if self.state == DELETED:
                break
            await asyncio.sleep(0)

    def disconnect(self) -> None:
        """Stop the queues."""
        self._device.stop()

    async def released(self) -> None:
        """Destroy the device, unless the host still uses it."""
        control, self._control = self._control, None
        if control is not None:
            self._close(control)

    def _close(self, control: VduseControl) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        try:
            if self._is_ours:
                control.destroy(self._name)
                if self._log_path:
                    os.unlink(self._log_path)
        except OSError:
            pass  # the device is on the bus still: a later daemon may go on with both
        finally:
            control.close()
