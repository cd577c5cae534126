# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Adjacent writes that become one, seen by a client: like all others."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.catalog import find_driver
from qsd.exports.nbd_joins import JoinedWrites
from tests.exports.rig import FUA, READ, WRITE, Client, NbdRig
from tests.support.tools import need

MIB = 1 << 20
K64 = 64 << 10
#: Bytes; room for a run of the longest writes.
SIZE = 2 * MIB
KINDS = ["raw", "qcow2"]


def on_image(kind: str, body: Callable[[NbdRig, Client], Awaitable[None]]) -> None:
    """Serve a new image to a client; it must be sound afterwards."""
    need("qemu-img")

    async def main(path: Path) -> None:
        rig = NbdRig()
        rig.graph.find_driver = find_driver
        async with rig:
            await rig.add(
                driver=kind, node_name="n", file={"driver": "file", "filename": str(path)}
            )
            await rig.export("n", writable=True)
            await body(rig, await rig.go("n"))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(SIZE)], check=True)
        loop.run(main(path))
        if kind == "qcow2":
            subprocess.run(["qemu-img", "check", "-q", path], check=True)


async def answers(client: Client, cookies: set[int]) -> dict[int, Any]:
    """Receive the replies to writes."""
    replies = {}
    while cookies:
        cookie, chunks = await client.reply()
        cookies.remove(cookie)
        replies[cookie] = chunks
    return replies


async def content_of(client: Client) -> bytes:
    cookie = client.request(READ, 0, SIZE)
    answered, chunks = await client.reply(SIZE)
    assert answered == cookie
    return bytes(chunks[0])


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each write had that was done."""
    noted: list[int] = []
    plain = JoinedWrites._is_written

    def spy(self: JoinedWrites, offset: int, views: Any, length: int) -> bool:
        done = plain(self, offset, views, length)
        if done:
            noted.append(len(views))
        return done

    monkeypatch.setattr(JoinedWrites, "_is_written", spy)
    return noted


#: A gap before a write, its length and its flags.
steps = st.tuples(
    st.sampled_from([0, 0, 0, 0, 512, 4096, K64]),
    st.sampled_from([512, 4096, 16 << 10, K64, K64, K64, 1000, 200 << 10]),
    st.sampled_from([0, 0, 0, 0, 0, FUA]),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    batches=st.lists(
        st.tuples(st.integers(0, 12), st.lists(steps, min_size=1, max_size=20)), max_size=4
    ),
    seed=st.integers(0, 99),
)
def test_like_a_bytearray(
    kind: str, batches: list[tuple[int, list[tuple[int, int, int]]]], seed: int
) -> None:
    """Batches of writes that follow each other, or nearly, to new space and over old data."""

    async def body(rig: NbdRig, client: Client) -> None:
        content = bytearray(SIZE)
        source = random.Random(seed)
        await client.ask(WRITE, 0, 512, data=bytes(512))  # the tables are there
        for start, batch in batches:
            offset, cookies = start * K64, set()
            for gap, length, flags in batch:
                offset += gap
                data = source.randbytes(max(0, min(length, SIZE - offset)))
                if not data:
                    break
                content[offset : offset + len(data)] = data
                cookies.add(client.request(WRITE, offset, len(data), flags, data))
                offset += len(data)
            replies = await answers(client, cookies)
            assert all(chunks == ["ok"] for chunks in replies.values())
        assert await content_of(client) == content

    on_image(kind, body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_long_writes(kind: str, joined: list[int]) -> None:
    """More than the receive buffer holds, so that parts of requests move about in it."""
    content = random.Random(kind).randbytes(SIZE)

    async def body(rig: NbdRig, client: Client) -> None:
        for _ in range(3):
            cookies = {
                client.request(WRITE, offset, K64, data=content[offset : offset + K64])
                for offset in range(0, SIZE, K64)
            }
            replies = await answers(client, cookies)
            assert all(chunks == ["ok"] for chunks in replies.values())
        assert await content_of(client) == content

    on_image(kind, body)
    assert sum(joined) > SIZE // K64


@pytest.mark.parametrize("kind", KINDS)
def test_one_write_for_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    plain = os.pwritev

    def spy(fd: int, views: Any, offset: int) -> int:
        calls.append((len(views), sum(map(len, views))))
        return plain(fd, views, offset)

    async def body(rig: NbdRig, client: Client) -> None:
        await client.ask(WRITE, 0, 512, data=bytes(512))
        monkeypatch.setattr(os, "pwritev", spy)
        for _ in range(2):  # new clusters, then in place
            await answers(
                client,
                {client.request(WRITE, MIB + at * 4096, 4096, data=b"x" * 4096) for at in range(8)},
            )
        monkeypatch.undo()
        # Those that do not follow each other are for the hot loop.
        await answers(
            client,
            {client.request(WRITE, at * 8192, 4096, data=b"y" * 4096) for at in range(8)},
        )

    on_image(kind, body)
    assert calls == [(8, 32768), (8, 32768)]


def test_who_must_see_writes_sees_them() -> None:
    """Nodes with a write threshold, at the top or below, are written to one by one."""

    async def body(rig: NbdRig, client: Client) -> None:
        node = rig.graph.find("n")
        backend = rig.registry.find("exp-n").backend
        await client.ask(WRITE, 0, 512, data=bytes(512))
        views = [memoryview(b"x" * 512)] * 2
        write = backend.views_path()
        assert write is not None
        assert write(0, views, 1024)
        for watched in (node, node.children["file"].node):
            watched.write_threshold = SIZE
            watched.refresh_fast_paths()
            write = backend.views_path()
            assert write is None or not write(0, views, 1024)
            watched.write_threshold = 0
            watched.refresh_fast_paths()
        backend.drained_begin()
        assert backend.views_path() is None
        backend.drained_end()
        backend.force_writethrough = True
        assert backend.views_path() is None
        backend.force_writethrough = False
        assert backend.views_path() is not None

    for kind in KINDS:
        on_image(kind, body)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_told_by_the_plain_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def refuse(*_: Any) -> int:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    async def body(rig: NbdRig, client: Client) -> None:
        await client.ask(WRITE, 0, 512, data=b"z" * 512)
        for name in ("pwritev", "pwrite"):
            monkeypatch.setattr(os, name, refuse)
        cookies = {
            client.request(WRITE, K64 + at * 4096, 4096, data=b"x" * 4096) for at in range(4)
        }
        replies = await answers(client, cookies)
        monkeypatch.undo()
        assert all(chunks == ["error", errno.ENOSPC] for chunks in replies.values())
        assert await content_of(client) == b"z" * 512 + bytes(SIZE - 512)

    on_image(kind, body)
    assert calls > 4


def test_what_is_wrong_behind_a_run_is_refused() -> None:
    """A write beyond the end once its payload is there, one that is too long at once."""

    async def body(rig: NbdRig, client: Client) -> None:
        good = client.request(WRITE, SIZE - K64, K64, data=b"x" * K64)
        beyond = client.request(WRITE, SIZE, K64, data=b"y" * K64)
        after = client.request(WRITE, 0, K64, data=b"z" * K64)
        replies = await answers(client, {good, beyond, after})
        assert replies == {good: ["ok"], beyond: ["error", errno.EINVAL], after: ["ok"]}
        client.request(WRITE, 0, K64, data=b"x" * K64)
        client.request(WRITE, K64, (32 << 20) + 1)
        assert (await client.reply())[1] == ["ok"]
        await client.reply()
        assert await client.at_end()

    on_image("raw", body)
