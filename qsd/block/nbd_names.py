# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Names of NBD exports, as images record them for backing files.

Two forms ("Invocation" in the manual of QEMU, "NBD")::

    nbd[+tcp]://host[:port]/[export]        nbd:host:port[:exportname=export]
    nbd+unix:///[export]?socket=path        nbd:unix:path[:exportname=export]

Options inside of ``json:`` names may be those of old images, `path` or `host` and `port`, which
have long since been put together in `server`.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from qsd.errors import QmpError

DEFAULT_PORT: Final = "10809"
_NO_URL: Final = "No valid URL specified"
_NO_NBD: Final = "File name string for NBD must start with 'nbd:'"
_NO_SERVER: Final = "NBD server address missing"
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
        raise QmpError(_NO_URL) from None
    if uri.scheme not in ("nbd", "nbd+tcp", "nbd+unix"):
        raise QmpError(_NO_URL)
    path = unquote(uri.path.removeprefix("/"))
    result: dict[str, Any] = {"export": path} if path else {}
    query = parse_qs(uri.query, keep_blank_values=True)
    if uri.scheme == "nbd+unix":
        if uri.netloc or list(query) != ["socket"] or len(query["socket"]) != 1:
            raise QmpError(_NO_URL)
        return {"server": {"type": "unix", "path": query["socket"][0]}, **result}
    if not uri.hostname or query:
        raise QmpError(_NO_URL)
    server = {"type": "inet", "host": unquote(uri.hostname), "port": str(port or DEFAULT_PORT)}
    return {"server": server, **result}


def _from_old_form(name: str) -> dict[str, Any]:
    if not name.startswith("nbd:"):
        raise QmpError(_NO_NBD)
    text, found, export = name.removeprefix("nbd:").partition(_EXPORT)
    result: dict[str, Any] = {}
    if found:
        if not export:
            raise QmpError(_NO_SERVER)
        result["export"] = export
    if not text:
        raise QmpError(_NO_SERVER)
    if text.startswith("unix:"):
        return {"server": {"type": "unix", "path": text.removeprefix("unix:")}, **result}
    host, colon, port = text.rpartition(":")
    if not colon:
        raise QmpError(f"error parsing address '{text}'")
    server = {"type": "inet", "host": host.removeprefix("[").removesuffix("]"), "port": port}
    return {"server": server, **result}


def modern_options(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of options with the server of each NBD node in its place.

    Raises:
        QmpError: There are several servers.
    """
    result = {
        key: modern_options(value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }
    if result.get("driver") != "nbd" or "server" in result:
        return result
    path, host, port = (result.pop(key, None) for key in ("path", "host", "port"))
    if path is not None and host is not None:
        raise QmpError("path and host may not be used at the same time")
    if path is not None:
        result["server"] = {"type": "unix", "path": path}
    elif host is not None:
        result["server"] = {"type": "inet", "host": host, "port": str(port or DEFAULT_PORT)}
    else:
        raise QmpError(_NO_SERVER)
    return result
