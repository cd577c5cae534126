# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The ``--chardev`` option, in the older of the two option syntaxes (qemu(1), "-chardev")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.chardev.registry import BACKENDS, check_kind
from qsd.errors import QmpError
from qsd.net.address import AddressBody, legacy
from qsd.qapi.schema import char
from qsd.qapi.schema.common import String
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress
from qsd.util.namedtuple import NamedTuple
from qsd.util.opts import BOOL, NUMBER, SIZE, STRING, OptsSyntax, parse_opts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qsd.qapi.schema.char import ChardevBackend
    from qsd.util.opts import Value

SYNTAX: Final = OptsSyntax(
    name="chardev",
    implied_key="backend",
    types={
        "backend": STRING, "path": STRING, "host": STRING, "port": STRING, "fd": STRING,
        "localaddr": STRING, "localport": STRING, "to": NUMBER, "ipv4": BOOL, "ipv6": BOOL,
        "wait": BOOL, "server": BOOL, "delay": BOOL, "nodelay": BOOL, "reconnect": NUMBER,
        "telnet": BOOL, "tn3270": BOOL, "tls-creds": STRING, "tls-authz": STRING,
        "websocket": BOOL, "width": NUMBER, "height": NUMBER, "cols": NUMBER, "rows": NUMBER,
        "mux": BOOL, "signal": BOOL, "name": STRING, "debug": NUMBER, "size": SIZE,
        "chardev": STRING, "append": BOOL, "logfile": STRING, "logappend": BOOL, "mouse": BOOL,
        "clipboard": BOOL, "abstract": BOOL, "tight": BOOL,
    },
)  # fmt: skip

_ALIASES: Final = {"tty": "serial", "parport": "parallel"}


class ChardevOption(NamedTuple):
    """A parsed option.

    Attributes:
        id: The device's label; "" in a request for help.
        backend: What to make, None in a request for help.
        mux: Whether to put a multiplexer on it.
        help_text: What to print instead, or None.
        help_status: The exit status after that.
    """

    id: str
    backend: ChardevBackend | None
    mux: bool = False
    help_text: str | None = None
    help_status: int = 0


def parse_chardev(text: str, warn: Callable[[str], None]) -> ChardevOption:
    """Parse the value of ``--chardev``.

    Args:
        text: The value.
        warn: Told about deprecated spellings.

    Raises:
        QmpError: Something is wrong with it.
    """
    opts = parse_opts(SYNTAX, text, warn)
    if opts.wants_help:
        return ChardevOption("", None, help_text=SYNTAX.help_text(), help_status=1)
    kind = opts.values.get("backend")
    if kind in ("help", "?"):
        names = "".join(f"  {name}\n" for name in BACKENDS)
        return ChardevOption("", None, help_text=f"Available chardev backend types: \n{names}")
    if opts.id is None:
        raise QmpError("chardev: no id specified")
    if not isinstance(kind, str):
        raise QmpError(f'chardev: "{opts.id}" missing backend')
    if kind in _ALIASES:
        warn(f"The alias '{kind}' is deprecated, use '{_ALIASES[kind]}' instead")
        kind = _ALIASES[kind]
    check_kind(kind)
    make, wrapper = _MAKERS[kind]
    values: Any = opts.values
    options = make({**_COMMON, **values})
    options.logfile = values.get("logfile")
    options.logappend = values.get("logappend")
    backend = char.ChardevBackend(type=kind, branch=wrapper(data=options))  # type: ignore[arg-type]
    return ChardevOption(opts.id, backend, bool(values.get("mux")))


#: Parameters that every backend may look up.
_COMMON: Final[Mapping[str, Any]] = dict.fromkeys(SYNTAX.types)


def _file(values: Mapping[str, Any]) -> char.ChardevFile:
    if values["path"] is None:
        raise QmpError("chardev: file: no filename given")
    return char.ChardevFile(out=values["path"], append=bool(values["append"]))


def _device(what: str) -> Callable[[Mapping[str, Any]], char.ChardevHostdev]:
    def make(values: Mapping[str, Any]) -> char.ChardevHostdev:
        if values["path"] is None:
            raise QmpError(f"chardev: {what}: no device path given")
        return char.ChardevHostdev(device=values["path"])

    return make


def _mux(values: Mapping[str, Any]) -> char.ChardevMux:
    if values["chardev"] is None:
        raise QmpError("chardev: mux: no chardev given")
    return char.ChardevMux(chardev=values["chardev"])


def _ringbuf(values: Mapping[str, Any]) -> char.ChardevRingbuf:
    return char.ChardevRingbuf(size=values["size"])


def _stdio(values: Mapping[str, Any]) -> char.ChardevStdio:
    return char.ChardevStdio(signal=values["signal"])


def _common(values: Mapping[str, Any]) -> char.ChardevCommon:
    del values
    return char.ChardevCommon()


def _socket(values: Mapping[str, Any]) -> char.ChardevSocket:
    """Build a socket's options; here a server waits for its first client unless told not to."""
    if sum(values[key] is not None for key in ("path", "fd", "host")) > 1:
        raise QmpError("None or one of 'path', 'fd' or 'host' option required.")
    address: AddressBody
    if values["host"] is not None:
        if values["port"] is None:
            raise QmpError("chardev: socket: no port given")
        to: Value | None = values["to"]
        address = InetSocketAddress(
            host=values["host"],
            port=values["port"],
            to=None if to is None else int(to) & 0xFFFF,
            ipv4=values["ipv4"],
            ipv6=values["ipv6"],
        )
    elif values["path"] is not None:
        address = UnixSocketAddress(
            path=values["path"], abstract=values["abstract"], tight=values["tight"]
        )
    else:
        address = String(str=values["fd"] or "")
    server = bool(values["server"])
    wait = values["wait"]
    reconnect = values["reconnect"]
    delay = values["delay"]
    return char.ChardevSocket(
        addr=legacy(address),
        tls_creds=values["tls-creds"],
        tls_authz=values["tls-authz"],
        server=server,
        wait=True if server and wait is None else wait,
        nodelay=values["nodelay"] if delay is None else not delay,
        telnet=values["telnet"],
        tn3270=values["tn3270"],
        websocket=values["websocket"],
        reconnect=None if reconnect is None else _signed(reconnect),
    )


def _signed(number: int) -> int:
    """Return what a minus sign meant before it wrapped."""
    return number - (1 << 64) if number >> 63 else number


def _udp(values: Mapping[str, Any]) -> char.ChardevUdp:
    if not values["port"]:
        raise QmpError("chardev: udp: remote port not specified")
    remote = InetSocketAddress(
        host=values["host"] or "localhost",
        port=values["port"],
        ipv4=values["ipv4"],
        ipv6=values["ipv6"],
    )
    local = None
    if values["localaddr"] is not None or values["localport"] is not None:
        local = InetSocketAddress(host=values["localaddr"] or "", port=values["localport"] or "0")
    return char.ChardevUdp(remote=legacy(remote), local=None if local is None else legacy(local))


_MAKERS: Final[Mapping[str, tuple[Callable[[Mapping[str, Any]], char.ChardevCommon], Any]]] = {
    "file": (_file, char.ChardevFileWrapper),
    "memory": (_ringbuf, char.ChardevRingbufWrapper),
    "mux": (_mux, char.ChardevMuxWrapper),
    "null": (_common, char.ChardevCommonWrapper),
    "parallel": (_device("parallel"), char.ChardevHostdevWrapper),
    "pipe": (_device("pipe"), char.ChardevHostdevWrapper),
    "pty": (_common, char.ChardevCommonWrapper),
    "ringbuf": (_ringbuf, char.ChardevRingbufWrapper),
    "serial": (_device("serial/tty"), char.ChardevHostdevWrapper),
    "socket": (_socket, char.ChardevSocketWrapper),
    "stdio": (_stdio, char.ChardevStdioWrapper),
    "udp": (_udp, char.ChardevUdpWrapper),
}
