# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.exports import nbd_scattered, nbd_transmission
from qsd.exports.buffers import Buffer
from qsd.exports.nbd_transmission import Transmission
from qsd.exports.outlet import Outlet
from tests.exports.rig import CACHE, DF, DISC, FLUSH, FUA, READ, TRIM, WRITE, ZEROES, NbdRig

MIB = 1 << 20


def test_reads_and_writes_simple() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            assert await client.ask(WRITE, 100, 5, data=b"hello") == ["ok"]
            assert await client.ask(READ, 99, 7) == [b"\0hello\0"]
            assert await client.ask(WRITE, MIB - 2, 2, FUA, b"ab") == ["ok"]
            assert disk.data[-2:] == b"ab"
            assert disk.log[-1][0] == "flush"
            assert await client.ask(READ, 0, 0) == ["ok"]
            assert await client.ask(FLUSH) == ["ok"]
            assert await client.ask(CACHE, 0, MIB) == ["ok"]
            assert await client.ask(ZEROES, 100, 3) == ["ok"]
            assert await client.ask(READ, 100, 5) == [b"\0\0\0lo"]
            assert await client.ask(TRIM, 0, 4096, FUA) == ["ok"]
            client.request(DISC)
            assert await client.at_end()
            assert rig.reports == []

    loop.run(main())


def test_structured_replies_have_holes() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.data[:4096] = b"x" * 4096
            disk.data[8192:12288] = b"y" * 4096
            await rig.export("m", writable=True)
            client = await rig.go("m", structured=True)
            assert await client.ask(READ, 0, 16384) == [
                ("data", 0, b"x" * 4096),
                ("hole", 4096, 4096),
                ("data", 8192, b"y" * 4096),
                ("hole", 12288, 4096),
            ]
            assert await client.ask(READ, 4000, 200, DF) == [("data", 4000, b"x" * 96 + bytes(104))]
            assert await client.ask(READ, 4000, 200) == [
                ("data", 4000, b"x" * 96),
                ("hole", 4096, 104),
            ]
            assert await client.ask(READ, 10, 100) == [("data", 10, b"x" * 100)]
            assert await client.ask(READ, 5000, 3) == [("hole", 5000, 3)]
            assert await client.ask(READ, 5, 0) == [("none",)]
            assert await client.ask(WRITE, 0, 1, data=b"z") == ["ok"]

    loop.run(main())


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_many_requests_in_one_go(structured: bool, fast: bool) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.fast = fast
            disk.data[:] = bytes(range(1, 256)) * (MIB // 255) + b"end!" * 4
            await rig.export("m")
            client = await rig.go("m", structured=structured)
            expected = {}
            for number in range(300):
                offset, length = number * 1000, 1 + number * 37 % 5000
                expected[client.request(READ, offset, length)] = (offset, length)
            while expected:
                if structured:
                    cookie, chunks = await client.reply()
                    offset, length = expected.pop(cookie)
                    assert {chunk[0] for chunk in chunks} == {"data"}
                    assert chunks[0][1] == offset
                    data = b"".join(chunk[2] for chunk in chunks)
                    assert len(data) == length
                else:
                    # Replies of a length that is known only from the cookie: look at it first.
                    header = await client.get(16)
                    offset, length = expected.pop(struct.unpack(">Q", header[8:])[0])
                    data = await client.get(length)
                assert data == disk.data[offset : offset + len(data)]

    loop.run(main())


def test_slow_writes_are_answered_before_the_batch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client can go on with what is done; the order and number of replies stay the same."""
    now = [0.0]
    for module in (nbd_transmission, nbd_scattered):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    sizes: list[int] = []
    send = Outlet.put_batch

    def put_batch(outlet: Outlet, buffer: Buffer, length: int) -> bool:
        sizes.append(length // 16)
        return send(outlet, buffer, length)

    monkeypatch.setattr(Outlet, "put_batch", put_batch)

    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            for cost, batches in ((0.0, [12]), (nbd_scattered.SEND_AFTER / 2, [3, 3, 3, 3])):

                def fail(operation: str, offset: int, cost: float = cost) -> int:
                    now[0] += cost
                    return 0

                disk.fail = fail
                sizes.clear()
                cookies = [client.request(WRITE, 2 * at, 1, data=b"w") for at in range(12)]
                assert [(await client.reply())[0] for _ in cookies] == cookies
                assert sizes == batches

    loop.run(main())


@pytest.mark.parametrize("length", [1, 70_000, 300_000, 3 * MIB, 32 * MIB])
@pytest.mark.parametrize("structured", [False, True])
def test_long_requests(length: int, structured: bool) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m", size=33 * MIB)
            await rig.export("m", writable=True)
            client = await rig.go("m", structured=structured)
            data = (b"0123456789abcdef" * (length // 16 + 1))[:length]
            assert await client.ask(WRITE, 512, length, data=data) == ["ok"]
            assert disk.data[512 : 512 + length] == data
            assert b"".join(
                chunk if isinstance(chunk, bytes) else chunk[2]
                for chunk in await client.ask(READ, 512, length)
            ) == (data)
            # The connection is in step, and a short request follows a long one.
            client.request(WRITE, 0, length, data=data)
            client.request(READ, 0, 1)
            await client.reply()
            assert (await client.reply(1))[0] == client.cookie

    loop.run(main())


def test_suspended_writes_keep_their_payload() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.gate = asyncio.Event()
            await rig.export("m", writable=True)
            client = await rig.go("m")
            for number in range(50):
                client.request(WRITE, number * 4096, 4096, data=bytes([number + 1]) * 4096)
            client.request(READ, 0, 10)
            while len(disk.log) < 50:
                await asyncio.sleep(0)
            disk.gate.set()
            cookies = set()
            for _ in range(50):
                cookies.add((await client.reply())[0])
            assert (await client.reply(10))[0] == 51
            assert cookies == set(range(1, 51))
            for number in range(50):
                part = disk.data[number * 4096 : (number + 1) * 4096]
                assert part == bytes([number + 1]) * 4096

    loop.run(main())


def test_requests_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(nbd_transmission, "MAX_IN_FLIGHT", 8)
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.gate = asyncio.Event()
            await rig.export("m")
            client = await rig.go("m")
            other = await rig.go("m")
            for _ in range(100):
                client.request(READ, 0, 512)
            while len(disk.log) < 8:
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(disk.log) == 8
            other.request(READ, 0, 512)
            while len(disk.log) < 9:
                await asyncio.sleep(0)
            disk.gate.set()
            for _ in range(100):
                await client.reply(512)
            await other.reply(512)

    loop.run(main())


def test_client_that_reads_nothing_stops_being_served() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m")
            client = await rig.go("m")
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(500):
                client.request(READ, 0, 100_000)
            while not any(c._transmission._outlet.pending for c in rig.server._clients):  # type: ignore[union-attr]
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            for connection in rig.server._clients:
                transmission = connection._transmission
                assert transmission is not None
                assert transmission._outlet.pending < nbd_transmission.MAX_PENDING + 300_000
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(500):
                await client.reply(100_000)
            assert disk.data == bytes(MIB)

    loop.run(main())


def test_errors_reach_the_client() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            simple = await rig.go("m")
            structured = await rig.go("m", structured=True, contexts=["base:allocation"])
            disk.data[:] = b"x" * MIB

            def fail(code: int) -> None:
                disk.fail = lambda operation, offset: code

            fail(errno.ENOSPC)
            assert await simple.ask(WRITE, 0, 1, data=b"x") == ["error", 28]
            assert await structured.ask(WRITE, 0, 1, data=b"x") == [
                ("error", 28, "writing to file failed")
            ]
            fail(errno.EIO)
            assert await simple.ask(READ, 0, 1) == ["error", 5]
            only_one_chunk = [("error", 5, "reading from file failed")]
            assert await structured.ask(READ, 0, 1, DF) == only_one_chunk
            assert await structured.ask(FLUSH) == [("error", 5, "flush failed")]
            fail(errno.EROFS)
            assert await structured.ask(ZEROES, 0, 1) == [("error", 1, "writing to file failed")]
            fail(errno.EACCES)
            assert await structured.ask(CACHE, 0, 1) == ["ok"]  # nothing had to be done
            fail(0)
            assert await structured.ask(READ, 0, 1) == [("data", 0, b"x")]

    loop.run(main())


@pytest.mark.parametrize("length", [512, 65536])
def test_df_is_for_structured_replies(length: int) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m")
            client = await rig.go("m")
            assert await client.ask(READ, 0, length, DF) == ["error", 22]
            assert await client.ask(READ, 0, length) == [bytes(length)]

    loop.run(main())


def test_a_reply_in_chunks_that_breaks_off_ends_the_connection() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m")
            client = await rig.go("m", structured=True)
            other = await rig.go("m", structured=True)
            disk.data[:] = b"x" * MIB
            disk.fast = False
            disk.fail = lambda operation, offset: errno.EIO if operation == "read" else 0
            client.request(READ, 0, 4096)
            assert await client.at_end()
            disk.fail = lambda operation, offset: 0
            assert await other.ask(READ, 0, 1) == [("data", 0, b"x")]
            assert rig.reports == [
                "Disconnect client, due to: Failed to send reply: reading from file failed: "
                "Input/output error"
            ]

    loop.run(main())


def test_bad_requests_are_refused_and_survived() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m")
            client = await rig.go("m", structured=True)
            assert await client.ask(WRITE, 0, 512, data=bytes(512)) == [
                ("error", 22, "Export is read-only")
            ]
            assert await client.ask(READ, MIB, 1) == [
                ("error", 22, "operation past EOF; From: 1048576, Len: 1, Size: 1048576")
            ]
            assert await client.ask(99) == [("error", 22, "invalid request type (99) received")]
            assert await client.ask(READ, 0, 33 * MIB) == [
                ("error", 22, "len (34603008 ) is larger than max len (33554432)")
            ]
            assert await client.ask(READ, 0, 512, DF) == [("data", 0, bytes(512))]
            client.send(b"x" * 28)
            assert await client.reply() == (
                0x7878787878787878,
                [("error", 22, "invalid magic (got 0x78787878)")],
            )
            assert await client.at_end()
            lost = "Disconnect client, due to: Request handling failed in intermediate state"
            assert rig.reports == [lost]

    loop.run(main())


def test_payload_that_is_too_long_ends_the_connection() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            assert await client.ask(WRITE, 0, 33 * MIB) == ["error", 22]
            assert await client.at_end()

    loop.run(main())


@pytest.mark.parametrize(
    ("sent", "report"),
    [
        (b"", None),
        (b"\x25\x60", "Unexpected end-of-file before all bytes were read"),
        (
            struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 512) + b"half",
            "Failed to read CMD_WRITE data: Unexpected end-of-file before all data were read",
        ),
    ],
)
def test_client_that_vanishes(sent: bytes, report: str | None) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            client.send(sent)
            client.writer.write_eof()
            assert await client.at_end()
            prefix = "Disconnect client, due to: "
            assert rig.reports == ([] if report is None else [prefix + report])

    loop.run(main())


def test_client_that_vanishes_with_requests_in_flight() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.gate = asyncio.Event()
            export = await rig.export("m", writable=True)
            client = await rig.go("m")
            client.request(WRITE, 0, 4096, data=b"w" * 4096)
            client.request(READ, 0, 4096)
            while len(disk.log) < 2:
                await asyncio.sleep(0)
            client.close()
            await asyncio.sleep(0.01)
            assert len(export.clients) == 1
            disk.gate.set()
            while export.is_busy:
                await asyncio.sleep(0)
            assert disk.data[:4096] == b"w" * 4096

    loop.run(main())


def test_defect_in_the_hot_loop_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Transmission, limit: int) -> bool:
        raise ValueError("a defect")

    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            seen: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, info: seen.append(info))
            monkeypatch.setattr(Transmission, "_serve_fast", fail)
            client.request(READ, 0, 512)
            assert await client.at_end()
            assert isinstance(seen[0]["exception"], ValueError)
            assert rig.reports == ["Disconnect client, due to: internal error"]

    loop.run(main())


def test_defect_in_a_driver_is_an_error_for_one_request() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            seen: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, info: seen.append(info))

            def fail(operation: str, offset: int) -> int:
                raise ValueError("a defect")

            disk.fast = False
            disk.fail = fail
            assert await client.ask(READ, 0, 512) == ["error", 5]
            assert isinstance(seen[0]["exception"], ValueError)
            disk.fail = lambda operation, offset: 0
            assert await client.ask(READ, 0, 512) == [bytes(512)]

    loop.run(main())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_any_bytes_are_survived(pieces: list[bytes], structured: bool) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m", size=4096)
            await rig.export("m", writable=True)
            client = await rig.go("m", structured=structured)
            for piece in pieces:
                if client.writer.is_closing():
                    break
                client.send(piece)
                await asyncio.sleep(0)
            client.close()
            other = await rig.go("m")
            assert await other.ask(READ, 0, 1)

    loop.run(main())


_requests = st.tuples(
    st.integers(0, 9),
    st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 0x8000]),
    st.sampled_from([0, 1, 511, 4096, 65536, MIB - 1, MIB, 2**63, 2**64 - 1]),
    st.sampled_from([0, 1, 512, 4095, 40_000, 300_000, MIB]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_requests, max_size=20), st.booleans(), st.booleans())
def test_every_request_gets_one_reply(
    requests: list[tuple[int, int, int, int]], structured: bool, fast: bool
) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.fast = fast
            await rig.export("m", writable=True)
            client = await rig.go(
                "m", structured=structured, contexts=["base:allocation"] * structured
            )
            lengths = {}
            for command, flags, offset, length in requests:
                if command == DISC:
                    continue
                data = b"d" * length if command == WRITE else b""
                cookie = client.request(command, offset, length, flags, data)
                lengths[cookie] = length if command == READ else 0
            while lengths:
                if structured:
                    cookie, _ = await client.reply()
                    del lengths[cookie]
                else:
                    _, error, cookie = struct.unpack(">IIQ", await client.get(16))
                    length = lengths.pop(cookie)
                    if not error:
                        await client.get(length)

    loop.run(main())


def test_what_is_missing_of_a_payload_is_not_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client needs a moment to send it; but whether it is gone is asked, soon."""
    looks: list[int] = []
    look = Transmission._on_readable

    def spy(self: Transmission) -> None:
        look(self)
        looks.append(self._end)

    monkeypatch.setattr(Transmission, "_on_readable", spy)

    async def until(count: int) -> None:
        while len(looks) < count:
            await asyncio.sleep(0)

    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            data = b"d" * 5000
            before = len(looks)
            client.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, len(data)) + data[:9])
            await until(before + 1)
            for _ in range(20):
                await asyncio.sleep(0)
            assert looks[before:] == [37]
            await until(before + 2)
            assert looks[before:] == [37, 37]
            client.send(data[9:])
            assert await client.reply() == (7, ["ok"])
            assert disk.data[: len(data)] == data

    loop.run(main())
