# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Types that several areas share (QMP reference, "Common data types")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from qsd.qapi.model import Struct

if TYPE_CHECKING:
    from qsd.qapi.model import NullType


IoOperationType: TypeAlias = Literal["read", "write"]
"""Whether an I/O request reads or writes (QMP reference, "IoOperationType")."""


OnOffAuto: TypeAlias = Literal["auto", "on", "off"]
"""A switch that may be left to the daemon (QMP reference, "OnOffAuto")."""


OnOffSplit: TypeAlias = Literal["on", "off", "split"]
"""QMP reference, "OnOffSplit"."""


class String(Struct):
    """A string, where a union needs a struct (QMP reference, "String")."""

    str: str


StrOrNull: TypeAlias = "str | NullType"
"""A string or null (QMP reference, "StrOrNull")."""


OffAutoPCIBAR: TypeAlias = Literal["off", "auto", "bar0", "bar1", "bar2", "bar3", "bar4", "bar5"]
"""QMP reference, "OffAutoPCIBAR"."""


PCIELinkSpeed: TypeAlias = Literal["2_5", "5", "8", "16"]
"""QMP reference, "PCIELinkSpeed"."""


PCIELinkWidth: TypeAlias = Literal["1", "2", "4", "8", "12", "16", "32"]
"""QMP reference, "PCIELinkWidth"."""


HostMemPolicy: TypeAlias = Literal["default", "preferred", "bind", "interleave"]
"""QMP reference, "HostMemPolicy"."""


NetFilterDirection: TypeAlias = Literal["all", "rx", "tx"]
"""QMP reference, "NetFilterDirection"."""

GrabToggleKeys: TypeAlias = Literal[
    "ctrl-ctrl",
    "alt-alt",
    "shift-shift",
    "meta-meta",
    "scrolllock",
    "ctrl-scrolllock",
]
"""QMP reference, "GrabToggleKeys"."""


class HumanReadableText(Struct):
    """QMP reference, "HumanReadableText"."""

    human_readable_text: str
