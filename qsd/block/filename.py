# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""File names as images record them: plain paths, protocol prefixes, ``json:`` pseudo names."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.qapi.schema.block_options import BlockdevOptions

#: By driver: what is said of nodes that relative names cannot count from.
_NO_PLACE: Final = {"blkverify": "blkverify", "nbd": "NBD", "quorum": "quorum"}
_NO_FILE: Final = 'A block device must be specified for "file"'
#: Filters whose names are prefixes, too.
_TEST_PROTOCOLS: Final = ("blkdebug", "blkverify")
#: The prefixes of names of NBD exports.
NBD_PROTOCOLS: Final = ("nbd", "nbd+tcp", "nbd+unix")
_FILES: Final = ("file", "host_device", "host_cdrom")
#: Drivers that make something of a name, by its prefix or whatever the name is like.
_NAMED: Final = {
    **{prefix: prefix for prefix in (*_FILES, "null-co", "null-aio")},
    **dict.fromkeys(NBD_PROTOCOLS, "nbd"),
}


def protocol_of(filename: str) -> str | None:
    """Return the protocol prefix of a name, None for a path.

    A colon makes a prefix only if it stands before the first slash.
    """
    colon = filename.find(":")
    if colon < 0:
        return None
    slash = filename.find("/")
    if 0 <= slash < colon:
        return None
    return filename[:colon]


def resolve_relative(node: Node, filename: str) -> str:
    """Combine a name that an image records with the place of that image.

    Raises:
        QmpError: The name is relative but the image's own name is no path.
    """
    if protocol_of(filename) is not None or filename.startswith("/"):
        return filename
    place: Node | None = node.primary_child()
    leaf = place
    while place is not None:
        # A format or filter in between does not change where the file is.
        leaf = place
        if kind := _NO_PLACE.get(leaf.driver.name):
            raise QmpError(f"Cannot generate a base directory for {kind} nodes")
        place = leaf.primary_child()
    base = leaf.driver.filename() if leaf is not None else None
    if base is None or base.startswith("json:"):
        raise QmpError(f"Cannot use relative paths with VM-level image '{base or node.name}'")
    return os.path.join(os.path.dirname(base), filename)


async def options_for_filename(
    filename: str, graph: Graph, fmt: str | None = None
) -> BlockdevOptions:
    """Build options that open the file called `filename`: of the protocol node, or for json: any.

    Files are looked at in threads: they may be exports of this very daemon.

    Args:
        filename: The name.
        graph: Knows the drivers.
        fmt: The format that is told with the name, or recorded.  It counts more than one inside a
            json: name, and one that is a protocol more than the prefix: with "file", "nbd:x" is the
            name of a file.

    Raises:
        QmpError: Unknown protocol, malformed json: name.
    """
    protocol = protocol_of(filename)
    if protocol == "json":
        return await _from_json_name(filename[len("json:") :], graph, fmt)
    if fmt is not None and fmt in _NAMED.values():
        return make_options(_options_of(fmt, filename))
    if protocol is None:
        driver = await graph.pool.run(_driver_for_path, filename)
        return make_options({"driver": driver, "filename": filename})
    if protocol in _NAMED:
        return make_options(_options_of(_NAMED[protocol], filename))
    cls = graph.find_driver(protocol)
    if cls is not None and (cls.family == "protocol" or protocol in _TEST_PROTOCOLS):
        return make_options({"driver": protocol, "url": filename})
    raise QmpError(f"Unknown protocol '{protocol}'")


def _options_of(driver: str, filename: str) -> dict[str, Any]:
    """Return what a driver makes of a name.

    Raises:
        QmpError: Nothing.
    """
    if driver == "nbd":
        from qsd.block.nbd_names import parse_nbd_name

        return {"driver": driver, **parse_nbd_name(filename)}
    if driver in _FILES:
        path = filename.removeprefix(f"{driver}:")
        if path != filename and protocol_of(path) is not None:
            path = f"./{path}"  # which nobody takes for a prefix
        return {"driver": driver, "filename": path}
    if filename != f"{driver}://":
        raise QmpError(f"The only allowed filename for this driver is '{driver}://'")
    return {"driver": driver}


async def target_options(filename: str, fmt: str | None, source: Node) -> BlockdevOptions:
    """Build options for what a command copies a node to.

    Without a format the content tells one, but not where the node is itself of a protocol.

    Raises:
        QmpError: As :func:`options_for_filename` and :func:`format_over`.
    """
    graph = source.graph
    options = await options_for_filename(filename, graph, fmt)
    if fmt is None and source.driver.family == "protocol":
        return options
    return await format_over(options, fmt, graph)


def _driver_for_path(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "file"
    return "host_device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "file"


def make_options(tree: dict[str, Any]) -> BlockdevOptions:
    """Turn plain values into typed options."""
    from qsd.qapi.convert import from_json_loose
    from qsd.qapi.schema.block_options import BlockdevOptions

    options: BlockdevOptions = from_json_loose(BlockdevOptions, tree)
    return options


async def _from_json_name(text: str, graph: Graph, fmt: str | None) -> BlockdevOptions:
    from qsd.qapi.json_text import loads

    try:
        tree = loads(text)
    except QmpError as exc:
        raise QmpError(f"Could not parse the JSON options: {exc.desc}") from exc
    if not isinstance(tree, dict):
        raise QmpError("Invalid JSON object given")
    options = nested(tree)
    if fmt is not None:
        options["driver"] = fmt
    await graph.pool.run(_find_drivers, options)
    _check_file(options)
    if "nbd" in text or fmt == "nbd":
        from qsd.block.nbd_names import modern_options

        options = modern_options(options)
    return make_options(options)


def _find_drivers(options: dict[str, Any]) -> None:
    """Find drivers that a json: name does not tell: by the path, as it is, or by the content.

    Raises:
        QmpError: There is nothing to tell them by.
    """
    file, backing = options.get("file"), options.get("backing")
    if isinstance(file, dict) and "driver" not in file:
        filename = file.get("filename")
        if not file:
            raise QmpError(_NO_FILE)
        if isinstance(filename, str):
            file["driver"] = _driver_for_path(filename)
    for child in (file, backing):
        if isinstance(child, dict):
            _find_drivers(child)
    if "driver" in options:
        return
    if not isinstance(file, dict):
        raise QmpError("Must specify either driver or file")
    path = file.get("filename") if file["driver"] in ("file", "host_device") else None
    options["driver"] = _guess(path)


def _check_file(options: dict[str, Any]) -> None:
    """Refuse a format over nothing, and a file without a name.

    Raises:
        QmpError: It is that.
    """
    from qsd.qapi.model import branch_type
    from qsd.qapi.schema.block_options import BlockdevOptions, BlockdevOptionsGenericFormat

    driver, file = str(options["driver"]), options.get("file")
    branch = branch_type(BlockdevOptions, driver)
    is_format = branch is not None and issubclass(branch, BlockdevOptionsGenericFormat)
    if is_format and file is None:
        raise QmpError(_NO_FILE)
    if driver in _FILES and not isinstance(options.get("filename"), str):
        raise QmpError(f"The '{driver}' block driver requires a file name")
    if isinstance(file, dict):
        _check_file(file)


def nested(tree: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys ("file.filename") into nested objects; both spellings are legal in json:."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        *path, last = key.split(".")
        target = result
        for part in path:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise QmpError(f"Parameter '{key}' is used inconsistently")
            target = inner
        target[last] = nested(value) if isinstance(value, dict) else value
    return result


async def format_over(options: BlockdevOptions, fmt: str | None, graph: Graph) -> BlockdevOptions:
    """Put a format node over protocol options, unless they are complete already.

    Args:
        options: What the file name gave.
        fmt: The recorded format; None lets the opener probe (driver "x-probe" is never used: the
            guess is made here from the file's first bytes).
        graph: Knows the drivers.

    Raises:
        QmpError: Unknown format.
    """
    from qsd.qapi.schema.block_options import BlockdevOptions as Options

    cls = graph.find_driver(options.driver)
    if cls is not None and cls.family != "protocol":
        return options
    if fmt is None:
        fmt = await graph.pool.run(_guess, getattr(options.branch, "filename", None))
    fmt_cls = graph.find_driver(fmt)
    if fmt_cls is None:
        raise QmpError(f"Unknown driver '{fmt}'")
    if fmt_cls.family == "protocol":
        return options
    from qsd.qapi.model import branch_type

    branch = branch_type(Options, fmt)
    assert branch is not None  # every format has a branch
    return Options(driver=fmt, branch=branch(file=options))  # type: ignore[arg-type]


def _guess(filename: object) -> str:
    """Probe a plain file; everything else counts as raw, also what is no name."""
    from qsd.block.probe import PROBE_SIZE, probe

    if not isinstance(filename, str):
        return "raw"
    try:
        fd = os.open(filename, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return "raw"
    try:
        return probe(os.pread(fd, PROBE_SIZE, 0))
    finally:
        os.close(fd)
