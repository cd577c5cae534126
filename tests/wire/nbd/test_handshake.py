# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.wire.nbd import handshake, machine, metacontext
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.handshake import ServerHandshake


class Offer(NamedTuple):
    name: str
    size: int = 1 << 20
    description: str | None = None
    flags: int = nbd.FLAGS_READ_ONLY
    minimum_block: int = 1
    maximum_block: int = 64 << 20
    contexts: tuple[tuple[int, str], ...] = metacontext.offered_contexts(False, [])


class Directory:
    def __init__(self, *offers: Offer) -> None:
        self.all = {offer.name: offer for offer in offers}

    def find(self, name: str) -> Offer | None:
        return self.all.get(name)

    def offers(self) -> list[Offer]:
        return list(self.all.values())


OFFERS = (
    Offer("disk", description="hello there", flags=nbd.FLAGS_WRITABLE),
    Offer("ro"),
    Offer("", contexts=metacontext.offered_contexts(True, ["b0", "b1"])),
    Offer("4k", minimum_block=4096),
)


class Peer:
    """A client of a handshake without any transport."""

    def __init__(self, flags: int | None = 3, *, tls: bool = False) -> None:
        self.core = ServerHandshake(Directory(*OFFERS), tls_required=tls)
        assert self.core.take_output() == b"NBDMAGICIHAVEOPT\0\3"
        if flags is not None:
            self.core.receive(struct.pack(">I", flags))

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self.core.receive(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
        return self.replies(option)

    def replies(self, option: int) -> list[tuple[int, bytes]]:
        out = self.core.take_output()
        replies = []
        while out:
            magic, answered, kind, length = struct.unpack_from(">QIII", out)
            assert (magic, answered) == (nbd.OPTION_REPLY_MAGIC, option)
            replies.append((kind, out[20 : 20 + length]))
            out = out[20 + length :]
        return replies

    def error(self, option: int, data: bytes = b"") -> tuple[int, str]:
        [(kind, text)] = self.option(option, data)
        assert kind >> 31
        return kind & 0x7FFFFFFF, text.decode("utf-8", "surrogateescape")


def name_data(name: bytes | str, rest: bytes = b"\0\0") -> bytes:
    data = name if isinstance(name, bytes) else name.encode()
    return struct.pack(">I", len(data)) + data + rest


def queries(*texts: str) -> bytes:
    return struct.pack(">I", len(texts)) + b"".join(name_data(text, b"") for text in texts)


INFO_DISK = [
    (3, struct.pack(">H", 2) + b"hello there"),
    (3, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
    (3, struct.pack(">HQH", 0, 1 << 20, 0xD6D)),
    (1, b""),
]


def test_list() -> None:
    peer = Peer()
    assert peer.option(nbd.OPT_LIST) == [
        (2, b"\0\0\0\4diskhello there"),
        (2, b"\0\0\0\2ro"),
        (2, b"\0\0\0\0"),
        (2, b"\0\0\0\x024k"),
        (1, b""),
    ]
    assert peer.error(nbd.OPT_LIST, b"x") == (3, "option 'list' has unexpected length")


def test_info_and_go() -> None:
    peer = Peer()
    assert peer.option(nbd.OPT_INFO, name_data("disk")) == INFO_DISK
    assert peer.core.phase == handshake.OPTIONS
    wanted = struct.pack(">HHHHH", 4, 1, 2, 9, 1)
    assert peer.option(nbd.OPT_INFO, name_data("ro", wanted)) == [
        (3, b"\0\1ro"),
        (3, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (3, struct.pack(">HQH", 0, 1 << 20, 0x50F)),
        (1, b""),
    ]
    assert peer.option(nbd.OPT_STRUCTURED_REPLY) == [(1, b"")]
    assert peer.option(nbd.OPT_GO, name_data("disk"))[-2:] == [
        (3, struct.pack(">HQH", 0, 1 << 20, 0xDED)),
        (1, b""),
    ]
    assert peer.core.phase == machine.DONE
    assert peer.core.export == OFFERS[0]
    assert peer.core.structured


def test_block_size_is_told_to_those_who_ask() -> None:
    peer = Peer()
    assert peer.option(nbd.OPT_INFO, name_data("4k"))[-1] == (
        nbd.REP_ERR_BLOCK_SIZE_REQD,
        b"request NBD_INFO_BLOCK_SIZE to use this export",
    )
    size = (3, struct.pack(">HIII", 3, 4096, 4096, 32 << 20))
    assert peer.option(nbd.OPT_INFO, name_data("4k", b"\0\1\0\3"))[0] == size
    assert peer.option(nbd.OPT_GO, name_data("4k"))[0] == (
        3,
        struct.pack(">HIII", 3, 1, 4096, 32 << 20),
    )


INCONSISTENT = (3, "Inconsistent lengths in option go")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", INCONSISTENT),
        (b"abc", INCONSISTENT),
        (b"\0\0\0\0", INCONSISTENT),
        (b"\0\0\0\0\0", INCONSISTENT),
        (b"\0\0\0\x09f\0\0", INCONSISTENT),
        (b"\0\0\0\1f\0\2\0\0", INCONSISTENT),
        (b"\xff\xff\xff\xfff\0\0", (3, "Invalid name length: 4294967295")),
        (name_data(b"f" * 4097), (3, "Invalid name length: 4097")),
        (name_data("f", b"\0\0\0"), (3, "option 'go' has unexpected length")),
        (name_data(b"no\0pe"), (3, "Unexpected embedded NUL in option go")),
        (name_data(b"\xff\xfeno"), (6, "export '\udcff\udcfeno' not present")),
        (name_data("n" * 79), (6, f"export '{'n' * 79}' not present")),
        (name_data("n" * 80), (6, f"export '{'n' * 80}...' not present")),
        (name_data("n" * 4096), (6, f"export '{'n' * 80}...' not present")),
        (bytes((256 << 10) + 1), (9, "option data too long")),
    ],
)
def test_bad_go(data: bytes, expected: tuple[int, str]) -> None:
    peer = Peer()
    assert peer.error(nbd.OPT_GO, data) == expected
    assert peer.option(nbd.OPT_GO, name_data("disk")) == INFO_DISK


def test_unknown_options_are_skipped_whole() -> None:
    peer = Peer()
    for option in (0, 4, 11, 99, 0xFFFFFFFF):
        text = f"Unsupported option {option} (<unknown>)"
        assert peer.error(option, b"IHAVEOPT" * 20000) == (1, text)
    assert len(peer.core._buffer) == 0


def test_structured_reply() -> None:
    peer = Peer()
    assert peer.error(8, b"x") == (3, "option 'structured reply' has unexpected length")
    assert peer.option(8) == [(1, b"")]
    assert peer.error(8) == (3, "structured reply already negotiated")


def test_tls_is_refused_where_there_is_none() -> None:
    peer = Peer()
    assert peer.error(5, b"abc") == (3, "option 'starttls' has unexpected length")
    assert peer.error(5) == (2, "TLS not configured")


def test_tls_is_required_where_there_is_some() -> None:
    peer = Peer(tls=True)
    assert peer.error(3) == (5, "Option 0x3 not permitted before TLS")
    assert peer.error(7, name_data("disk")) == (5, "Option 0x7 not permitted before TLS")
    assert peer.option(5) == [(1, b"")]
    assert peer.core.phase == machine.TLS
    peer.core.tls_started()
    assert peer.error(5) == (3, "TLS already enabled")
    assert peer.option(7, name_data("disk")) == INFO_DISK


def test_bytes_behind_starttls_are_not_trusted() -> None:
    peer = Peer(tls=True)
    option = b"IHAVEOPT" + struct.pack(">II", 5, 0)
    peer.core.receive(option + b"IHAVEOPT")
    assert peer.core.phase == machine.FAILED


def test_export_name_needs_tls_too() -> None:
    peer = Peer(tls=True)
    assert peer.option(nbd.OPT_EXPORT_NAME, b"disk") == []
    assert peer.core.phase == machine.FAILED


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_export_name(flags: int) -> None:
    peer = Peer(flags)
    peer.core.receive(b"IHAVEOPT" + struct.pack(">II", 1, 2) + b"ro" + b"request")
    out = peer.core.take_output()
    assert out == struct.pack(">QH", 1 << 20, 0x50F) + bytes(0 if flags & 2 else 124)
    assert peer.core.export == OFFERS[1]
    assert peer.core.take_rest() == b"request"


def test_a_name_ends_at_a_nul() -> None:
    peer = Peer(3)
    peer.core.receive(b"IHAVEOPT" + struct.pack(">II", 1, 5) + b"ro\0??")
    assert peer.core.export == OFFERS[1]


@pytest.mark.parametrize(
    ("flags", "sent", "error"),
    [
        (4, b"", "Unknown client flags 0x4 received"),
        (0x80000003, b"", "Unknown client flags 0x80000000 received"),
        (0, b"IHAVEOPT\0\0\0\3\0\0\0\0", "Unsupported option 3 (list)"),
        (3, b"IHAVEOPX\0\0\0\3\0\0\0\0", "Bad magic received"),
        (3, b"x", "Bad magic received"),
        (3, b"IHAVEOPT\0\0\0\1\0\0\0\4nope", "export not found"),
        (3, b"IHAVEOPT\0\0\0\1\0\0\x10\1", "Bad length received"),
        (
            3,
            b"IHAVEOPT\0\0\0\3\2\0\0\1",
            "len (33554433 ) is larger than max len (33554432)",
        ),
    ],
)
def test_what_ends_the_connection(flags: int, sent: bytes, error: str) -> None:
    peer = Peer(flags)
    peer.core.receive(sent)
    assert (peer.core.phase, peer.core.error) == (machine.FAILED, error)
    assert peer.core.is_over
    peer.core.receive(b"IHAVEOPT")
    assert peer.core.take_output() == b""


EOF = "Unexpected end-of-file before all data were read"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", f"Failed to read flags: {EOF}"),
        (b"\0\0\0\3", f"Failed to read opts magic: {EOF}"),
        (b"\0\0\0\3IHAVEOPT", f"Failed to read option: {EOF}"),
        (b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0", f"Failed to read option length: {EOF}"),
        (b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\x09abc", EOF),
        (b"\0\0\0\3IHAVEOPT\0\0\0\x63\0\0\0\x09abc", EOF),
    ],
)
def test_eof(sent: bytes, error: str) -> None:
    peer = Peer(None)
    peer.core.receive(sent)
    peer.core.eof()
    assert peer.core.error == error
    peer.core.eof("something else")
    assert peer.core.error == error


@pytest.mark.parametrize("data", [b"", b"with data"])
def test_abort(data: bytes) -> None:
    peer = Peer()
    assert peer.option(nbd.OPT_ABORT, data) == [(1, b"")]
    assert peer.core.phase == handshake.CLOSING


def test_meta_contexts() -> None:
    peer = Peer()
    base, depth = (4, b"\0\0\0\0base:allocation"), (4, b"\0\0\0\0qemu:allocation-depth")
    maps = [(4, b"\0\0\0\0qemu:dirty-bitmap:b0"), (4, b"\0\0\0\0qemu:dirty-bitmap:b1")]
    done = (1, b"")
    listed = nbd.OPT_LIST_META_CONTEXT
    assert peer.option(listed, name_data("", queries())) == [base, depth, *maps, done]
    assert peer.option(listed, name_data("", queries("qemu:"))) == [depth, *maps, done]
    assert peer.option(listed, name_data("", queries("qemu:dirty-bitmap:"))) == [*maps, done]
    assert peer.option(listed, name_data("", queries("x" * 5000))) == [done]
    assert peer.error(10, name_data("", queries())) == (
        3,
        "request option 'set meta context' when structured reply is not negotiated",
    )
    peer.option(8)
    wanted = queries("qemu:dirty-bitmap:b1", "foo:", "base:", "base:allocation")
    assert peer.option(10, name_data("", wanted)) == [
        base,
        (4, b"\0\0\0\3qemu:dirty-bitmap:b1"),
        done,
    ]
    peer.option(7, name_data(""))
    assert peer.core.contexts == ((0, "base:allocation"), (3, "qemu:dirty-bitmap:b1"))


@pytest.mark.parametrize("then", ["other", "failed set", "bad set"])
def test_meta_contexts_are_for_one_export(then: str) -> None:
    peer = Peer()
    peer.option(8)
    peer.option(10, name_data("disk", queries("base:allocation")))
    if then == "failed set":
        assert peer.error(10, name_data("nope", queries()))[0] == 6
    elif then == "bad set":
        assert peer.error(10, b"")[0] == 3
    peer.option(7, name_data("ro" if then == "other" else "disk"))
    assert peer.core.contexts == ()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "Inconsistent lengths in option list meta context"),
        (name_data("ro", b""), "Inconsistent lengths in option list meta context"),
        (name_data("ro", b"\0\0\0\1"), "Inconsistent lengths in option list meta context"),
        (
            name_data("ro", b"\0\0\0\1\0\0\0\x09abc"),
            "Inconsistent lengths in option list meta context",
        ),
        (
            name_data("ro", b"\0\0\0\0trailing"),
            "Inconsistent lengths in option list meta context",
        ),
        (
            name_data("ro", queries("base:\0")),
            "Unexpected embedded NUL in option list meta context",
        ),
    ],
)
def test_bad_meta_context(data: bytes, text: str) -> None:
    peer = Peer()
    assert peer.error(nbd.OPT_LIST_META_CONTEXT, data) == (3, text)


def test_output_is_bounded() -> None:
    peer = Peer()
    request = b"IHAVEOPT" + struct.pack(">II", 3, 0)
    peer.core.receive(request * 10_000)
    total = b""
    while out := peer.core.take_output():
        assert len(out) < handshake.MAX_OUTPUT + 1000
        total += out
        peer.core.advance()
    one = Peer()
    one.core.receive(request)
    assert total == one.core.take_output() * 10_000


def test_illegal_moves_change_nothing() -> None:
    core = Peer().core
    with pytest.raises(RuntimeError):
        core.tls_started()
    assert core.phase == handshake.OPTIONS


SESSION = (
    b"\0\0\0\3"
    + b"".join(
        b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data
        for option, data in [
            (3, b""),
            (8, b""),
            (9, name_data("", queries())),
            (99, b"unknown"),
            (10, name_data("disk", queries("base:allocation"))),
            (7, name_data("nope")),
            (7, name_data("disk", b"\0\1\0\3")),
        ]
    )
    + b"first request"
)


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    whole, bytewise = Peer(None), Peer(None)
    whole.core.receive(SESSION)
    out = b""
    for position in range(len(SESSION)):
        if bytewise.core.is_over:
            assert SESSION[position:] == b"first request"
            break
        bytewise.core.receive(SESSION[position : position + 1])
        out += bytewise.core.take_output()
    assert out == whole.core.take_output()
    assert whole.core.take_rest() == b"first request"
    assert whole.core.contexts == bytewise.core.contexts == ((0, "base:allocation"),)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 99]), st.binary(max_size=60)),
        max_size=10,
    ),
    st.binary(max_size=40),
    st.booleans(),
)
def test_any_bytes_are_survived(options: list[tuple[int, bytes]], junk: bytes, tls: bool) -> None:
    peer = Peer(tls=tls)
    for option, data in options:
        peer.core.receive(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
    peer.core.receive(junk)
    peer.core.take_output()
    peer.core.eof()
    assert peer.core.is_over
