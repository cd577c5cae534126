# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The server's side of the NBD handshake, without a socket.

Bytes from the client go in (:meth:`ServerHandshake.receive`), bytes for it come out
(:meth:`ServerHandshake.take_output`).  The handshake walks through these phases, and `MOVES` is the
list of legal steps::

    FLAGS ---> OPTIONS ---> DONE        an export was chosen: transmission begins
      |          |  ^ \---> CLOSING      the client said NBD_OPT_ABORT
      |          v  |
      |          TLS                    STARTTLS was accepted: the shell starts TLS and says so
      \--------> FAILED  <---- any      the client broke the protocol or went away

Nothing the client says is taken in without a limit: option data beyond what any option needs is
dropped as it arrives, and no further option is looked at while replies wait to be taken.

NBD specification: "Newstyle negotiation", "Fixed newstyle negotiation", "Option types".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd import metacontext
from qsd.wire.nbd.machine import DONE, EOF_TEXT, FAILED, TLS, Machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Phases, beyond those of both sides.
FLAGS: Final = "flags"
OPTIONS: Final = "options"
CLOSING: Final = "closing"

MOVES: Final = {
    FLAGS: (OPTIONS, FAILED),
    OPTIONS: (DONE, TLS, CLOSING, FAILED),
    TLS: (OPTIONS, FAILED),
    DONE: (),
    CLOSING: (),
    FAILED: (),
}

#: Bytes; while more reply data waits, no further option is answered.
MAX_OUTPUT: Final = 64 << 10
#: Bytes; longer names are shortened in messages.
_MAX_SHOWN_NAME: Final = 80


class Offer(Protocol):
    """What the handshake needs to know of an export."""

    @property
    def name(self) -> str:
        """The export's name; bytes that are not UTF-8 are surrogates."""

    @property
    def description(self) -> str | None:
        """A text for people, or None."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def flags(self) -> int:
        """Transmission flags, without DF."""

    @property
    def minimum_block(self) -> int:
        """Bytes; the alignment that the image asks for."""

    @property
    def maximum_block(self) -> int:
        """Bytes; the longest payload that is welcome, though no more than MAX_REQUEST."""

    @property
    def contexts(self) -> Sequence[tuple[int, str]]:
        """Ids and names of the metadata contexts."""


class Directory(Protocol):
    """The exports a client may choose from."""

    def find(self, name: str) -> Offer | None:
        """Return the export of that name."""

    def offers(self) -> Iterable[Offer]:
        """Return all exports in the order they are listed."""


class ServerHandshake(Machine):
    """One client's handshake.

    Attributes:
        phase: One of the phases above.
        tls_required: Whether TLS must be started before anything else is allowed.
        tls_active: Whether the shell has started TLS.
        export: The chosen export, once DONE.
        structured: Whether structured replies were negotiated.
        contexts: Ids and names of the metadata contexts that were negotiated for `export`.
        error: Why the connection ends, once FAILED.
    """

    moves = MOVES

    __slots__ = (
        "_context_export",
        "_fixed",
        "_no_zeroes",
        "_option",
        "_refusal",
        "_skip",
        "contexts",
        "directory",
        "error",
        "export",
        "structured",
        "tls_active",
        "tls_required",
    )

    def __init__(self, directory: Directory, *, tls_required: bool = False) -> None:
        super().__init__(FLAGS)
        self.directory = directory
        self.tls_required = tls_required
        self.tls_active = False
        self.export: Offer | None = None
        self.structured = False
        self.contexts: tuple[tuple[int, str], ...] = ()
        self.error: str | None = None
        self._context_export: Offer | None = None
        self._fixed = False
        self._no_zeroes = False
        # The option whose data is being dropped, what is left of it, and the reply it will get.
        self._option = 0
        self._skip = 0
        self._refusal: bytes | None = None
        self._out += nbd.GREETING.pack(
            nbd.NBDMAGIC, nbd.IHAVEOPT, nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES
        )

    def _fail(self, error: str) -> bool:
        self.error = error
        self._move(FAILED)
        return False

    # The shell's side

    @property
    def is_over(self) -> bool:
        """Whether no more input is wanted."""
        return self.phase in (DONE, CLOSING, FAILED)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client and answer what can be answered."""
        if self.is_over:
            return
        self._buffer += data
        self.advance()

    def advance(self) -> None:
        """Go on after output was taken."""
        while len(self._out) < MAX_OUTPUT and self._step():
            pass

    def eof(self, reason: str = EOF_TEXT) -> None:
        """Take notice that the client went away."""
        if self.is_over:
            return
        have = len(self._buffer)
        if self.phase == FLAGS:
            self._fail(f"Failed to read flags: {reason}")
        elif self._skip:
            self._fail(reason)
        elif have < 8:
            self._fail(f"Failed to read opts magic: {reason}")
        elif have < 12:
            self._fail(f"Failed to read option: {reason}")
        elif have < 16:
            self._fail(f"Failed to read option length: {reason}")
        else:
            self._fail(reason)

    def tls_started(self) -> None:
        """Go on after the shell has encrypted the connection."""
        self._move(OPTIONS)
        self.tls_active = True
        # NBD_OPT_STARTTLS: the server MUST forget what was negotiated in the clear.
        self.structured = False
        self._forget_contexts()

    # Steps: each returns whether another one may be possible.

    def _step(self) -> bool:
        if self.phase == OPTIONS:
            return self._step_option()
        if self.phase == FLAGS:
            return self._step_flags()
        return False

    def _step_flags(self) -> bool:
        buffer = self._buffer
        if len(buffer) < nbd.CLIENT_FLAGS.size:
            return False
        (flags,) = nbd.CLIENT_FLAGS.unpack_from(buffer)
        del buffer[: nbd.CLIENT_FLAGS.size]
        unknown = flags & ~nbd.KNOWN_CLIENT_FLAGS
        if unknown:
            # "The server MUST close the TCP connection if it does not recognise a client flag".
            return self._fail(f"Unknown client flags {unknown:#x} received")
        self._fixed = bool(flags & nbd.FLAG_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
        self._move(OPTIONS)
        return True

    def _step_option(self) -> bool:
        buffer = self._buffer
        if self._skip or self._refusal is not None:
            return self._step_skip()
        if len(buffer) < nbd.OPTION.size:
            if buffer and not nbd.IHAVEOPT.startswith(bytes(buffer[:8])):
                return self._fail("Bad magic received")
            return False
        magic, option, length = nbd.OPTION.unpack_from(buffer)
        if magic != nbd.IHAVEOPT:
            return self._fail("Bad magic received")
        if length > nbd.MAX_REQUEST:
            return self._fail(f"len ({length} ) is larger than max len ({nbd.MAX_REQUEST})")
        if option == nbd.OPT_EXPORT_NAME and length > nbd.MAX_STRING and self._may_negotiate():
            return self._fail("Bad length received")
        refusal = self._refuse(option, length)
        if refusal is not None or self.phase == FAILED:
            del buffer[: nbd.OPTION.size]
            self._option, self._skip, self._refusal = option, length, refusal
            return self.phase == OPTIONS
        if len(buffer) < nbd.OPTION.size + length:
            return False
        data = bytes(buffer[nbd.OPTION.size : nbd.OPTION.size + length])
        del buffer[: nbd.OPTION.size + length]
        self._answer(option, data)
        return True

    def _step_skip(self) -> bool:
        """Drop the data of an option that was refused, then send the refusal."""
        buffer = self._buffer
        dropped = min(self._skip, len(buffer))
        del buffer[:dropped]
        self._skip -= dropped
        if self._skip:
            return False
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._out += refusal
        if self._option == nbd.OPT_ABORT:
            self._move(CLOSING)
        return True

    def _may_negotiate(self) -> bool:
        return self.tls_active or not self.tls_required

    def _refuse(self, option: int, length: int) -> bytes | None:
        """Return the reply to an option that can be answered without its data, None for others."""
        if not self._fixed and option != nbd.OPT_EXPORT_NAME:
            # Only fixed newstyle has replies to options.
            self._fail(f"Unsupported option {option} ({nbd.option_name(option)})")
            return None
        if option == nbd.OPT_ABORT:
            return nbd.option_reply(option, nbd.REP_ACK)
        if not self._may_negotiate() and option != nbd.OPT_STARTTLS:
            if option == nbd.OPT_EXPORT_NAME:
                # This option has no error reply: the session ends.
                self._fail(f"Option {option:#x} not permitted before TLS")
                return None
            return self._error(
                option, nbd.REP_ERR_TLS_REQD, f"Option {option:#x} not permitted before TLS"
            )
        if option in (nbd.OPT_LIST, nbd.OPT_STRUCTURED_REPLY, nbd.OPT_STARTTLS):
            if length:
                return self._invalid(
                    option, f"option '{nbd.option_name(option)}' has unexpected length"
                )
            if option == nbd.OPT_STARTTLS:
                return self._refuse_tls()
            return None
        if option not in nbd.OPTION_NAMES:
            return self._error(
                option, nbd.REP_ERR_UNSUP, f"Unsupported option {option} (<unknown>)"
            )
        if length > nbd.MAX_OPTION_DATA:
            return self._error(option, nbd.REP_ERR_TOO_BIG, "option data too long")
        return None

    def _refuse_tls(self) -> bytes | None:
        if self.tls_active:
            return self._invalid(nbd.OPT_STARTTLS, "TLS already enabled")
        if not self.tls_required:
            return self._error(nbd.OPT_STARTTLS, nbd.REP_ERR_POLICY, "TLS not configured")
        return None

    # Replies

    @staticmethod
    def _error(option: int, reply_type: int, message: str) -> bytes:
        return nbd.option_reply(option, reply_type, message.encode("utf-8", "surrogateescape"))

    def _invalid(self, option: int, message: str) -> bytes:
        return self._error(option, nbd.REP_ERR_INVALID, message)

    def _inconsistent(self, option: int) -> bytes:
        return self._invalid(option, f"Inconsistent lengths in option {nbd.option_name(option)}")

    def _answer(self, option: int, data: bytes) -> None:
        """Answer an option whose data is complete."""
        if option == nbd.OPT_EXPORT_NAME:
            self._export_name(data)
        elif option == nbd.OPT_LIST:
            self._list()
        elif option in (nbd.OPT_INFO, nbd.OPT_GO):
            self._info(option, data)
        elif option in (nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT):
            self._meta_context(option, data)
        elif option == nbd.OPT_STRUCTURED_REPLY:
            if self.structured:
                self._out += self._invalid(option, "structured reply already negotiated")
            else:
                self.structured = True
                self._out += nbd.option_reply(option, nbd.REP_ACK)
        else:
            self._start_tls()

    def _start_tls(self) -> None:
        if self._buffer:
            # Bytes sent in the clear behind the option could pose as encrypted ones.
            self._fail("Data received before TLS was started")
            return
        self._out += nbd.option_reply(nbd.OPT_STARTTLS, nbd.REP_ACK)
        self._move(TLS)

    def _list(self) -> None:
        for offer in self.directory.offers():
            name = _encode(offer.name)
            self._out += nbd.option_reply(
                nbd.OPT_LIST,
                nbd.REP_SERVER,
                nbd.U32.pack(len(name)) + name + _encode(offer.description or ""),
            )
        self._out += nbd.option_reply(nbd.OPT_LIST, nbd.REP_ACK)

    def _transmission_flags(self, offer: Offer) -> int:
        return offer.flags | (nbd.FLAG_SEND_DF if self.structured else 0)

    def _choose(self, offer: Offer) -> None:
        """Enter transmission with an export; contexts count only if set for that very export."""
        if self._context_export is not offer:
            self._forget_contexts()
        self.export = offer
        self._move(DONE)

    def _export_name(self, data: bytes) -> None:
        # The original's strings end at a NUL.
        offer = self.directory.find(_decode(data.partition(b"\0")[0]))
        if offer is None:
            self._fail("export not found")
            return
        self._out += nbd.EXPORT_NAME_REPLY.pack(offer.size, self._transmission_flags(offer))
        if not self._no_zeroes:
            self._out += nbd.EXPORT_NAME_PADDING
        self._choose(offer)

    def _take_name(self, option: int, data: bytes, behind: int) -> tuple[str, int] | None:
        """Return the name at the start of option data and where it ends.

        Args:
            option: The option, for messages.
            data: Length of the name (32 bits), name, then at least `behind` bytes more.
            behind: As said.

        Returns:
            None after an error reply was queued.
        """
        if len(data) < 4:
            self._out += self._inconsistent(option)
            return None
        (length,) = nbd.U32.unpack_from(data)
        if length > nbd.MAX_STRING:
            self._out += self._invalid(option, f"Invalid name length: {length}")
            return None
        end = 4 + length
        if len(data) < end:
            self._out += self._inconsistent(option)
            return None
        name = data[4:end]
        if b"\0" in name:
            self._out += self._embedded_nul(option)
            return None
        if len(data) < end + behind:
            self._out += self._inconsistent(option)
            return None
        return _decode(name), end

    def _embedded_nul(self, option: int) -> bytes:
        return self._invalid(option, f"Unexpected embedded NUL in option {nbd.option_name(option)}")

    def _absent(self, option: int, name: str) -> bytes:
        shown = _encode(name)
        if len(shown) > _MAX_SHOWN_NAME - 1:
            shown = shown[:_MAX_SHOWN_NAME] + b"..."
        return nbd.option_reply(option, nbd.REP_ERR_UNKNOWN, b"export '" + shown + b"' not present")

    def _info(self, option: int, data: bytes) -> None:
        taken = self._take_name(option, data, 2)
        if taken is None:
            return
        name, at = taken
        (count,) = nbd.U16.unpack_from(data, at)
        at += 2
        if len(data) < at + 2 * count:
            self._out += self._inconsistent(option)
            return
        if len(data) > at + 2 * count:
            self._out += self._invalid(
                option, f"option '{nbd.option_name(option)}' has unexpected length"
            )
            return
        wanted = {nbd.U16.unpack_from(data, at + 2 * number)[0] for number in range(count)}
        offer = self.directory.find(name)
        if offer is None:
            self._out += self._absent(option, name)
            return
        self._describe(option, offer, wanted)

    def _describe(self, option: int, offer: Offer, wanted: set[int]) -> None:
        """Answer NBD_OPT_INFO or NBD_OPT_GO for an export that exists."""

        def info(data: bytes) -> None:
            self._out += nbd.option_reply(option, nbd.REP_INFO, data)

        if nbd.INFO_NAME in wanted:
            info(nbd.U16.pack(nbd.INFO_NAME) + _encode(offer.name))
        if offer.description is not None:
            info(nbd.U16.pack(nbd.INFO_DESCRIPTION) + _encode(offer.description))
        minimum = nbd.MIN_BLOCK
        if option == nbd.OPT_INFO or nbd.INFO_BLOCK_SIZE in wanted:
            minimum = offer.minimum_block
        preferred = max(nbd.PREFERRED_BLOCK, minimum)
        maximum = min(nbd.MAX_REQUEST, offer.maximum_block)
        info(nbd.INFO_BLOCK_SIZE_REPLY.pack(nbd.INFO_BLOCK_SIZE, minimum, preferred, maximum))
        info(
            nbd.INFO_EXPORT_REPLY.pack(nbd.INFO_EXPORT, offer.size, self._transmission_flags(offer))
        )
        if option == nbd.OPT_INFO:
            if minimum > nbd.MIN_BLOCK and nbd.INFO_BLOCK_SIZE not in wanted:
                self._out += self._error(
                    option,
                    nbd.REP_ERR_BLOCK_SIZE_REQD,
                    "request NBD_INFO_BLOCK_SIZE to use this export",
                )
                return
            self._out += nbd.option_reply(option, nbd.REP_ACK)
            return
        self._out += nbd.option_reply(option, nbd.REP_ACK)
        self._choose(offer)

    def _forget_contexts(self) -> None:
        self.contexts = ()
        self._context_export = None

    def _meta_context(self, option: int, data: bytes) -> None:
        listing = option == nbd.OPT_LIST_META_CONTEXT
        if not listing:
            # A later NBD_OPT_SET_META_CONTEXT replaces an earlier one, even if it fails.
            self._forget_contexts()
            if not self.structured:
                self._out += self._invalid(
                    option,
                    f"request option '{nbd.option_name(option)}' when structured reply is not "
                    "negotiated",
                )
                return
        taken = self._take_name(option, data, 0)
        if taken is None:
            return
        name, at = taken
        offer = self.directory.find(name)
        if offer is None:
            self._out += self._absent(option, name)
            return
        queries = self._take_queries(option, data, at)
        if queries is None:
            return
        names = [context for _, context in offer.contexts]
        chosen = tuple(
            offer.contexts[index] for index in metacontext.select(queries, names, listing=listing)
        )
        for number, context in chosen:
            # The list option does not hand out ids.
            self._out += nbd.option_reply(
                option,
                nbd.REP_META_CONTEXT,
                nbd.U32.pack(0 if listing else number) + _encode(context),
            )
        if not listing:
            self.contexts = chosen
            self._context_export = offer
        self._out += nbd.option_reply(option, nbd.REP_ACK)

    def _take_queries(self, option: int, data: bytes, at: int) -> list[str] | None:
        """Return the queries of a metadata context option; None after an error reply was queued."""
        if len(data) < at + 4:
            self._out += self._inconsistent(option)
            return None
        (count,) = nbd.U32.unpack_from(data, at)
        at += 4
        queries: list[str] = []
        for _ in range(count):
            if len(data) < at + 4:
                self._out += self._inconsistent(option)
                return None
            (length,) = nbd.U32.unpack_from(data, at)
            at += 4
            if len(data) < at + length:
                self._out += self._inconsistent(option)
                return None
            if length <= nbd.MAX_STRING:  # a longer one names nothing of ours
                query = data[at : at + length]
                if b"\0" in query:
                    self._out += self._embedded_nul(option)
                    return None
                queries.append(_decode(query))
            at += length
        if at != len(data):
            # The original leaves the rest in the stream and stumbles over it.
            self._out += self._inconsistent(option)
            return None
        if count and not queries:
            queries.append("\0")  # all of them too long: select nothing rather than everything
        return queries


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
