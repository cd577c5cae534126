# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""How nodes are named for people: by a plain file name, or by a ``json:`` pseudo name.

A plain name (the *exact* name) is used where opening it would give the same content again, however
the node was really opened.  Otherwise the name spells out the options that decide about the
content, the *strong* ones, of the node and everything below it::

    file f                                        f
    qcow2 over file f                             f
    raw with an offset over file f                json:{"offset": 512, "driver": "raw",
                                                        "file": {"driver": "file", ...}}
    qcow2 over file f, with a backing file that   json:{"backing": {...}, "driver": "qcow2",
    is not the one that the image records               "file": {...}}
    any filter                                    json:{"driver": "throttle", ...}

What is strong and which driver has a name of its own was found by watching the C daemon.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from qsd.block import perms
from qsd.errors import QmpError
from qsd.qapi.convert import to_json
from qsd.qapi.json_writer import dumps
from qsd.qapi.member_order import ordered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.block.node import Node

STRONG_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "blkdebug": (
        "config", "inject-error", "set-state", "align", "max-transfer", "opt-write-zero",
        "max-write-zero", "opt-discard", "max-discard",
    ),
    "blklogwrites": ("log-sector-size", "log-append"),
    "file": ("filename",),
    "ftp": ("url",),
    "ftps": ("url",),
    "host_cdrom": ("filename",),
    "host_device": ("filename",),
    "http": ("url",),
    "https": ("url",),
    "luks": ("key-secret",),
    "nbd": ("server", "export", "tls-creds", "tls-hostname"),
    "null-aio": ("size", "read-zeroes"),
    "null-co": ("size", "read-zeroes"),
    "qcow": ("encrypt.key-secret",),
    "qcow2": ("encrypt.key-secret",),
    "quorum": ("vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"),
    "raw": ("offset", "size"),
    "throttle": ("throttle-group",),
}  # fmt: skip
"""By driver, the options that decide about the content; "a.b" is member b of option a."""

#: Filters with names of their own, "blkdebug:..." and the like.
_NAMED_FILTERS: Final = frozenset({"blkdebug", "blkverify"})
#: Drivers whose own name leaves their strong options out.
_NAMELESS_WITH_OPTIONS: Final = frozenset({"null-aio", "null-co"})
#: Filters that go by the name of what they filter, whatever it looks like, and that child.
_NAMED_LIKE_CHILD: Final[Mapping[str, str]] = {
    "commit_top": "backing",
    "copy-before-write": "file",
    "mirror_top": "backing",
    "snapshot-access": "file",
}


def filename(node: Node) -> str:
    """Return the name of a node, plain or ``json:``."""
    exact = exact_filename(node)
    if exact is not None:
        return exact
    if node.driver.name in _NAMED_LIKE_CHILD:
        return filename(node.children[_NAMED_LIKE_CHILD[node.driver.name]].node)
    return "json:" + dumps(ordered(full_options(node)))


def exact_filename(node: Node) -> str | None:
    """Return the plain name of a node, or None if none says it all."""
    driver = node.driver
    own = driver.filename()
    if own is not None:
        nameless = driver.name in _NAMELESS_WITH_OPTIONS and strong_options(node)
        return None if nameless else own
    edge = node.children.get("file")
    if driver.family != "format" or edge is None:
        return None
    if strong_options(node) or is_backing_overridden(node):
        return None
    # Over another format, or a filter that goes by the name of what it filters, the plain name
    # would stand for the wrong interpretation.
    below = edge.node.driver
    if below.family == "filter" and below.name not in _NAMED_FILTERS:
        return None
    return exact_filename(edge.node) if below.filename() is not None else None


def strong_options(node: Node) -> dict[str, Any]:
    """Return the strong options that were given, with dotted keys for nested ones."""
    names = STRONG_OPTIONS.get(node.driver.name, ())
    branch = getattr(node.options, "branch", None)
    if not names or branch is None:
        return {}
    for attribute in _attributes(names):
        if getattr(branch, attribute, None) is not None:
            break
    else:
        return {}  # as nearly always, and queries ask for all nodes
    given = flat(to_json(branch))
    return {
        key: value
        for key, value in given.items()
        if any(key == name or key.startswith(name + ".") for name in names)
    }


@functools.cache
def _attributes(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the attributes of an options struct in which options of these names are found."""
    return tuple({name.partition(".")[0].replace("-", "_"): None for name in names})


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return what nested objects and lists hold, by dotted names."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    result: dict[str, Any] = {}
    for key, item in items:
        if isinstance(item, (dict, list)):
            result.update(flat(item, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = item
    return result


def full_options(node: Node) -> dict[str, Any]:
    """Return the options, children included, that open the same content as `node`."""
    result: dict[str, Any] = {"driver": node.driver.name, **strong_options(node)}
    for name, edge in node.children.items():
        if edge.role & perms.ROLE_COW:
            continue
        kind, dot, _ = name.partition(".")
        if dot:  # "children.0" of a quorum
            result.setdefault(kind, []).append(full_options(edge.node))
        else:
            result[name] = full_options(edge.node)
    if is_backing_overridden(node):
        backing = node.children.get("backing")
        result["backing"] = full_options(backing.node) if backing is not None else None
    return result


def is_backing_overridden(node: Node) -> bool:
    """Tell whether the backing file is not the one that the image itself records."""
    recorded = node.driver.backing_file()
    edge = node.children.get("backing")
    if edge is None or not edge.role & perms.ROLE_COW:
        return recorded is not None
    if recorded is None:
        return True
    if edge.node.implicit:
        return False
    return filename(edge.node) != recorded[0]


def full_backing_filename(node: Node) -> str | None:
    """Return the recorded name of the backing file as seen from here, None if there is none."""
    recorded = node.driver.backing_file()
    if recorded is None:
        return None
    from qsd.block.filename import resolve_relative

    try:
        return resolve_relative(node, recorded[0])
    except QmpError:
        return None
