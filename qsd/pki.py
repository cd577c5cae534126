# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``qsd pki``: everything that TLS needs, in one command.

::

    qsd pki DIR [--host NAME ...] [--client NAME ...] [--days N]

makes an authority and puts directories that ``tls-creds-x509`` takes as they are below DIR::

    ca/       ca-cert.pem  ca-key.pem         to be kept safe; needed to sign further certificates
    server/   ca-cert.pem  server-cert.pem  server-key.pem
    client/   ca-cert.pem  client-cert.pem  client-key.pem        or client-NAME/ for each NAME

Run again on the same DIR, it keeps the authority and makes the rest anew.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

from qsd.errors import QmpError, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.crypto.pki import Identity

DEFAULT_DAYS: Final = 3650
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def main(words: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = _parser().parse_args(words)
    try:
        for line in make(options.directory, options.host or (), options.client or (), options.days):
            print(line)  # noqa: T201 # this is what the command is for
    except (QmpError, OSError) as exc:
        print(f"qsd pki: {describe(exc)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qsd pki", description="Make an authority, server and client certificates."
    )
    parser.add_argument("directory", metavar="DIR", help="where to put them")
    parser.add_argument(
        "--host", action="append", metavar="NAME",
        help="name or address of the server, beside those of this machine; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--client", action="append", metavar="NAME", help="name of a client; may be repeated"
    )
    parser.add_argument("--days", type=int, default=DEFAULT_DAYS, help="how long they are valid")
    return parser


def make(directory: str, hosts: Sequence[str], clients: Sequence[str], days: int) -> list[str]:
    """Make all certificates.

    Args:
        directory: Where to put them; made where it is missing.
        hosts: Names and addresses of the server, beside this machine's own.
        clients: Names of clients; none means one that is called "client".
        days: How long they are valid.

    Returns:
        What to tell the user: how to use each directory.

    Raises:
        QmpError: An authority is there but cannot be used.
        OSError: Something could not be written.
    """
    from qsd.crypto.pki import make_leaf

    if days <= 0:
        raise QmpError("The number of days must be positive")
    for name in clients:
        if not name or "/" in name or name in (".", ".."):
            raise QmpError(f"'{name}' is no name for a client")
    authority = _authority(os.path.join(directory, "ca"), days)
    own = socket.gethostname()
    names = list(dict.fromkeys((*hosts, *_LOCAL, own)))
    server = make_leaf(authority, "server", hosts[0] if hosts else own, names, days)
    lines = [_store(os.path.join(directory, "server"), "server", authority, server)]
    for name in clients or ("client",):
        place = os.path.join(directory, f"client-{name}" if clients else "client")
        client = make_leaf(authority, "client", name, (), days)
        lines.append(_store(place, "client", authority, client))
    return lines


def _authority(directory: str, days: int) -> Identity:
    """Return the authority of a directory, made now if there is none."""
    from qsd.crypto.pki import load_identity, make_authority

    certificate = os.path.join(directory, "ca-cert.pem")
    key = os.path.join(directory, "ca-key.pem")
    if os.path.exists(certificate) and os.path.exists(key):
        with open(certificate, "rb") as first, open(key, "rb") as second:
            return load_identity(first.read(), second.read())
    authority = make_authority("qsd certificate authority", days)
    _write(certificate, authority.certificate_pem())
    _write(key, authority.key_pem(), mode=0o600)
    return authority


def _store(directory: str, role: str, authority: Identity, identity: Identity) -> str:
    _write(os.path.join(directory, "ca-cert.pem"), authority.certificate_pem())
    _write(os.path.join(directory, f"{role}-cert.pem"), identity.certificate_pem())
    _write(os.path.join(directory, f"{role}-key.pem"), identity.key_pem(), mode=0o600)
    return f"--object tls-creds-x509,id=tls0,endpoint={role},dir={directory}"


def _write(path: str, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file; a key is never readable by others, not even for a moment."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as handle:
        handle.write(data)
    os.replace(temporary, path)
