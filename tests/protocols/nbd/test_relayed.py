# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Replies to relayed requests, in whatever pieces and company they come."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.polling import BusyPoll
from qsd.block.relay import OWN_COOKIES, Relayed
from qsd.protocols.nbd.connection import LONG, STAGING
from qsd.wire.nbd import messages as nbd
from tests.protocols.nbd.scripted import Scripted

READ, WRITE = nbd.CMD_READ, nbd.CMD_WRITE


class Memory:
    """What the payload of a write lies in."""

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(bytearray(data))

    def drop(self) -> None:
        raise AssertionError("that is its owner's to do")


class Owner:
    """A client that notes what it is told."""

    def __init__(self) -> None:
        self.sent = b""
        self.over: dict[int, Any] = {}

    def _note(self, cookie: int, result: Any) -> None:
        assert cookie not in self.over
        self.over[cookie] = result

    def relayed(self, replies: memoryview, requests: Sequence[Relayed]) -> None:
        self.sent += bytes(replies)
        for request in requests:
            self._note(request[1], "relayed")

    def answered(self, request: Relayed, data: memoryview | None) -> None:
        self._note(request[1], None if data is None else bytes(data))

    def not_relayed(self, request: Relayed) -> None:
        self._note(request[1], "not relayed")

    def ask(self, peer: Scripted, command: int, cookie: int, offset: int, length: int) -> None:
        """Send one request; a write is all of its cookie."""
        memory = Memory(bytes([cookie & 255]) * length) if command == WRITE else None
        peer.connection.relayed[cookie] = (self, cookie, offset, length, memory, 0)
        header = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, cookie, offset, length)
        peer.connection.relay(memoryview(header + (bytes(memory.view) if memory else b"")))


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie) + data


def chunk(cookie: int, offset: int, data: bytes, *, final: bool = True) -> bytes:
    return nbd.data_header(cookie, offset, len(data), final=final) + data


def test_usual_replies_are_handed_on() -> None:
    peer, owner = Scripted(), Owner()
    owner.ask(peer, READ, 7, 100, 50)
    owner.ask(peer, WRITE, 9, 0, 10)
    assert [fields[2:] for fields in peer.requests()] == [(READ, 7, 100, 50), (WRITE, 9, 0, 10)]
    replies = simple(9) + chunk(7, 100, b"d" * 50)
    peer.arrive(replies)
    assert owner.sent == replies
    assert owner.over == {7: "relayed", 9: "relayed"}
    assert not peer.connection.relayed


def test_two_clients_with_one_cookie() -> None:
    peer, owners = Scripted(), [Owner(), Owner()]
    owners[0].ask(peer, READ, 7, 0, 4)
    cookie = peer.connection.new_cookie()
    assert cookie > OWN_COOKIES
    peer.connection.relayed[cookie] = (owners[1], 7, 4, 4, None, 0)
    peer.arrive(chunk(7, 0, b"abcd") + chunk(cookie, 4, b"efgh"))
    assert owners[0].sent == chunk(7, 0, b"abcd")
    assert owners[1].sent == chunk(7, 4, b"efgh")


@pytest.mark.parametrize("structured", [False, True])
def test_the_beginning_of_a_reply_waits_for_its_rest(structured: bool) -> None:
    peer, owner = Scripted(structured=structured), Owner()
    owner.ask(peer, READ, 1, 0, 5000)
    data = b"x" * 5000
    reply = chunk(1, 0, data) if structured else simple(1, data=data)
    for end in (4, 18, 30, 4000):
        peer.arrive(reply[:end][len(owner.sent) :])
        reply = reply[end:]
        assert not owner.over
        assert 1 in peer.connection.relayed
    peer.arrive(reply)
    assert owner.over == {1: "relayed"}
    assert owner.sent[-5000:] == data


def test_replies_fill_the_staging_buffer() -> None:
    peer, owner = Scripted(), Owner()
    size = 64 << 10
    replies = b""
    for cookie in range(20):
        owner.ask(peer, READ, cookie, cookie * size, size)
        replies += chunk(cookie, cookie * size, bytes([cookie]) * size)
    peer.arrive(*(replies[at : at + STAGING] for at in range(0, len(replies), STAGING)))
    assert owner.sent == replies


def test_unusual_replies_are_answered_by_the_owner() -> None:
    peer, owner = Scripted(), Owner()
    owner.ask(peer, READ, 1, 0, 8)
    owner.ask(peer, READ, 2, 8, 8)
    owner.ask(peer, READ, 3, 16, 8)
    owner.ask(peer, WRITE, 4, 0, 8)
    owner.ask(peer, WRITE, 5, 0, 8)
    peer.arrive(
        nbd.hole_chunk(1, 0, 8, True)
        + chunk(2, 8, b"abcd", final=False)
        + nbd.error_reply(3, 5, "no", True)
        + chunk(2, 12, b"efgh")
        + nbd.none_chunk(4)
        + simple(5, 28)
    )
    assert owner.sent == b""
    assert owner.over == {1: bytes(8), 2: b"abcdefgh", 3: "not relayed", 4: None, 5: "not relayed"}


@pytest.mark.parametrize(
    "reply",
    [
        chunk(8, 0, b"x" * 8),  # nobody asked
        chunk(1, 4, b"x" * 8),  # beyond what was asked for
        chunk(1, 0, b"x" * 4),  # less than that
        chunk(2, 0, b"x" * 8),  # data for a write
        simple(1),  # without data
        b"\0" * 40,
    ],
)
def test_a_hostile_reply_loses_the_connection(reply: bytes) -> None:
    peer, owner = Scripted(), Owner()
    owner.ask(peer, READ, 1, 0, 8)
    owner.ask(peer, WRITE, 2, 0, 8)
    peer.arrive(reply)
    assert len(peer.lost) == 1
    assert owner.over == {1: "not relayed", 2: "not relayed"}
    assert owner.sent == b""


def test_a_lost_connection() -> None:
    peer, owner = Scripted(), Owner()
    owner.ask(peer, READ, 1, 0, 8)
    owner.ask(peer, WRITE, 2, 0, 8)
    peer.sock.ended = True
    peer.connection._on_readable()
    assert peer.lost
    assert owner.over == {1: "not relayed", 2: "not relayed"}


def test_sending_fails() -> None:
    peer, owner = Scripted(), Owner()
    peer.sock.error = OSError(errno.EPIPE, "gone")
    owner.ask(peer, WRITE, 1, 0, 8)
    assert not owner.over  # not before the call returns
    peer.loop.turn()
    assert owner.over == {1: "not relayed"}


class Noting(BusyPoll):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def arrived(self, source: int) -> None:
        self.calls.append("arrived")

    def served(self, source: int) -> None:
        self.calls.append("served")


def test_one_reply_is_waited_for_awake_but_not_several() -> None:
    peer, owner, poll = Scripted(), Owner(), Noting()
    peer.connection._poll = poll
    owner.ask(peer, READ, 1, 0, 8)
    assert poll.calls == ["served"]
    peer.arrive(chunk(1, 0, b"x" * 8))
    assert poll.calls == ["served", "arrived"]
    for cookie in (2, 3):
        owner.ask(peer, READ, cookie, 0, 8)
    peer.arrive(chunk(2, 0, b"x" * 8) + chunk(3, 0, b"x" * 8))
    assert poll.calls == ["served", "arrived", "served"]
    assert owner.over == dict.fromkeys((1, 2, 3), "relayed")


@pytest.mark.parametrize("length", [8, LONG + 5])
def test_a_full_socket(length: int) -> None:
    """What it does not take waits, in order, and headers alone are copied."""
    peer, owner = Scripted(), Owner()
    peer.sock.room = 20
    owner.ask(peer, WRITE, 1, 0, length)
    header = bytearray(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, READ, 2, 0, 8))
    peer.connection.relayed[2] = (owner, 2, 0, 8, None, 0)
    peer.connection.relay(memoryview(header))
    header[:] = bytes(len(header))
    over = peer.begin(READ, 64, memoryview(bytearray(8)))
    peer.loop.turn()
    assert len(peer.sock.sent) == 20
    peer.sock.room = 1 << 30
    (on_writable,) = peer.loop.writers.values()
    on_writable()
    found = peer.requests()
    assert [fields[2:] for fields in found[:2]] == [(WRITE, 1, 0, length), (READ, 2, 0, 8)]
    assert found[2][2:] == (READ, OWN_COOKIES + 1, 64, 8)
    assert peer.sock.sent[nbd.REQUEST.size :][:length] == b"\1" * length
    peer.arrive(chunk(found[2][3], 64, b"x" * 8) + chunk(2, 0, b"y" * 8) + simple(1))
    assert over == [True]
    assert owner.over == {1: "relayed", 2: "relayed"}


_KINDS = ("usual", "split", "hole", "error", "plain")


@given(
    kinds=st.lists(st.sampled_from(_KINDS), min_size=1, max_size=30),
    writes=st.randoms(use_true_random=False),
    cuts=st.lists(st.integers(1, 5000), max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_pieces_of_any_size(kinds: list[str], writes: Any, cuts: list[int]) -> None:
    """Each request ends once and well, whatever its reply looks like and where it is cut."""
    peer, owners = Scripted(), [Owner(), Owner()]
    stream, wanted = b"", [{}, {}]  # type: tuple[bytes, list[dict[int, Any]]]
    handed_on, plain = [b"", b""], []
    for cookie, kind in enumerate(kinds, 1):
        offset, length = cookie * 4096, writes.randint(2, 3000)
        data = writes.randbytes(length)
        if kind == "plain":
            view = memoryview(bytearray(length))
            plain.append((peer.begin(READ, offset, view), view, data))
            peer.loop.turn()
            stream += chunk(peer.connection._cookie, offset, data)
            continue
        which = writes.randint(0, 1)
        is_write = kind in ("usual", "error") and writes.random() < 0.5
        owners[which].ask(peer, WRITE if is_write else READ, cookie, offset, length)
        if kind == "usual":
            reply = simple(cookie) if is_write else chunk(cookie, offset, data)
            handed_on[which] += reply
            wanted[which][cookie] = "relayed"
        elif kind == "split":
            half = length // 2
            reply = chunk(cookie, offset, data[:half], final=False)
            reply += chunk(cookie, offset + half, data[half:])
            wanted[which][cookie] = data
        elif kind == "hole":
            reply = nbd.hole_chunk(cookie, offset, length, True)
            wanted[which][cookie] = bytes(length)
        else:
            reply = nbd.error_reply(cookie, 5, "no", True)
            wanted[which][cookie] = "not relayed"
        stream += reply
    pieces = []
    for size in cuts:
        pieces.append(stream[:size])
        stream = stream[size:]
    peer.arrive(*pieces, stream)
    assert not peer.lost
    assert [owner.over for owner in owners] == wanted
    assert [owner.sent for owner in owners] == handed_on
    assert all(over == [True] and view == data for over, view, data in plain)
