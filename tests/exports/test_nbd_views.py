# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Replies sent from where the data is, seen by a client: like all others."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import subprocess
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.block.drain import Drained
from qsd.catalog import find_driver
from qsd.exports import nbd_quick, nbd_views
from qsd.exports.nbd_quick import QuickReads
from qsd.exports.nbd_transmission import Transmission
from qsd.exports.nbd_views import ViewReads
from qsd.exports.outlet import Outlet
from qsd.formats.raw import RawDriver
from tests.exports.rig import READ, TRIM, WRITE, ZEROES, Client, NbdRig
from tests.support.tools import need
from tests.support.views import need_views

MIB = 1 << 20
K4 = 4096


class Sent:
    """What was sent without a copy.

    Attributes:
        runs: Requests answered by each call.
        errors: Calls that failed.
    """

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.errors = 0

    @property
    def requests(self) -> int:
        return sum(self.runs)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    noted = Sent()
    send, send_parts = ViewReads._send, Outlet.send_parts

    def spy(self: ViewReads, *args: Any) -> int:
        count = send(self, *args)
        noted.runs.append(count)
        return count

    def watch(self: Outlet, parts: Any) -> int:
        try:
            return send_parts(self, parts)
        except OSError:
            noted.errors += 1
            raise

    serve, cut, refused = QuickReads._serve, QuickReads._cut, QuickReads._refused

    def spy_quick(self: QuickReads, requests: memoryview) -> bool:
        noted.runs.append(len(requests) // 28)
        served = serve(self, requests)
        if not served:
            noted.runs.pop()
        return served

    def spy_cut(self: QuickReads, count: int, parts: Any, size: int) -> None:
        noted.runs[-1] = sum(1 for end in accumulate(map(len, parts)) if end < size) // 2 + 1
        cut(self, count, parts, size)

    def spy_refused(self: QuickReads, exc: OSError) -> bool:
        noted.errors += not isinstance(exc, BlockingIOError)
        return refused(self, exc)

    monkeypatch.setattr(QuickReads, "_serve", spy_quick)
    monkeypatch.setattr(QuickReads, "_cut", spy_cut)
    monkeypatch.setattr(QuickReads, "_refused", spy_refused)
    monkeypatch.setattr(ViewReads, "_send", spy)
    monkeypatch.setattr(Outlet, "send_parts", watch)
    return noted


@pytest.fixture
def content() -> bytes:
    return random.Random(5).randbytes(2 * MIB)


@pytest.fixture
def raw(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(content)
    need_views(path)
    return path


def convert(raw: Path, path: Path) -> None:
    need("qemu-img")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)


def new_rig() -> NbdRig:
    rig = NbdRig()
    rig.graph.find_driver = find_driver
    return rig


async def export(rig: NbdRig, path: Path, fmt: str = "raw", **more: Any) -> Any:
    await rig.add(driver="file", node_name="f", filename=str(path))
    await rig.add(driver=fmt, node_name="n", file="f", **more)
    return await rig.export("n", writable=True)


async def receive(client: Client, asked: dict[int, tuple[int, int]]) -> tuple[int, int, bytes]:
    """Receive the reply to one of several reads; return its place and the data."""
    if client.structured:
        cookie, chunks = await client.reply()
        place = asked.pop(cookie)
        data = b""
        for kind, offset, what in chunks:
            assert offset == place[0] + len(data)
            data += what if kind == "data" else bytes(what)
    else:
        magic, error, cookie = struct.unpack(">IIQ", await client.get(16))
        assert (magic, error) == (0x67446698, 0)
        place = asked.pop(cookie)
        data = await client.get(place[1])
    assert len(data) == place[1]
    return *place, data


async def read_all(client: Client, content: bytes, places: list[tuple[int, int]]) -> None:
    """Ask for all places in one go and compare."""
    asked = {client.request(READ, *place): place for place in places}
    while asked:
        offset, length, data = await receive(client, asked)
        assert data == content[offset : offset + length]


PLACES = [(random.Random(n).randrange(2 * MIB - 9000), 1 + n * 37) for n in range(40)]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("window", [False, True])
def test_a_batch_is_sent_from_the_file(
    raw: Path, content: bytes, sent: Sent, structured: bool, window: bool
) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, raw, offset=K4 if window else 0)
            client = await rig.go("n", structured=structured)
            seen = content[K4:] if window else content
            await read_all(client, seen, [(0, 1), (MIB, 1)])  # now all is known to be data
            places = [(offset % (MIB - 9000), length) for offset, length in PLACES]
            before = sent.requests
            await read_all(client, seen, places)
            assert sent.requests == before + len(places)

    loop.run(main())


@pytest.mark.parametrize("structured", [False, True])
def test_qcow2(tmp_path: Path, raw: Path, content: bytes, sent: Sent, structured: bool) -> None:
    path = tmp_path / "image.qcow2"
    convert(raw, path)

    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, path, "qcow2")
            client = await rig.go("n", structured=structured)
            await read_all(client, content, [(0, 1), (MIB, 1)])
            places = [(offset - offset % K4, length) for offset, length in PLACES]
            before = sent.requests
            await read_all(client, content, places)
            assert sent.requests == before + len(places)

    loop.run(main())


def test_what_is_not_cached_is_read(raw: Path, content: bytes, sent: Sent) -> None:
    with raw.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), MIB, 512 << 10, os.POSIX_FADV_DONTNEED)

    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, raw)
            client = await rig.go("n")
            for _ in range(3):
                await read_all(client, content, PLACES)

    loop.run(main())


def test_short_runs_among_other_requests_are_left_alone(
    raw: Path, content: bytes, sent: Sent
) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, raw)
            client = await rig.go("n")
            first = client.request(READ, 5, 10)
            client.request(WRITE, 0, 4, data=b"abcd")
            client.request(READ, 0, 10)
            assert await client.reply(10) == (first, [content[5:15]])
            assert await client.reply() == (first + 1, ["ok"])
            assert await client.reply(10) == (first + 2, [b"abcd" + content[4:10]])
            assert sent.requests == 0

    loop.run(main())


def test_nothing_is_sent_from_a_drained_node(raw: Path, content: bytes, sent: Sent) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, raw)
            client = await rig.go("n")
            async with Drained([rig.graph.find("n")]):
                asked = {client.request(READ, 0, 10): (0, 10)}
                (connection,) = rig.server._clients
                assert connection._transmission is not None
                while not connection._transmission.in_flight:
                    await asyncio.sleep(0)
            assert await receive(client, asked) == (0, 10, content[:10])
            assert sent.requests == 0
            await read_all(client, content, [(0, 10)])
            assert sent.requests == 1

    loop.run(main())


@pytest.mark.parametrize("structured", [False, True])
def test_a_full_socket_takes_the_rest_later(
    raw: Path, content: bytes, sent: Sent, structured: bool
) -> None:
    places = [(n * 30_000, 32 << 10) for n in range(60)]

    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, raw)
            client = await rig.go("n", structured=structured)
            await read_all(client, content, [(0, 1), (MIB, 1)])
            (connection,) = rig.server._clients
            connection._raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
            sent.runs.clear()
            await read_all(client, content, places)
            assert sent.requests == len(places)
            assert len(sent.runs) > 1

    loop.run(main())


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_file_that_became_shorter_ends_with_zeroes(
    tmp_path: Path,
    raw: Path,
    content: bytes,
    sent: Sent,
    structured: bool,
    fmt: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (nbd_views, nbd_quick):  # nothing else shall make it look again
        monkeypatch.setattr(module, "SLOW_SEND", 99.0)
    path = raw
    if fmt == "qcow2":
        path = tmp_path / "image.qcow2"
        convert(raw, path)

    async def main() -> None:
        async with new_rig() as rig:
            await export(rig, path, fmt)
            client = await rig.go("n", structured=structured)
            for start in (0, 0, MIB):  # the first one looks for holes, others for what is cached
                await read_all(client, content, [(start + n * K4, K4) for n in range(256)])
            size = path.stat().st_size
            os.truncate(path, size - MIB - K4)
            places = [(n * K4, K4) for n in range(200, 400)]
            asked = {client.request(READ, *place): place for place in places}
            while asked:
                offset, length, data = await receive(client, asked)
                assert data in (content[offset : offset + length], bytes(length))
                if offset + length <= MIB - 70_000:
                    assert any(data)
                if offset >= MIB + 70_000:
                    assert not any(data)
            assert sent.errors, sent.runs
            os.truncate(path, size)

    loop.run(main())


def test_a_reply_that_cannot_be_completed_ends_the_connection(
    raw: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outlet, "send_parts", lambda self, parts: 20)

    async def main() -> None:
        async with new_rig() as rig:
            exported = await export(rig, raw)
            client = await rig.go("n")
            monkeypatch.setattr(RawDriver, "locate_nowait", lambda *_: None)
            exported.backend.read_nowait = lambda *_: False
            client.request(READ, 0, K4)
            assert await client.at_end()
            (report,) = rig.reports
            assert "reading from file failed: the file has changed" in report

    loop.run(main())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(READ), st.integers(0, 2 * MIB - 40_000), st.integers(1, 40_000)),
        st.tuples(st.just(READ), st.integers(0, 255).map(lambda n: n * K4), st.just(K4)),
        st.tuples(st.just(WRITE), st.integers(0, 2 * MIB - 70_000), st.integers(1, 70_000)),
        st.tuples(st.just(TRIM), st.integers(0, MIB), st.integers(1, MIB)),
        st.tuples(st.just(ZEROES), st.integers(0, MIB), st.integers(1, MIB)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, structured=st.booleans(), small=st.booleans(), seed=st.integers(0, 99))
def test_like_the_plain_way(
    tmp_path: Path,
    raw: Path,
    content: bytes,
    fmt: str,
    steps: list[tuple[int, int, int]],
    structured: bool,
    small: bool,
    seed: int,
) -> None:
    """Changes one by one; reads between them in batches, through a socket with little room."""
    path = tmp_path / f"image.{fmt}"
    if fmt == "raw":
        path.write_bytes(content)
    else:
        path.unlink(missing_ok=True)
        convert(raw, path)
    model = bytearray(content)

    async def main() -> None:
        async with new_rig() as rig:
            await rig.add(driver="file", node_name="f", filename=str(path), discard="unmap")
            await rig.add(driver=fmt, node_name="n", file="f", discard="unmap")
            await rig.export("n", writable=True)
            client = await rig.go("n", structured=structured)
            if small:
                (connection,) = rig.server._clients
                connection._raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
            places: list[tuple[int, int]] = []
            for command, offset, length in [*steps, (TRIM, 0, 4096)]:
                if command == READ:
                    places += [(offset, length)] * 3
                    continue
                await read_all(client, bytes(model), places)
                places.clear()
                data = random.Random(seed).randbytes(length) if command == WRITE else b""
                assert await client.ask(command, offset, length, data=data) == ["ok"]
                if command == TRIM:
                    # What it reads as is the format's business.
                    asked = {client.request(READ, offset, length): (offset, length)}
                    _, _, data = await receive(client, asked)
                model[offset : offset + length] = data or bytes(length)

    loop.run(main())


def test_cached_reads_alone_take_no_batch(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [0]
    process = Transmission._process

    def spy(self: Transmission) -> None:
        batches[0] += 1
        process(self)

    monkeypatch.setattr(Transmission, "_process", spy)
    (tmp_path / "f").write_bytes(content)

    async def main() -> None:
        async with NbdRig(file=find_driver("file"), raw=RawDriver) as rig:
            await rig.add(driver="file", node_name="f", filename=str(tmp_path / "f"))
            await rig.export("f", writable=True)
            client = await rig.go("f")
            assert await client.ask(READ, 512, K4) == [content[512 : 512 + K4]]
            served = batches[0]
            assert await client.ask(WRITE, 0, 512, data=b"z" * 512) == ["ok"]
            assert batches[0] == served + 1
            assert await client.ask(READ, 0, 512) == [b"z" * 512]
            now = b"z" * 512 + content[512:]
            for count in (4, 30):
                await read_all(client, now, PLACES[:count])
            assert batches[0] == served + 1
            # Of several together, those up to the first of another kind.
            asked = {client.request(READ, *place): place for place in PLACES}
            client.request(TRIM, 0, 0)
            while asked:
                await receive(client, asked)
            await client.reply()
            assert batches[0] == served + 2

    loop.run(main())


def test_a_client_that_goes_while_it_is_answered(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(content)

    def fail(self: Outlet, parts: Any) -> int:
        self._fail(BrokenPipeError(32, "Broken pipe"))
        return 0

    async def main() -> None:
        async with NbdRig(file=find_driver("file")) as rig:
            await rig.add(driver="file", node_name="f", filename=str(tmp_path / "f"))
            export = await rig.export("f")
            client = await rig.go("f")
            with monkeypatch.context() as patch:
                patch.setattr(QuickReads, "_serve", lambda self, requests: False)
                patch.setattr(Outlet, "send_parts", fail)
                client.request(READ, 0, K4)
                assert await client.at_end()
            assert not export.clients
            assert all(not buffer.holders for buffer in rig.server.pool.batches)
            other = await rig.go("f")
            assert await other.ask(READ, 0, K4) == [content[:K4]]

    loop.run(main())
