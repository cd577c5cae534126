# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The client's side of the NBD handshake, without a socket.

Bytes from the server go in (:meth:`ClientHandshake.receive`), bytes for it come out
(:meth:`ClientHandshake.take_output`).  What is asked for, in this order::

    GREETING --> [STARTTLS --> TLS] --> STRUCTURED --> META --> GO --> DONE
        |                                   |                   |
        |                                   \-- refused --------^ GO is unknown: EXPORT_NAME
        \--> OLDSTYLE --> DONE

    any --> FAILED: a ``QmpError`` with the text a user should read

A server that refuses structured replies is not asked for metadata contexts; one that does not know
NBD_OPT_GO gets NBD_OPT_EXPORT_NAME.  Nothing is taken in without a limit.

NBD specification: "Newstyle negotiation", "Oldstyle negotiation", "Option types".
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from qsd.errors import QmpError
from qsd.util.namedtuple import NamedTuple
from qsd.wire.nbd import awaited
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.machine import DONE, EOF_TEXT, FAILED, TLS, Machine
from qsd.wire.nbd.metacontext import BASE_ALLOCATION

if TYPE_CHECKING:
    from collections.abc import Callable

# Phases, beyond those of both sides.
GREETING: Final = "greeting"
OLDSTYLE: Final = "oldstyle"
STARTTLS: Final = "starttls"
STRUCTURED: Final = "structured"
META: Final = "meta"
GO: Final = "go"
NAME: Final = "name"

MOVES: Final = {
    GREETING: (OLDSTYLE, STARTTLS, STRUCTURED, NAME, FAILED),
    OLDSTYLE: (DONE, FAILED),
    STARTTLS: (TLS, FAILED),
    TLS: (STRUCTURED, FAILED),
    STRUCTURED: (META, GO, FAILED),
    META: (GO, FAILED),
    GO: (NAME, DONE, FAILED),
    NAME: (DONE, FAILED),
    DONE: (FAILED,),
    FAILED: (),
}

#: Bytes; longest reply to an option that is taken in.
MAX_REPLY: Final = 32 << 20
#: Replies to one option; real servers send a few.
MAX_REPLIES: Final = 1000
#: Bytes; the longest export that the C daemon takes for an image.
MAX_SIZE: Final = (1 << 63) - (1 << 30)
#: Bytes; the largest minimum block size that is believed ("NBD_INFO_BLOCK_SIZE").
MAX_MIN_BLOCK: Final = 64 << 10

_OPTION_OF_PHASE: Final = {
    STARTTLS: nbd.OPT_STARTTLS,
    STRUCTURED: nbd.OPT_STRUCTURED_REPLY,
    META: nbd.OPT_SET_META_CONTEXT,
    GO: nbd.OPT_GO,
}

_REFUSALS: Final = {
    nbd.REP_ERR_UNSUP: "Unsupported option type {option} ({name})",
    nbd.REP_ERR_POLICY: "Denied by server for option {option} ({name})",
    nbd.REP_ERR_INVALID: "Invalid parameters for option {option} ({name})",
    nbd.REP_ERR_PLATFORM: "Server lacks support for option {option} ({name})",
    nbd.REP_ERR_TLS_REQD: "TLS negotiation required before option {option} ({name})",
    nbd.REP_ERR_UNKNOWN: "Requested export not available",
    nbd.REP_ERR_SHUTDOWN: "Server shutting down before option {option} ({name})",
    nbd.REP_ERR_BLOCK_SIZE_REQD: "Server requires INFO_BLOCK_SIZE for option {option} ({name})",
}

#: What a user may do about a refusal.
_ADVICE: Final = {nbd.REP_ERR_TLS_REQD: "Did you forget a valid tls-creds?"}

_FROM_NBD: Final = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    75: errno.EOVERFLOW,
    95: errno.ENOTSUP,
    108: errno.ESHUTDOWN,
}


def system_errno(code: int) -> int:
    """Return the errno for an error number on the wire; EINVAL for one that is not known."""
    return _FROM_NBD.get(code, errno.EINVAL)


class Agreement(NamedTuple):
    """What the handshake settled.

    Attributes:
        size: Length of the export in bytes.
        flags: Transmission flags.
        structured: Whether replies may be structured.
        context_id: Id of the metadata context that was asked for, None if there is none.
        min_block: Requests are multiples of it, bytes.
        preferred_block: Bytes, 0 if the server does not say.
        max_block: Longest payload, bytes.
    """

    size: int
    flags: int
    structured: bool = False
    context_id: int | None = None
    min_block: int = 1
    preferred_block: int = 0
    max_block: int = nbd.MAX_REQUEST


class ClientHandshake(Machine):
    """One handshake.

    Attributes:
        phase: One of the phases above.
        agreement: What was settled, once DONE.
    """

    moves = MOVES

    __slots__ = (
        "_blocks",
        "_context",
        "_context_id",
        "_export",
        "_info",
        "_no_zeroes",
        "_replies",
        "_structured",
        "_tls",
        "agreement",
    )

    def __init__(self, export: str, *, context: str = BASE_ALLOCATION, tls: bool = False) -> None:
        """Prepare to ask for an export.

        Args:
            export: Its name.
            context: The one metadata context to ask for.
            tls: Whether TLS is required.
        """
        super().__init__(GREETING)
        self.agreement: Agreement | None = None
        self._export = export.encode("utf-8", "surrogateescape")
        self._context = context
        self._tls = tls
        self._structured = False
        self._context_id: int | None = None
        self._no_zeroes = False
        self._replies = 0
        self._info: tuple[int, int] | None = None
        self._blocks = (1, 0, nbd.MAX_REQUEST)

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes from the server.

        Raises:
            QmpError: The handshake failed; a farewell may be there to be sent.
        """
        self._buffer += data
        try:
            while self._step():
                pass
        except QmpError:
            # NBD_OPT_ABORT: "a polite way to end"; the server then knows that nothing is wrong.
            # Only options of fixed newstyle servers may follow each other.
            self._out.clear()
            if self.phase in _OPTION_OF_PHASE:
                self._option(nbd.OPT_ABORT)
            self._move(FAILED)
            raise

    def eof(self, reason: str = EOF_TEXT) -> NoReturn:
        """Learn that nothing more will come, e.g. because the server closed the connection.

        Raises:
            QmpError: Always.
        """
        fields = _FIELDS.get(self.phase)
        if fields is None:
            missing = awaited.reply_field(self._buffer)
        else:
            missing = awaited.field(fields, len(self._buffer))
        self._move(FAILED)
        raise QmpError(f"Failed to read {missing}: {reason}")

    def tls_started(self) -> None:
        """Go on over TLS; nothing that came before counts."""
        self._buffer.clear()
        self._ask_structured()

    # Steps: each looks whether enough is there, and tells whether to go on.

    def _step(self) -> bool:
        if self.phase == GREETING:
            return self._greeting()
        if self.phase == OLDSTYLE:
            return self._oldstyle()
        if self.phase == NAME:
            return self._named()
        option = _OPTION_OF_PHASE.get(self.phase)
        return option is not None and self._reply(option)

    def _greeting(self) -> bool:
        if len(self._buffer) < 16:
            return False
        magic, style = bytes(self._buffer[:8]), bytes(self._buffer[8:16])
        if magic != nbd.NBDMAGIC:
            raise QmpError(f"Bad initial magic received: 0x{int.from_bytes(magic, 'big'):016x}")
        if style == nbd.OLDSTYLE_MAGIC:
            if self._tls:
                raise QmpError("Server does not support STARTTLS")
            if self._export:
                raise QmpError("Server does not support non-empty export names")
            del self._buffer[:16]
            self._move(OLDSTYLE)
            return True
        if style != nbd.IHAVEOPT:
            raise QmpError(f"Bad server magic received: 0x{int.from_bytes(style, 'big'):016x}")
        if len(self._buffer) < nbd.GREETING.size:
            return False
        (flags,) = nbd.U16.unpack_from(self._buffer, 16)
        del self._buffer[: nbd.GREETING.size]
        fixed = bool(flags & nbd.FLAG_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
        self._out += nbd.CLIENT_FLAGS.pack(flags & nbd.KNOWN_CLIENT_FLAGS)
        if self._tls:
            if not fixed:
                raise QmpError("Server does not support STARTTLS")
            self._option(nbd.OPT_STARTTLS)
            self._move(STARTTLS)
        elif fixed:
            self._ask_structured()
        else:
            self._ask_name()
        return True

    def _option(self, option: int, data: bytes = b"") -> None:
        self._replies = 0
        self._out += nbd.OPTION.pack(nbd.IHAVEOPT, option, len(data)) + data

    def _ask_structured(self) -> None:
        self._option(nbd.OPT_STRUCTURED_REPLY)
        self._move(STRUCTURED)

    def _ask_name(self) -> None:
        self._option(nbd.OPT_EXPORT_NAME, self._export)
        self._move(NAME)

    def _ask_go(self) -> None:
        name = self._export
        self._option(
            nbd.OPT_GO,
            nbd.U32.pack(len(name)) + name + nbd.U16.pack(1) + nbd.U16.pack(nbd.INFO_BLOCK_SIZE),
        )
        self._move(GO)

    def _ask_context(self) -> None:
        name, query = self._export, self._context.encode("utf-8", "surrogateescape")
        self._option(
            nbd.OPT_SET_META_CONTEXT,
            b"".join(
                (nbd.U32.pack(len(name)), name, nbd.U32.pack(1), nbd.U32.pack(len(query)), query)
            ),
        )
        self._move(META)

    def _reply(self, option: int) -> bool:
        header = nbd.OPTION_REPLY
        if len(self._buffer) < header.size:
            return False
        magic, answered, kind, length = header.unpack_from(self._buffer)
        if magic != nbd.OPTION_REPLY_MAGIC:
            raise QmpError("Unexpected option reply magic")
        if answered != option:
            raise QmpError(
                f"Unexpected option type {answered} ({nbd.option_name(answered)}), expected "
                f"{option} ({nbd.option_name(option)})"
            )
        if kind & nbd.REP_FLAG_ERROR:
            if length > MAX_REPLY:
                raise QmpError(f"server error {kind} ({nbd.reply_name(kind)}) message is too long")
        else:
            _CHECKS[option](kind, length)
        if length > MAX_REPLY:
            raise QmpError(f"option {option} ({nbd.option_name(option)}) reply is too long")
        if len(self._buffer) < header.size + length:
            return False
        self._replies += 1
        if self._replies > MAX_REPLIES:
            raise QmpError(f"option {option} ({nbd.option_name(option)}) has too many replies")
        data = bytes(self._buffer[header.size : header.size + length])
        del self._buffer[: header.size + length]
        handler = _HANDLERS[option]
        if not handler(self, kind, data):
            self._unexpected(option, kind, data)
        return True

    def _unexpected(self, option: int, kind: int, data: bytes) -> NoReturn:
        """Refuse a reply that ends the attempt."""
        name = nbd.option_name(option)
        text = _REFUSALS.get(kind, "Unknown error code when asking for option {option} ({name})")
        if kind == nbd.REP_ERR_UNSUP and option == nbd.OPT_STARTTLS:
            text = "Server don't support STARTTLS option"
        hints = [_ADVICE[kind]] if kind in _ADVICE else []
        if data:
            said = data[: nbd.MAX_STRING].decode("utf-8", "replace")
            hints.append(f"server reported: {said}")
        raise QmpError(text.format(option=option, name=name), hint="\n".join(hints) or None)

    def _on_tls(self, kind: int, data: bytes) -> bool:
        if kind != nbd.REP_ACK:
            return False
        if self._buffer:
            # What follows in the clear might be an attacker's; TLS begins with the client.
            raise QmpError("TLS handshake failed: An unexpected TLS packet was received.")
        self._move(TLS)
        return True

    def _on_structured(self, kind: int, data: bytes) -> bool:
        if kind == nbd.REP_ACK:
            self._structured = True
            self._ask_context()
        else:
            self._ask_go()  # should that be refused, too, the reason is more telling
        return True

    def _on_context(self, kind: int, data: bytes) -> bool:
        if kind == nbd.REP_META_CONTEXT:
            if data[4:] != self._context.encode("utf-8", "surrogateescape"):
                other = data[4 : 4 + nbd.MAX_STRING].decode("utf-8", "replace")
                raise QmpError(
                    f"Failed to negotiate meta context '{self._context}', server answered with "
                    f"different context '{other}'"
                )
            if self._context_id is not None:
                raise QmpError("Server answered with more than one context")
            (self._context_id,) = nbd.U32.unpack_from(data)
        elif kind == nbd.REP_ACK:
            self._ask_go()
        else:
            self._context_id = None
            self._ask_go()
        return True

    def _on_go(self, kind: int, data: bytes) -> bool:
        if kind == nbd.REP_INFO:
            self._on_info(data)
        elif kind == nbd.REP_ACK:
            if self._info is None or not self._info[1]:
                raise QmpError("broken server omitted NBD_INFO_EXPORT")
            self._finish(*self._info)
        elif kind == nbd.REP_ERR_UNSUP:
            self._ask_name()
        else:
            return False
        return True

    def _on_info(self, data: bytes) -> None:
        (kind,) = nbd.U16.unpack_from(data)
        record = _INFO_RECORDS.get(kind)
        if record is None:
            return
        if len(data) != record.size:
            raise QmpError(f"remaining export info len {len(data) - 2} is unexpected size")
        if kind == nbd.INFO_EXPORT:
            _, size, flags = record.unpack(data)
            least = self._blocks[0]
            if size % least:
                raise QmpError(f"export size {size} is not multiple of minimum block size {least}")
            self._info = (size, flags)
            return
        _, least, preferred, most = record.unpack(data)
        if not least or least & (least - 1):
            raise QmpError(f"server minimum block size {least} is not a power of two")
        if least > MAX_MIN_BLOCK:
            raise QmpError(f"server minimum block size {least} is too large")
        if preferred & (preferred - 1) or preferred < least:
            raise QmpError(f"server preferred block size {preferred} is not valid")
        if most < least:
            raise QmpError(f"server maximum block size {most} is not valid")
        self._blocks = (least, preferred, min(most, nbd.MAX_REQUEST))

    def _named(self) -> bool:
        need = nbd.EXPORT_NAME_REPLY.size
        padding = 0 if self._no_zeroes else len(nbd.EXPORT_NAME_PADDING)
        if len(self._buffer) < need + padding:
            return False
        size, flags = nbd.EXPORT_NAME_REPLY.unpack_from(self._buffer)
        del self._buffer[: need + padding]
        self._finish(size, flags)
        return False

    def _oldstyle(self) -> bool:
        reply = nbd.OLDSTYLE_REPLY
        if len(self._buffer) < reply.size:
            return False
        size, flags = reply.unpack_from(self._buffer)
        if flags > 0xFFFF:
            raise QmpError(f"Unexpected export flags {flags:x}x")
        del self._buffer[: reply.size]
        self._finish(size, flags)
        return False

    def _finish(self, size: int, flags: int) -> None:
        if size > MAX_SIZE:
            raise QmpError("Could not refresh total sector count: File too large")
        if not flags & nbd.FLAG_HAS_FLAGS:
            flags = 0
        least, preferred, most = self._blocks
        self.agreement = Agreement(
            size, flags, self._structured, self._context_id, least, preferred, most
        )
        self._move(DONE)


def _check_simple(option: int, kind: int, length: int) -> None:
    """Refuse what an option without data is not answered with."""
    name = nbd.option_name(option)
    if kind != nbd.REP_ACK:
        raise QmpError(
            f"Server answered option {option} ({name}) with unexpected reply {kind} "
            f"({nbd.reply_name(kind)})"
        )
    if length:
        raise QmpError(
            f"Option {option} ('{name}') response length is {length} (it should be zero)"
        )


def _check_context(kind: int, length: int) -> None:
    if kind == nbd.REP_ACK:
        if length:
            raise QmpError("Unexpected length to ACK response")
    elif kind != nbd.REP_META_CONTEXT:
        raise QmpError(
            f"Unexpected reply type {kind} ({nbd.reply_name(kind)}), expected "
            f"{nbd.REP_META_CONTEXT} (meta context)"
        )
    elif not nbd.U32.size < length <= MAX_REPLY:
        raise QmpError(
            f"Failed to negotiate meta context, server answered with unexpected length {length}"
        )


def _check_go(kind: int, length: int) -> None:
    if kind == nbd.REP_ACK:
        if length:
            raise QmpError("server sent invalid NBD_REP_ACK")
    elif kind != nbd.REP_INFO:
        raise QmpError(
            f"unexpected reply type {kind} ({nbd.reply_name(kind)}), expected {nbd.REP_INFO} (info)"
        )
    elif length < nbd.U16.size:
        raise QmpError(f"NBD_REP_INFO length {length} is too short")


#: What the header of a reply that is no error is checked for: its kind and the length of its data.
_CHECKS: Final[dict[int, Callable[[int, int], None]]] = {
    nbd.OPT_STARTTLS: partial(_check_simple, nbd.OPT_STARTTLS),
    nbd.OPT_STRUCTURED_REPLY: partial(_check_simple, nbd.OPT_STRUCTURED_REPLY),
    nbd.OPT_SET_META_CONTEXT: _check_context,
    nbd.OPT_GO: _check_go,
}

_INFO_RECORDS: Final = {
    nbd.INFO_EXPORT: nbd.INFO_EXPORT_REPLY,
    nbd.INFO_BLOCK_SIZE: nbd.INFO_BLOCK_SIZE_REPLY,
}

#: What comes in the phases that do not wait for replies to options.
_FIELDS: Final = {
    GREETING: awaited.GREETING,
    OLDSTYLE: awaited.OLDSTYLE,
    NAME: awaited.EXPORT_NAME,
}

_HANDLERS: Final[dict[int, Callable[[ClientHandshake, int, bytes], bool]]] = {
    nbd.OPT_STARTTLS: ClientHandshake._on_tls,
    nbd.OPT_STRUCTURED_REPLY: ClientHandshake._on_structured,
    nbd.OPT_SET_META_CONTEXT: ClientHandshake._on_context,
    nbd.OPT_GO: ClientHandshake._on_go,
}
