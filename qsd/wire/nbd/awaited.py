# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a client of an NBD server was waiting for when the server went away in the handshake.

The C daemon reads field by field and names the field that it did not get; so does this, from what
was received.  The lists give each field's name and where it ends.

NBD specification: "Newstyle negotiation", "Oldstyle negotiation", "NBD_REP_INFO".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from collections.abc import Sequence

GREETING: Final = (("initial magic", 8), ("server magic", 16), ("server flags", 18))
#: The reply to NBD_OPT_EXPORT_NAME, and what follows the magic of an oldstyle server.
EXPORT_NAME: Final = (("export length", 8), ("export flags", 10), ("reserved block", 134))
OLDSTYLE: Final = (("export length", 8), ("export flags", 12), ("reserved block", 136))

_CONTEXT: Final = (("context id", 4), ("context name", nbd.MAX_REQUEST))
_INFO: Final = (("info type", 2), ("info payload", nbd.MAX_REQUEST))
_INFO_EXPORT: Final = (("info type", 2), ("info size", 10), ("info flags", 12))
_INFO_BLOCK_SIZE: Final = (
    *(("info type", 2), ("info minimum block size", 6)),
    *(("info preferred block size", 10), ("info maximum block size", 14)),
)


def field(fields: Sequence[tuple[str, int]], have: int) -> str:
    """Return which of some fields is not complete with so many bytes."""
    return next((name for name, end in fields if have < end), fields[-1][0])


def reply_field(buffer: bytes | bytearray) -> str:
    """Return what is missing of a reply to an option that the buffer begins with."""
    header = nbd.OPTION_REPLY
    if len(buffer) < header.size:
        return "option reply"
    _, _, kind, _ = header.unpack_from(buffer)
    have = len(buffer) - header.size
    if kind & nbd.REP_FLAG_ERROR:
        return f"option error {kind} ({nbd.reply_name(kind)}) message"
    if kind == nbd.REP_META_CONTEXT:
        return field(_CONTEXT, have)
    if kind != nbd.REP_INFO:
        return "option reply"
    about = nbd.U16.unpack_from(buffer, header.size)[0] if have >= nbd.U16.size else None
    known = {nbd.INFO_EXPORT: _INFO_EXPORT, nbd.INFO_BLOCK_SIZE: _INFO_BLOCK_SIZE}
    return field(known.get(about, _INFO) if about is not None else _INFO, have)
