# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The server's side of the NBD transmission phase: which requests are refused, and how.

A connection in transmission is in one of these phases; `MOVES` is the list of legal steps::

    SERVING --> FINISHING    no more requests are taken; those in flight are still answered
       |            |        (the client said NBD_CMD_DISC, or broke the protocol)
       |            v
       \------> ABORTED      nothing is answered any more; requests in flight run to their end
                    |        (the client is gone, or the export is taken away)
                    v
                  CLOSED     nothing is in flight, the socket is closed

All mistakes a client can make in a request are found by :func:`refuse`, before anything runs.

NBD specification: "Transmission", "Request types", "Error values".
"""

from __future__ import annotations

from typing import Final

from qsd.util.namedtuple import NamedTuple
from qsd.wire.nbd import messages as nbd

SERVING: Final = "serving"
FINISHING: Final = "finishing"
ABORTED: Final = "aborted"
CLOSED: Final = "closed"

MOVES: Final = {
    SERVING: (FINISHING, ABORTED),
    FINISHING: (ABORTED, CLOSED),
    ABORTED: (CLOSED,),
    CLOSED: (),
}

#: Why a connection ends whose stream of requests can no longer be followed.
LOST_TRACK: Final = "Request handling failed in intermediate state"

# Flags that are understood with a command; FUA is accepted with every one.
_FLAGS: Final = {
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE,
}
_WRITING: Final = (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES)
_BUFFERED: Final = (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_CACHE)


class Session(NamedTuple):
    """What the handshake settled.

    Attributes:
        size: Length of the export in bytes.
        read_only: Whether requests that change the export are refused.
        structured: Whether structured replies are used.
        contexts: Ids of the metadata contexts that block status reports.
    """

    size: int
    read_only: bool
    structured: bool
    contexts: tuple[int, ...] = ()


class Refusal(NamedTuple):
    """The answer to a request that cannot be carried out as it stands.

    Attributes:
        error: The error number on the wire.
        message: What goes with it in a structured reply.
        fatal: Whether the stream of requests cannot be followed any further.
    """

    error: int
    message: str
    fatal: bool = False


def move(phase: str, target: str) -> str:
    """Return `target`.

    Raises:
        RuntimeError: There is no such step.
    """
    if target not in MOVES[phase]:
        raise RuntimeError(f"NBD connection cannot go from {phase} to {target}")
    return target


def refuse_header(magic: int, command: int, length: int) -> Refusal | None:
    """Refuse a request whose payload must not even be waited for."""
    if magic != nbd.REQUEST_MAGIC:
        return Refusal(nbd.EINVAL, f"invalid magic (got {magic:#x})", fatal=True)
    if command == nbd.CMD_WRITE and length > nbd.MAX_REQUEST:
        return _too_long(length, fatal=True)
    return None


def _too_long(length: int, *, fatal: bool = False) -> Refusal:
    message = f"len ({length} ) is larger than max len ({nbd.MAX_REQUEST})"
    return Refusal(nbd.EINVAL, message, fatal)


def refuse(session: Session, flags: int, command: int, offset: int, length: int) -> Refusal | None:
    """Refuse a request that breaks the protocol; None lets it run.

    The order of the checks is the original's, since the message tells which one failed.  A request
    past the end is EINVAL for every command, also where the specification prefers ENOSPC.
    """
    if length > nbd.MAX_REQUEST and command in _BUFFERED:
        return _too_long(length)
    if session.read_only and command in _WRITING:
        return Refusal(nbd.EINVAL, "Export is read-only")
    if offset > session.size or length > session.size - offset:
        return Refusal(
            nbd.EINVAL,
            f"operation past EOF; From: {offset}, Len: {length}, Size: {session.size}",
        )
    if command == nbd.CMD_READ and session.structured:
        known = nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_DF
    else:
        known = _FLAGS.get(command, nbd.CMD_FLAG_FUA)
    if flags & ~known:
        return Refusal(
            nbd.EINVAL,
            f"unsupported flags for command {nbd.command_name(command)} (got {flags:#x})",
        )
    if command == nbd.CMD_BLOCK_STATUS:
        if not length:
            return Refusal(nbd.EINVAL, "need non-zero length")
        if not session.contexts:
            return Refusal(nbd.EINVAL, "CMD_BLOCK_STATUS not negotiated")
    elif command not in nbd.COMMAND_NAMES:
        return Refusal(nbd.EINVAL, f"invalid request type ({command}) received")
    return None
