# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The monitor itself (QMP reference, "QMP monitor control")."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from qsd.qapi.model import Struct, command, commands


class QmpCapabilitiesArguments(Struct):
    """QMP reference, "qmp_capabilities": the arguments."""

    enable: list[QMPCapability] | None = None


QMPCapability: TypeAlias = Literal["oob"]
"""What a client can switch on (QMP reference, "QMPCapability")."""


class VersionTriple(Struct):
    """A version number (QMP reference, "VersionTriple")."""

    major: int
    minor: int
    micro: int


class VersionInfo(Struct):
    """Version and package (QMP reference, "VersionInfo")."""

    qemu: VersionTriple
    package: str


class CommandInfo(Struct):
    """One command (QMP reference, "CommandInfo")."""

    name: str


MonitorMode: TypeAlias = Literal["readline", "control"]
"""The protocols of a monitor (QMP reference, "MonitorMode")."""


class MonitorOptions(Struct):
    """A monitor, on the command line (QMP reference, "MonitorOptions")."""

    id: str | None = None
    mode: MonitorMode | None = None
    pretty: bool | None = None
    chardev: str


COMMANDS: Final = commands(
    __name__,
    command("qmp_capabilities", "QmpCapabilitiesArguments"),
    command("query-version", returns="VersionInfo"),
    command("query-commands", returns="list[CommandInfo]"),
    command("quit"),
)
"""The commands of this module."""
