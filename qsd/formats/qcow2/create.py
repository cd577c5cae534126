# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Making qcow2 images (QMP reference, "BlockdevCreateOptionsQcow2").

A new image starts as an empty one, written by hand: header, refcount table, one refcount block.
It is then opened like any other image, and grown to its size by the same code as later: so there is
one way to make an L1 table and one way to preallocate.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from qsd.block import perms
from qsd.block.create import find_target, open_target
from qsd.errors import QmpError, describe, os_error, prefixed
from qsd.formats.qcow2 import encryption, layout
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2.layout import Extension, Geometry, Header

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.block.graph import Graph
    from qsd.formats.qcow2.driver import Qcow2Driver
    from qsd.qapi.schema.block_create import BlockdevCreateOptionsQcow2

DEFAULT_CLUSTER_SIZE = 65536
#: In shorter clusters the names of features would take the place of a backing file's name.
_NAMES_FIT_BITS = 13
#: Clusters of a new image: header, refcount table, refcount block.
_FIRST_CLUSTERS = 3


async def create(graph: Graph, options: BlockdevCreateOptionsQcow2) -> None:
    """Make an image in the node or file that the options name.

    Raises:
        QmpError: With the C daemon's text.
    """
    header = Header()

    def check() -> None:
        """Look at the options; what is wrong with them comes before conflicts with other users."""
        nonlocal header
        header = make_header(options)
        if isinstance(options.data_file, str):
            find_target(graph, options.data_file)

    async with open_target(graph, options.file, check=check) as target:
        plan, refusal = None, None
        if options.encrypt is not None:
            try:
                plan = encryption.Plan(graph, options.encrypt)
            except QmpError as exc:
                # The C daemon encrypts last: whatever else is wrong comes first, and a plain image
                # is left behind.
                refusal = exc
        if options.data_file is not None:
            async with open_target(graph, options.data_file) as data:
                data_name = data.node.name
                data.set_perms(0, perms.ALL)
                await _fill(graph, target, header, options, data_name, plan)
        else:
            await _fill(graph, target, header, options, None, plan)
        if refusal is not None:
            raise refusal


def make_header(options: BlockdevCreateOptionsQcow2) -> Header:
    """Check the options and return the header they ask for, of an image without content.

    Raises:
        QmpError: They make no image.
    """
    header = Header()
    if options.size % 512:
        raise QmpError("Image size must be a multiple of 512 bytes")
    header.version = 2 if options.version == "v2" else 3
    size = options.cluster_size if options.cluster_size is not None else DEFAULT_CLUSTER_SIZE
    if not 1 << layout.MIN_CLUSTER_BITS <= size <= 1 << layout.MAX_CLUSTER_BITS or size & size - 1:
        raise QmpError("Cluster size must be a power of two between 512 and 2048k")
    header.cluster_bits = size.bit_length() - 1
    if options.extended_l2:
        _needs_v3(header, "Extended L2 entries are only supported with")
        least = layout.MIN_SUBCLUSTER * layout.SUBCLUSTERS
        if size < least:
            raise QmpError(
                "Extended L2 entries are only supported with cluster sizes of at least "
                f"{least} bytes"
            )
        header.incompatible_features |= layout.INCOMPAT_EXTENDED_L2
    _check_backing(options)
    if options.lazy_refcounts:
        _needs_v3(header, "Lazy refcounts only supported with")
        header.compatible_features |= layout.COMPAT_LAZY_REFCOUNTS
    bits = options.refcount_bits if options.refcount_bits is not None else 16
    if not 0 < bits <= 64 or bits & bits - 1:
        raise QmpError("Refcount width must be a power of two and may not exceed 64 bits")
    if header.version < 3 and bits != 16:
        raise QmpError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use version=v3 or greater)"
        )
    header.refcount_order = bits.bit_length() - 1
    _set_data_file(options, header)
    if options.compression_type == "zstd":
        _needs_v3(header, "Non-zlib compression type is only supported with")
        header.compression_type = 1
        header.incompatible_features |= layout.INCOMPAT_COMPRESSION
    header.refcount_table_offset = size
    header.refcount_table_clusters = 1
    return header


def _needs_v3(header: Header, text: str) -> None:
    if header.version < 3:
        raise QmpError(f"{text} compatibility level 1.1 and above (use version=v3 or greater)")


def _check_backing(options: BlockdevCreateOptionsQcow2) -> None:
    prealloc = options.preallocation or "off"
    if options.backing_file is not None and prealloc != "off" and not options.extended_l2:
        raise QmpError(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on"
        )
    if options.backing_fmt is not None and options.backing_file is None:
        raise QmpError("Backing format cannot be used without backing file")


def _set_data_file(options: BlockdevCreateOptionsQcow2, header: Header) -> None:
    if options.data_file_raw and options.data_file is None:
        raise QmpError("data-file-raw requires data-file")
    if options.data_file_raw and options.backing_file is not None:
        raise QmpError("Backing file and data-file-raw cannot be used at the same time")
    if options.data_file is not None:
        _needs_v3(header, "External data files are only supported with")
        header.incompatible_features |= layout.INCOMPAT_DATA_FILE
        if options.data_file_raw:
            header.autoclear_features |= layout.AUTOCLEAR_DATA_FILE_RAW


async def _fill(
    graph: Graph,
    target: Backend,
    header: Header,
    options: BlockdevCreateOptionsQcow2,
    data_name: str | None,
    plan: encryption.Plan | None,
) -> None:
    if header.version >= 3 and header.cluster_bits >= _NAMES_FIT_BITS:
        header.extensions.append(Extension(layout.EXT_FEATURES, layout.pack_features()))
    try:
        await _write_empty(target, header)
    except OSError as exc:
        raise prefixed(exc, "Could not write qcow2 header: ") from exc
    name = target.node.name
    # The format takes the node for itself now; this user only keeps it open.
    target.set_perms(0, perms.ALL)
    await _complete(graph, name, data_name, options, plan)


async def _write_empty(target: Backend, header: Header) -> None:
    """Write the first three clusters."""
    bits = header.cluster_bits
    size = 1 << bits
    node = target.node
    if node.length() < _FIRST_CLUSTERS << bits:
        await node.truncate(_FIRST_CLUSTERS << bits)
    geometry = Geometry(bits, header.refcount_order, False)
    table = bytearray(size)
    table[:8] = layout.U64.pack(2 * size)
    counts = layout.empty_refcounts(geometry)
    for cluster in range(_FIRST_CLUSTERS):
        counts[cluster] = 1
    # The header comes last: before, this is no qcow2 image at all.
    await target.write(size, memoryview(table))
    await target.write(
        2 * size, memoryview(layout.refcounts_to_bytes(counts, header.refcount_order))
    )
    await target.write(0, memoryview(header.pack().ljust(size, b"\0")))


async def _complete(
    graph: Graph,
    file_name: str,
    data_name: str | None,
    options: BlockdevCreateOptionsQcow2,
    plan: encryption.Plan | None,
) -> None:
    """Open the empty image, give it its size, its names and its preallocation."""
    from qsd.block.backend import Backend
    from qsd.block.filename import make_options
    from qsd.block.naming import exact_filename
    from qsd.block.open import open_node

    tree: dict[str, Any] = {"driver": "qcow2", "file": file_name}
    if data_name is not None:
        tree["data-file"] = data_name
    node = await open_node(graph, make_options(tree))
    backend = Backend(graph, "", "an unnamed block device")
    try:
        backend.attach(node, perms.WRITE | perms.RESIZE | perms.CONSISTENT_READ, perms.ALL)
    except BaseException:
        await graph.close_node(node)
        raise
    try:
        driver: Qcow2Driver = node.driver  # type: ignore[assignment]
        if data_name is not None:
            # A name that does not say it all would lead to something else.
            name = exact_filename(driver.image.data_edge.node)
            if name:
                driver.image.header.extensions.insert(
                    0, Extension(layout.EXT_DATA_FILE, name.encode(errors="surrogateescape"))
                )
            await header_io.write_whole(driver.image.file, driver.image.header)
        if plan is not None:
            await plan.apply(driver.image)
        prealloc = options.preallocation or "off"
        try:
            await _resize(driver, options, prealloc)
        except QmpError as exc:
            raise prefixed(exc, "Could not resize image: ") from exc
        if options.backing_file:
            await _set_backing(driver, options)
        await backend.flush()
    finally:
        await backend.detach()


async def _resize(driver: Qcow2Driver, options: BlockdevCreateOptionsQcow2, prealloc: str) -> None:
    if not 0 <= options.size < 1 << 63:
        raise QmpError("Image size cannot be negative")
    # The name of the backing file is written later, but what is preallocated must fit it.
    driver.image.header.backing_file = options.backing_file or None
    try:
        await driver.node.truncate(options.size, prealloc=prealloc)
    finally:
        driver.image.header.backing_file = None


async def _set_backing(driver: Qcow2Driver, options: BlockdevCreateOptionsQcow2) -> None:
    name = options.backing_file or ""
    fmt = options.backing_fmt
    header = driver.image.header
    try:
        if len(name.encode(errors="surrogateescape")) > layout.MAX_BACKING_NAME:
            raise os_error(errno.EINVAL)
        if fmt is not None:
            header.extensions.insert(0, layout.backing_format(fmt))
        header.backing_file = name
        await header_io.write_whole(driver.image.file, header)
    except OSError as exc:
        header.backing_file = None
        label = f" with format '{fmt}'" if fmt is not None else ""
        raise QmpError(f"Could not assign backing file '{name}'{label}: {describe(exc)}") from exc
