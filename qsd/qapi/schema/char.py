# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Character devices (QMP reference, "Character devices")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import Event, Struct, Union, command, commands, member

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.schema.sockets import SocketAddressLegacy


class ChardevInfo(Struct):
    """One character device, as query-chardev shows it (QMP reference, "ChardevInfo")."""

    label: str
    filename: str
    frontend_open: bool


class ChardevBackendInfo(Struct):
    """One kind of character device (QMP reference, "ChardevBackendInfo")."""

    name: str


DataFormat: TypeAlias = Literal["utf8", "base64"]
"""How data is spelt in JSON (QMP reference, "DataFormat")."""


class RingbufWriteArguments(Struct):
    """QMP reference, "ringbuf-write": the arguments."""

    device: str
    data: str
    format: DataFormat | None = None


class RingbufReadArguments(Struct):
    """QMP reference, "ringbuf-read": the arguments."""

    device: str
    size: int
    format: DataFormat | None = None


class ChardevCommon(Struct):
    """What all character devices share (QMP reference, "ChardevCommon")."""

    logfile: str | None = None
    logappend: bool | None = None


class ChardevFile(ChardevCommon):
    """A file (QMP reference, "ChardevFile")."""

    in_: str | None = member("in", default=None)
    out: str
    append: bool | None = None


class ChardevHostdev(ChardevCommon):
    """A device of the host (QMP reference, "ChardevHostdev")."""

    device: str


class ChardevSocket(ChardevCommon):
    """A stream socket, listening or connecting (QMP reference, "ChardevSocket")."""

    addr: SocketAddressLegacy
    tls_creds: str | None = None
    tls_authz: str | None = None
    server: bool | None = None
    wait: bool | None = None
    nodelay: bool | None = None
    telnet: bool | None = None
    tn3270: bool | None = None
    websocket: bool | None = None
    reconnect: int | None = None


class ChardevUdp(ChardevCommon):
    """A UDP socket (QMP reference, "ChardevUdp")."""

    remote: SocketAddressLegacy
    local: SocketAddressLegacy | None = None


class ChardevMux(ChardevCommon):
    """Several users of one device (QMP reference, "ChardevMux")."""

    chardev: str


class ChardevStdio(ChardevCommon):
    """Standard input and output (QMP reference, "ChardevStdio")."""

    signal: bool | None = None


class ChardevSpiceChannel(ChardevCommon):
    """QMP reference, "ChardevSpiceChannel"."""

    type: str


class ChardevSpicePort(ChardevCommon):
    """QMP reference, "ChardevSpicePort"."""

    fqdn: str


class ChardevDBus(ChardevCommon):
    """QMP reference, "ChardevDBus"."""

    name: str


class ChardevVC(ChardevCommon):
    """QMP reference, "ChardevVC"."""

    width: int | None = None
    height: int | None = None
    cols: int | None = None
    rows: int | None = None


class ChardevRingbuf(ChardevCommon):
    """A buffer in memory (QMP reference, "ChardevRingbuf")."""

    size: int | None = None


class ChardevQemuVDAgent(ChardevCommon):
    """QMP reference, "ChardevQemuVDAgent"."""

    mouse: bool | None = None
    clipboard: bool | None = None


ChardevBackendKind: TypeAlias = Literal[
    "file",
    "serial",
    "parallel",
    "pipe",
    "socket",
    "udp",
    "pty",
    "null",
    "mux",
    "msmouse",
    "wctablet",
    "braille",
    "testdev",
    "stdio",
    "console",
    "spicevmc",
    "spiceport",
    "qemu-vdagent",
    "dbus",
    "vc",
    "ringbuf",
    "memory",
]
"""The kinds of character devices (QMP reference, "ChardevBackendKind")."""


class ChardevFileWrapper(Struct):
    """QMP reference, "ChardevFileWrapper"."""

    data: ChardevFile


class ChardevHostdevWrapper(Struct):
    """QMP reference, "ChardevHostdevWrapper"."""

    data: ChardevHostdev


class ChardevSocketWrapper(Struct):
    """QMP reference, "ChardevSocketWrapper"."""

    data: ChardevSocket


class ChardevUdpWrapper(Struct):
    """QMP reference, "ChardevUdpWrapper"."""

    data: ChardevUdp


class ChardevCommonWrapper(Struct):
    """QMP reference, "ChardevCommonWrapper"."""

    data: ChardevCommon


class ChardevMuxWrapper(Struct):
    """QMP reference, "ChardevMuxWrapper"."""

    data: ChardevMux


class ChardevStdioWrapper(Struct):
    """QMP reference, "ChardevStdioWrapper"."""

    data: ChardevStdio


class ChardevSpiceChannelWrapper(Struct):
    """QMP reference, "ChardevSpiceChannelWrapper"."""

    data: ChardevSpiceChannel


class ChardevSpicePortWrapper(Struct):
    """QMP reference, "ChardevSpicePortWrapper"."""

    data: ChardevSpicePort


class ChardevQemuVDAgentWrapper(Struct):
    """QMP reference, "ChardevQemuVDAgentWrapper"."""

    data: ChardevQemuVDAgent


class ChardevDBusWrapper(Struct):
    """QMP reference, "ChardevDBusWrapper"."""

    data: ChardevDBus


class ChardevVCWrapper(Struct):
    """QMP reference, "ChardevVCWrapper"."""

    data: ChardevVC


class ChardevRingbufWrapper(Struct):
    """QMP reference, "ChardevRingbufWrapper"."""

    data: ChardevRingbuf


class ChardevBackend(Union):
    """A character device (QMP reference, "ChardevBackend")."""

    type: ChardevBackendKind

    TAG: ClassVar[str] = "type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "file": "ChardevFileWrapper",
        "serial": "ChardevHostdevWrapper",
        "parallel": "ChardevHostdevWrapper",
        "pipe": "ChardevHostdevWrapper",
        "socket": "ChardevSocketWrapper",
        "udp": "ChardevUdpWrapper",
        "pty": "ChardevCommonWrapper",
        "null": "ChardevCommonWrapper",
        "mux": "ChardevMuxWrapper",
        "msmouse": "ChardevCommonWrapper",
        "wctablet": "ChardevCommonWrapper",
        "braille": "ChardevCommonWrapper",
        "testdev": "ChardevCommonWrapper",
        "stdio": "ChardevStdioWrapper",
        "console": "ChardevCommonWrapper",
        "spicevmc": "ChardevSpiceChannelWrapper",
        "spiceport": "ChardevSpicePortWrapper",
        "qemu-vdagent": "ChardevQemuVDAgentWrapper",
        "dbus": "ChardevDBusWrapper",
        "vc": "ChardevVCWrapper",
        "ringbuf": "ChardevRingbufWrapper",
        "memory": "ChardevRingbufWrapper",
    }


class ChardevReturn(Struct):
    """What adding a character device tells (QMP reference, "ChardevReturn")."""

    pty: str | None = None


class ChardevAddArguments(Struct):
    """QMP reference, "chardev-add": the arguments."""

    id: str
    backend: ChardevBackend


class ChardevChangeArguments(Struct):
    """QMP reference, "chardev-change": the arguments."""

    id: str
    backend: ChardevBackend


class ChardevRemoveArguments(Struct):
    """QMP reference, "chardev-remove": the arguments."""

    id: str


class ChardevSendBreakArguments(Struct):
    """QMP reference, "chardev-send-break": the arguments."""

    id: str


class VserportChange(Event):
    """A guest opened or closed a port (QMP reference, "VSERPORT_CHANGE")."""

    NAME: ClassVar[str] = "VSERPORT_CHANGE"

    id: str
    open: bool


COMMANDS: Final = commands(
    __name__,
    command("query-chardev", returns="list[ChardevInfo]"),
    command("query-chardev-backends", returns="list[ChardevBackendInfo]"),
    command("ringbuf-write", "RingbufWriteArguments"),
    command("ringbuf-read", "RingbufReadArguments", returns="str"),
    command("chardev-add", "ChardevAddArguments", returns="ChardevReturn"),
    command("chardev-change", "ChardevChangeArguments", returns="ChardevReturn"),
    command("chardev-remove", "ChardevRemoveArguments"),
    command("chardev-send-break", "ChardevSendBreakArguments"),
)
"""The commands of this module."""
