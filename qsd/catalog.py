# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Which class stands behind which name.

Plain tables, "module:class" by the name that QMP uses.  A module is imported when somebody asks for
its name for the first time; importing it has no other effect.  What the schema names and no table
has is not provided, and the daemon says so as the original does for a driver that was not built in.

Objects have their table in :mod:`qsd.objects.types`, QMP commands in :mod:`qsd.commands`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.block.create import Creator
    from qsd.block.driver import Driver
    from qsd.exports.base import Export

#: Block drivers (QMP reference, "BlockdevDriver").
DRIVERS: Final[Mapping[str, str]] = {
    "blkdebug": "filters.blkdebug:BlkdebugDriver",
    "blklogwrites": "filters.blklogwrites:BlklogwritesDriver",
    "blkverify": "filters.blkverify:BlkverifyDriver",
    "compress": "filters.compress:CompressDriver",
    "copy-before-write": "filters.copy_before_write:CopyBeforeWriteDriver",
    "copy-on-read": "filters.copy_on_read:CopyOnReadDriver",
    "file": "protocols.file.driver:FileDriver",
    "host_cdrom": "protocols.file.host_device:HostCdromDriver",
    "host_device": "protocols.file.host_device:HostDeviceDriver",
    "luks": "formats.luks:LuksDriver",
    "nbd": "protocols.nbd.driver:NbdDriver",
    "null-aio": "protocols.null:NullAioDriver",
    "null-co": "protocols.null:NullDriver",
    "preallocate": "filters.preallocate:PreallocateDriver",
    "qcow2": "formats.qcow2.driver:Qcow2Driver",
    "quorum": "filters.quorum:QuorumDriver",
    "raw": "formats.raw:RawDriver",
    "snapshot-access": "filters.snapshot_access:SnapshotAccessDriver",
    "throttle": "filters.throttle:ThrottleDriver",
}

#: What makes images, "module:function" by driver (QMP reference, "BlockdevCreateOptions").
CREATORS: Final[Mapping[str, str]] = {
    "file": "protocols.file.create:create",
    "luks": "formats.luks:create",
    "qcow2": "formats.qcow2.create:create",
}

#: Block exports (QMP reference, "BlockExportType").
EXPORTS: Final[Mapping[str, str]] = {
    "fuse": "exports.fuse:FuseExport",
    "nbd": "exports.nbd:NbdExport",
    "vduse-blk": "exports.vduse_blk:VduseBlkExport",
    "vhost-user-blk": "exports.vhost_user_blk:VhostUserBlkExport",
}


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"qsd.{module}"), name)


def find_driver(name: str) -> type[Driver] | None:
    """Return the class of a block driver, or None where there is none of that name."""
    place = DRIVERS.get(name)
    if place is None:
        return None
    found: type[Driver] = _load(place)
    return found


def find_creator(name: str) -> Creator | None:
    """Return the function that makes images of a driver, or None if it cannot make any."""
    place = CREATORS.get(name)
    if place is None:
        return None
    found: Creator = _load(place)
    return found


def find_export(name: str) -> type[Export] | None:
    """Return the class of a block export, or None where there is none of that name."""
    place = EXPORTS.get(name)
    if place is None:
        return None
    found: type[Export] = _load(place)
    return found
