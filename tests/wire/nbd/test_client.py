# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The client's handshake, mostly against the server's."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.errors import QmpError
from qsd.wire.nbd import client, handshake, machine
from qsd.wire.nbd import messages as nbd


class Offer:
    name = "x"
    description = None
    size = 4096
    flags = nbd.FLAGS_WRITABLE
    minimum_block = 512
    maximum_block = 1 << 20
    contexts: Sequence[tuple[int, str]] = ((0, "base:allocation"), (2, "qemu:dirty-bitmap:b"))


class Directory:
    def find(self, name: str) -> Offer | None:
        return Offer() if name == "x" else None

    def offers(self) -> Iterable[Offer]:
        return [Offer()]


def play(ours: client.ClientHandshake, theirs: handshake.ServerHandshake, step: int = 1000) -> None:
    """Carry bytes to and fro until nobody has anything to say."""
    while True:
        out = theirs.take_output()
        for at in range(0, len(out), step):
            ours.receive(out[at : at + step])
        answer = ours.take_output()
        if answer:
            theirs.receive(answer)
        elif not out:
            return


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_agreement(step: int) -> None:
    ours = client.ClientHandshake("x")
    play(ours, handshake.ServerHandshake(Directory()), step)
    assert ours.phase == machine.DONE
    found = ours.agreement
    assert found is not None
    assert (found.size, found.structured, found.context_id) == (4096, True, 0)
    assert found.flags == nbd.FLAGS_WRITABLE | nbd.FLAG_SEND_DF
    assert (found.min_block, found.max_block) == (512, 1 << 20)


def test_other_context() -> None:
    ours = client.ClientHandshake("x", context="qemu:dirty-bitmap:b")
    play(ours, handshake.ServerHandshake(Directory()))
    assert ours.agreement is not None
    assert ours.agreement.context_id == 2


def test_unknown_export() -> None:
    with pytest.raises(QmpError, match=r"^Requested export not available$") as caught:
        play(client.ClientHandshake("y"), handshake.ServerHandshake(Directory()))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("server reported: ")


def test_a_refused_client_takes_its_leave() -> None:
    """The server must not think that something went wrong."""
    ours, theirs = client.ClientHandshake("y"), handshake.ServerHandshake(Directory())
    with pytest.raises(QmpError):
        play(ours, theirs)
    theirs.receive(ours.take_output())
    assert theirs.phase == handshake.CLOSING


def test_tls_is_required_by_the_server() -> None:
    server = handshake.ServerHandshake(Directory(), tls_required=True)
    with pytest.raises(QmpError, match=r"^TLS negotiation required before option 7 ") as caught:
        play(client.ClientHandshake("x"), server)
    assert caught.value.hint == (
        "Did you forget a valid tls-creds?\nserver reported: Option 0x7 not permitted before TLS"
    )


def test_tls_first() -> None:
    ours = client.ClientHandshake("x", tls=True)
    theirs = handshake.ServerHandshake(Directory(), tls_required=True)
    play(ours, theirs)
    assert (ours.phase, theirs.phase) == (machine.TLS, machine.TLS)
    theirs.tls_started()
    ours.tls_started()
    play(ours, theirs)
    assert ours.phase == machine.DONE


def greeting(flags: int = 3) -> bytes:
    return nbd.GREETING.pack(nbd.NBDMAGIC, nbd.IHAVEOPT, flags)


def test_bytes_before_tls_are_refused() -> None:
    ours = client.ClientHandshake("x", tls=True)
    ours.receive(greeting())
    with pytest.raises(QmpError, match="unexpected TLS packet"):
        ours.receive(nbd.option_reply(nbd.OPT_STARTTLS, nbd.REP_ACK) + b"injected")
    assert ours.phase == machine.FAILED


def test_server_without_new_options() -> None:
    ours = client.ClientHandshake("x")
    ours.receive(greeting())
    ours.receive(nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ERR_UNSUP))
    ours.receive(nbd.option_reply(nbd.OPT_GO, nbd.REP_ERR_UNSUP))
    assert ours.phase == client.NAME
    ours.receive(nbd.EXPORT_NAME_REPLY.pack(1024, nbd.FLAG_HAS_FLAGS) + b"rest")
    assert ours.agreement == client.Agreement(1024, nbd.FLAG_HAS_FLAGS)
    assert ours.take_rest() == b"rest"


def test_oldstyle() -> None:
    ours = client.ClientHandshake("")
    ours.receive(nbd.NBDMAGIC + nbd.OLDSTYLE_MAGIC + nbd.OLDSTYLE_REPLY.pack(512, 5))
    assert ours.agreement == client.Agreement(512, 5)


def test_nobody_falls_back_from_tls_to_a_server_that_has_none() -> None:
    for replies in (
        (nbd.NBDMAGIC + nbd.OLDSTYLE_MAGIC + nbd.OLDSTYLE_REPLY.pack(512, 5),),
        (greeting(0),),
        (greeting(), nbd.option_reply(nbd.OPT_STARTTLS, nbd.REP_ERR_UNSUP)),
        (greeting(), nbd.option_reply(nbd.OPT_STARTTLS, nbd.REP_ERR_POLICY)),
    ):
        ours = client.ClientHandshake("", tls=True)
        *before, last = replies
        for reply in before:
            ours.receive(reply)
        with pytest.raises(QmpError):
            ours.receive(last)
        assert ours.phase == machine.FAILED
        assert ours.agreement is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n", "Bad initial magic received: 0x485454502f312e31"),
        (b"NBDMAGICxxxxxxxx", "Bad server magic received: 0x7878787878787878"),
        (b"NBDMAGIC" + nbd.OLDSTYLE_MAGIC, "Server does not support non-empty export names"),
    ],
)
def test_no_such_server(data: bytes, message: str) -> None:
    with pytest.raises(QmpError) as caught:
        client.ClientHandshake("x").receive(data)
    assert caught.value.desc == message


def info(*fields: int) -> bytes:
    return nbd.option_reply(nbd.OPT_GO, nbd.REP_INFO, nbd.INFO_BLOCK_SIZE_REPLY.pack(3, *fields))


def export_info(size: int, flags: int = 1) -> bytes:
    return nbd.option_reply(
        nbd.OPT_GO, nbd.REP_INFO, nbd.INFO_EXPORT_REPLY.pack(nbd.INFO_EXPORT, size, flags)
    )


DONE = nbd.option_reply(nbd.OPT_GO, nbd.REP_ACK)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (info(3, 4096, 4096), "server minimum block size 3 is not a power of two"),
        (info(0, 4096, 4096), "server minimum block size 0 is not a power of two"),
        (info(1 << 20, 1 << 20, 1 << 20), "server minimum block size 1048576 is too large"),
        (info(512, 256, 4096), "server preferred block size 256 is not valid"),
        (info(512, 512, 511), "server maximum block size 511 is not valid"),
        (DONE, "broken server omitted NBD_INFO_EXPORT"),
        (export_info(4096, 0) + DONE, "broken server omitted NBD_INFO_EXPORT"),
        (
            info(4096, 4096, 4096) + export_info(1000000),
            "export size 1000000 is not multiple of minimum block size 4096",
        ),
        (
            export_info((1 << 63) - (1 << 30) + 1) + DONE,
            "Could not refresh total sector count: File too large",
        ),
        (
            nbd.option_reply(nbd.OPT_GO, nbd.REP_INFO, b"\0"),
            "NBD_REP_INFO length 1 is too short",
        ),
        (
            nbd.option_reply(nbd.OPT_GO, nbd.REP_INFO, b"\0\0\0"),
            "remaining export info len 1 is unexpected size",
        ),
        (nbd.option_reply(nbd.OPT_GO, nbd.REP_ACK, b"x"), "server sent invalid NBD_REP_ACK"),
        (
            nbd.option_reply(nbd.OPT_GO, nbd.REP_SERVER),
            "unexpected reply type 2 (server), expected 3 (info)",
        ),
        (
            nbd.option_reply(nbd.OPT_LIST, nbd.REP_ACK),
            "Unexpected option type 3 (list), expected 7 (go)",
        ),
        (
            nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, nbd.OPT_GO, nbd.REP_INFO, 1 << 31),
            "option 7 (go) reply is too long",
        ),
        (
            nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, nbd.OPT_GO, 0x80000003, 1 << 31),
            "server error 2147483651 (invalid) message is too long",
        ),
        (
            nbd.option_reply(nbd.OPT_GO, nbd.REP_ERR_TLS_REQD),
            "TLS negotiation required before option 7 (go)",
        ),
        (b"\0" * 20, "Unexpected option reply magic"),
    ],
)
def test_nonsense_is_refused(reply: bytes, message: str) -> None:
    ours = client.ClientHandshake("x")
    ours.receive(greeting() + nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ERR_UNSUP))
    with pytest.raises(QmpError) as caught:
        ours.receive(reply)
    assert caught.value.desc == message
    assert ours.phase == machine.FAILED


def context(name: bytes) -> bytes:
    return nbd.option_reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_META_CONTEXT, b"\0\0\0\1" + name)


@pytest.mark.parametrize(
    ("option", "reply", "message"),
    [
        (
            nbd.OPT_STRUCTURED_REPLY,
            nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ACK, b"x"),
            "Option 8 ('structured reply') response length is 1 (it should be zero)",
        ),
        (
            nbd.OPT_STRUCTURED_REPLY,
            nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_INFO, b"x"),
            "Server answered option 8 (structured reply) with unexpected reply 3 (info)",
        ),
        (
            nbd.OPT_SET_META_CONTEXT,
            context(b"base:allocation") * 2,
            "Server answered with more than one context",
        ),
        (
            nbd.OPT_SET_META_CONTEXT,
            context(b"base:x"),
            "Failed to negotiate meta context 'base:allocation', server answered with different "
            "context 'base:x'",
        ),
        (
            nbd.OPT_SET_META_CONTEXT,
            context(b""),
            "Failed to negotiate meta context, server answered with unexpected length 4",
        ),
        (
            nbd.OPT_SET_META_CONTEXT,
            nbd.option_reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_ACK, b"x"),
            "Unexpected length to ACK response",
        ),
        (
            nbd.OPT_SET_META_CONTEXT,
            nbd.option_reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_INFO),
            "Unexpected reply type 3 (info), expected 4 (meta context)",
        ),
    ],
)
def test_nonsense_about_options_is_refused(option: int, reply: bytes, message: str) -> None:
    ours = client.ClientHandshake("x")
    ours.receive(greeting())
    if option != nbd.OPT_STRUCTURED_REPLY:
        ours.receive(nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ACK))
    with pytest.raises(QmpError) as caught:
        ours.receive(reply)
    assert caught.value.desc == message


def test_flags_of_an_oldstyle_server_are_16_bits() -> None:
    with pytest.raises(QmpError) as caught:
        client.ClientHandshake("").receive(
            nbd.NBDMAGIC + nbd.OLDSTYLE_MAGIC + nbd.OLDSTYLE_REPLY.pack(4096, 0x10001)
        )
    assert caught.value.desc == "Unexpected export flags 10001x"


def test_a_server_that_never_ends_is_refused() -> None:
    ours = client.ClientHandshake("x")
    ours.receive(greeting() + nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ERR_UNSUP))
    more = nbd.option_reply(nbd.OPT_GO, nbd.REP_INFO, nbd.U16.pack(77))
    ours.receive(more * client.MAX_REPLIES)
    with pytest.raises(QmpError) as caught:
        ours.receive(more)
    assert caught.value.desc.endswith("has too many replies")


OPTIONS = st.sampled_from([nbd.OPT_STARTTLS, nbd.OPT_STRUCTURED_REPLY, nbd.OPT_SET_META_CONTEXT,
                           nbd.OPT_GO, nbd.OPT_LIST])  # fmt: skip
KINDS = st.one_of(
    st.sampled_from([nbd.REP_ACK, nbd.REP_INFO, nbd.REP_META_CONTEXT, nbd.REP_ERR_UNSUP,
                     nbd.REP_ERR_POLICY, nbd.REP_ERR_UNKNOWN, nbd.REP_ERR_TLS_REQD]),
    st.integers(0, (1 << 32) - 1),
)  # fmt: skip
DATA = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    st.just(nbd.U32.pack(7) + b"base:allocation"),
    st.builds(nbd.INFO_EXPORT_REPLY.pack, st.just(0), st.integers(0, (1 << 64) - 1),
              st.integers(0, (1 << 16) - 1)),
    st.builds(nbd.INFO_BLOCK_SIZE_REPLY.pack, st.just(3),
              *[st.sampled_from([0, 1, 3, 512, 4096, 1 << 20, (1 << 32) - 1])] * 3),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    flags=st.integers(0, 7),
    replies=st.lists(st.tuples(OPTIONS, KINDS, DATA), max_size=8),
    junk=st.binary(max_size=200),
    tls=st.booleans(),
    step=st.integers(1, 500),
)
def test_any_server_is_survived(
    flags: int, replies: list[tuple[int, int, bytes]], junk: bytes, tls: bool, step: int
) -> None:
    """Whatever comes: an agreement that makes sense, a refusal, or waiting for more."""
    ours = client.ClientHandshake("x", tls=tls)
    stream = greeting(flags) + b"".join(nbd.option_reply(*reply) for reply in replies) + junk
    said = 0
    try:
        for at in range(0, len(stream), step):
            ours.receive(stream[at : at + step])
            said += len(ours.take_output())
            if ours.phase == machine.TLS:
                ours.tls_started()
    except QmpError:
        assert ours.phase == machine.FAILED
        said += len(ours.take_output())
    assert said < 500
    if ours.phase == machine.DONE:
        found = ours.agreement
        assert found is not None
        assert not found.min_block & (found.min_block - 1)
        assert found.min_block <= min(found.max_block, client.MAX_MIN_BLOCK)
        assert found.max_block <= nbd.MAX_REQUEST
        assert found.size <= client.MAX_SIZE


def test_end_of_stream() -> None:
    with pytest.raises(QmpError, match=r"^Failed to read initial magic: Unexpected end-of-file"):
        client.ClientHandshake("x").eof()
    ours = client.ClientHandshake("x")
    ours.receive(greeting())
    with pytest.raises(QmpError, match=r"^Failed to read option reply: because$"):
        ours.eof("because")


def test_error_numbers() -> None:
    assert client.system_errno(28) == errno.ENOSPC
    assert client.system_errno(12345) == errno.EINVAL
