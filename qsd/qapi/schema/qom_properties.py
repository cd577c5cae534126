# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Properties of user-creatable objects (QMP reference, "QEMU object model (QOM)").

Those of secrets and TLS credentials stand in ``crypto``, of authorization objects in ``authz``, of
throttle groups in ``throttle``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from qsd.qapi.model import DEPRECATED, Struct, member

if TYPE_CHECKING:
    from qsd.qapi.model import Size, UInt16, UInt32, UInt64
    from qsd.qapi.schema.common import GrabToggleKeys, HostMemPolicy, NetFilterDirection
    from qsd.qapi.schema.sockets import SocketAddress


class CanHostSocketcanProperties(Struct):
    """QMP reference, "CanHostSocketcanProperties"."""

    if_: str = member("if")
    canbus: str


class ColoCompareProperties(Struct):
    """QMP reference, "ColoCompareProperties"."""

    primary_in: str = member("primary_in")
    secondary_in: str = member("secondary_in")
    outdev: str
    iothread: str
    notify_dev: str | None = member("notify_dev", default=None)
    compare_timeout: UInt64 | None = member("compare_timeout", default=None)
    expired_scan_cycle: UInt32 | None = member("expired_scan_cycle", default=None)
    max_queue_size: UInt32 | None = member("max_queue_size", default=None)
    vnet_hdr_support: bool | None = member("vnet_hdr_support", default=None)


class CryptodevBackendProperties(Struct):
    """QMP reference, "CryptodevBackendProperties"."""

    queues: UInt32 | None = None


class CryptodevVhostUserProperties(CryptodevBackendProperties):
    """QMP reference, "CryptodevVhostUserProperties"."""

    chardev: str


class DBusVMStateProperties(Struct):
    """QMP reference, "DBusVMStateProperties"."""

    addr: str
    id_list: str | None = None


NetfilterInsert: TypeAlias = Literal["before", "behind"]
"""QMP reference, "NetfilterInsert"."""


class NetfilterProperties(Struct):
    """QMP reference, "NetfilterProperties"."""

    netdev: str
    queue: NetFilterDirection | None = None
    status: str | None = None
    position: str | None = None
    insert: NetfilterInsert | None = None


class FilterBufferProperties(NetfilterProperties):
    """QMP reference, "FilterBufferProperties"."""

    interval: UInt32


class FilterDumpProperties(NetfilterProperties):
    """QMP reference, "FilterDumpProperties"."""

    file: str
    maxlen: UInt32 | None = None


class FilterMirrorProperties(NetfilterProperties):
    """QMP reference, "FilterMirrorProperties"."""

    outdev: str
    vnet_hdr_support: bool | None = member("vnet_hdr_support", default=None)


class FilterRedirectorProperties(NetfilterProperties):
    """QMP reference, "FilterRedirectorProperties"."""

    indev: str | None = None
    outdev: str | None = None
    vnet_hdr_support: bool | None = member("vnet_hdr_support", default=None)


class FilterRewriterProperties(NetfilterProperties):
    """QMP reference, "FilterRewriterProperties"."""

    vnet_hdr_support: bool | None = member("vnet_hdr_support", default=None)


class InputBarrierProperties(Struct):
    """QMP reference, "InputBarrierProperties"."""

    name: str
    server: str | None = None
    port: str | None = None
    x_origin: str | None = None
    y_origin: str | None = None
    width: str | None = None
    height: str | None = None


class InputLinuxProperties(Struct):
    """QMP reference, "InputLinuxProperties"."""

    evdev: str
    grab_all: bool | None = member("grab_all", default=None)
    repeat: bool | None = None
    grab_toggle: GrabToggleKeys | None = None


class EventLoopBaseProperties(Struct):
    """What all event loops share (QMP reference, "EventLoopBaseProperties")."""

    aio_max_batch: int | None = None
    thread_pool_min: int | None = None
    thread_pool_max: int | None = None


class IothreadProperties(EventLoopBaseProperties):
    """A thread that runs an event loop (QMP reference, "IothreadProperties")."""

    poll_max_ns: int | None = None
    poll_grow: int | None = None
    poll_shrink: int | None = None


class MainLoopProperties(EventLoopBaseProperties):
    """The main event loop (QMP reference, "MainLoopProperties")."""


class MemoryBackendProperties(Struct):
    """QMP reference, "MemoryBackendProperties"."""

    dump: bool | None = None
    host_nodes: list[UInt16] | None = None
    merge: bool | None = None
    policy: HostMemPolicy | None = None
    prealloc: bool | None = None
    prealloc_threads: UInt32 | None = None
    prealloc_context: str | None = None
    share: bool | None = None
    reserve: bool | None = None
    size: Size
    x_use_canonical_path_for_ramblock_id: bool | None = None


class MemoryBackendFileProperties(MemoryBackendProperties):
    """QMP reference, "MemoryBackendFileProperties"."""

    align: Size | None = None
    discard_data: bool | None = None
    mem_path: str
    pmem: bool | None = None
    readonly: bool | None = None


class MemoryBackendMemfdProperties(MemoryBackendProperties):
    """QMP reference, "MemoryBackendMemfdProperties"."""

    hugetlb: bool | None = None
    hugetlbsize: Size | None = None
    seal: bool | None = None


class MemoryBackendEpcProperties(MemoryBackendProperties):
    """QMP reference, "MemoryBackendEpcProperties"."""


class PrManagerHelperProperties(Struct):
    """A helper for persistent reservations (QMP reference, "PrManagerHelperProperties")."""

    path: str


class QtestProperties(Struct):
    """QMP reference, "QtestProperties"."""

    chardev: str
    log: str | None = None


class RemoteObjectProperties(Struct):
    """QMP reference, "RemoteObjectProperties"."""

    fd: str
    devid: str


class VfioUserServerProperties(Struct):
    """QMP reference, "VfioUserServerProperties"."""

    socket: SocketAddress
    device: str


class RngProperties(Struct):
    """QMP reference, "RngProperties"."""

    opened: bool | None = member(default=None, features=DEPRECATED)


class RngEgdProperties(RngProperties):
    """QMP reference, "RngEgdProperties"."""

    chardev: str


class RngRandomProperties(RngProperties):
    """QMP reference, "RngRandomProperties"."""

    filename: str | None = None


class SevGuestProperties(Struct):
    """QMP reference, "SevGuestProperties"."""

    sev_device: str | None = None
    dh_cert_file: str | None = None
    session_file: str | None = None
    policy: UInt32 | None = None
    handle: UInt32 | None = None
    cbitpos: UInt32 | None = None
    reduced_phys_bits: UInt32
    kernel_hashes: bool | None = None


class ThreadContextProperties(Struct):
    """Where threads are created (QMP reference, "ThreadContextProperties")."""

    cpu_affinity: list[UInt16] | None = None
    node_affinity: list[UInt16] | None = None
