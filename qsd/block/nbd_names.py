# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Names of NBD exports, as images record them for backing files.

Two forms ("Invocation" in the manual of QEMU, "NBD")::

    nbd[+tcp]://host[:port]/[export]        nbd:host:port[:exportname=export]
    nbd+unix:///[export]?socket=path        nbd:unix:path[:exportname=export]
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from qsd.errors import QmpError

DEFAULT_PORT: Final = "10809"
_EXPORT: Final = ":exportname="


def parse_nbd_name(name: str) -> dict[str, Any]:
    """Return the options (server, export) that a name stands for.

    Raises:
        QmpError: It is malformed, or asks for TLS, which needs credentials that no name can give.
    """
    return _from_uri(name) if "://" in name else _from_old_form(name)


def _from_uri(name: str) -> dict[str, Any]:
    try:
        uri = urlsplit(name)
        port = uri.port
    except ValueError:
        raise QmpError("invalid URI") from None
    if uri.scheme not in ("nbd", "nbd+tcp", "nbd+unix"):
        raise QmpError("invalid URI")
    path = unquote(uri.path.removeprefix("/"))
    result: dict[str, Any] = {"export": path} if path else {}
    query = parse_qs(uri.query, keep_blank_values=True)
    if uri.scheme == "nbd+unix":
        if uri.netloc or list(query) != ["socket"] or len(query["socket"]) != 1:
            raise QmpError("invalid URI")
        return {"server": {"type": "unix", "path": query["socket"][0]}, **result}
    if not uri.hostname or query:
        raise QmpError("invalid URI")
    server = {"type": "inet", "host": unquote(uri.hostname), "port": str(port or DEFAULT_PORT)}
    return {"server": server, **result}


def _from_old_form(name: str) -> dict[str, Any]:
    text, found, export = name.removeprefix("nbd:").partition(_EXPORT)
    result: dict[str, Any] = {}
    if found:
        if not export:
            raise QmpError("No export name specified")
        result["export"] = export
    if not text:
        raise QmpError("No server specified")
    if text.startswith("unix:"):
        return {"server": {"type": "unix", "path": text.removeprefix("unix:")}, **result}
    host, colon, port = text.rpartition(":")
    if not colon:
        raise QmpError("host and port are needed")
    server = {"type": "inet", "host": host.removeprefix("[").removesuffix("]"), "port": port}
    return {"server": server, **result}
