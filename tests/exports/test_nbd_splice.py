# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Long writes that go to the file in the kernel, seen by a client: like all others."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop, pipes
from qsd.block.dirty import DirtyBitmap
from qsd.block.drain import Drained
from qsd.block.node import Node
from qsd.block.piped import Payload
from qsd.exports import nbd_splice
from qsd.exports.nbd_splice import Intake, SplicedWrites
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.exports.rig import DISC, FLUSH, FUA, READ, TRIM, WRITE, ZEROES, Client, NbdRig
from tests.support.tools import need

MIB = 1 << 20
SIZE = 4 * MIB


class SpliceRig(NbdRig):
    """An export of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(file=FileDriver, raw=RawDriver, qcow2=Qcow2Driver)
        self.image = path
        path.write_bytes(bytes(SIZE))

    async def open(self, **more: Any) -> tuple[Node, Client]:
        await self.add(driver="file", node_name="f", filename=str(self.image))
        node = await self.add(driver="raw", node_name="n", file="f", **more)
        await self.export("n", writable=True)
        return node, await self.go("n")

    async def get_used_to(self, client: Client) -> None:
        """Send a long write that makes the server expect another one."""
        cookie = client.request(WRITE, SIZE - MIB, MIB, data=bytes(MIB))
        assert await client.reply() == (cookie, ["ok"])

    @property
    def spliced(self) -> SplicedWrites:
        (connection,) = self.server._clients
        assert connection._transmission is not None
        assert connection._transmission._spliced is not None
        return connection._transmission._spliced

    def is_on(self) -> bool:
        """Tell whether the server expects a long write."""
        return self.spliced.is_on


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of payloads that nobody has seen."""
    found: list[int] = []
    write_to = Intake.write_to

    def note(intake: Intake, fd: int, offset: int) -> None:
        write_to(intake, fd, offset)
        found.append(intake.length)

    monkeypatch.setattr(Intake, "write_to", note)
    return found


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def pieces(seed: int, count: int, length: int = MIB) -> list[bytes]:
    pick = random.Random(seed)
    return [pick.randbytes(length) for _ in range(count)]


def test_long_writes(tmp_path: Path, sizes: list[int]) -> None:
    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            node, client = await rig.open()
            data = pieces(1, 4, 612_345)
            cookies = [
                client.request(WRITE, index * 900_000, len(each), data=each)
                for index, each in enumerate(data)
            ]
            assert [await client.reply() for _ in data] == [(each, ["ok"]) for each in cookies]
            assert len(sizes) == 3  # the first one says that others may come
            end = 2_700_000 + len(data[3])
            assert node.wr_highest_offset == end
            content = bytearray(SIZE)
            for index, each in enumerate(data):
                content[index * 900_000 : index * 900_000 + len(each)] = each
            assert rig.image.read_bytes() == content
            assert await client.ask(READ, 900_000, 1000) == [data[1][:1000]]
            assert not rig.is_on()
            client.request(DISC)
            assert await client.at_end()
            assert rig.reports == []

    loop.run(main())


def test_payloads_that_fit_a_usual_buffer(tmp_path: Path, sizes: list[int]) -> None:
    """Nobody else receives while a long write is expected."""

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            data = pieces(9, 5, 200_000)
            for index, each in enumerate(data):
                client.send(header(WRITE, index * 200_000, 200_000))
                if not index:
                    await until(rig.is_on)
                client.send(each)
                assert (await client.reply())[1] == ["ok"]
            assert sizes == [200_000] * 4
            assert rig.image.read_bytes()[:MIB] == b"".join(data).ljust(MIB, b"\0")

    loop.run(main())


def header(command: int, offset: int, length: int, flags: int = 0, cookie: int = 77) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([WRITE] * 6 + [READ, ZEROES, TRIM, FLUSH]),
        st.integers(0, 64).map(lambda block: block * 512),
        st.sampled_from([1, 512, 4096, 5000, 9000, 16_384, 20_000]),
        st.sampled_from([0, 0, 0, FUA]),
        st.integers(0, 255),
        st.lists(st.integers(1, 40_000), max_size=3),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=15, deadline=None)
@given(requests=REQUESTS, seed=st.integers(0, 9))
def test_any_requests_like_the_plain_way(requests: list[Any], seed: int) -> None:
    """Sent in any pieces, they leave the same image and get the same answers."""
    outcomes = []
    for longest in (16_384, 0):  # without any, all goes the plain way
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(nbd_splice, "MIN_LENGTH", 4096)
            patch.setattr(nbd_splice, "SLICE", 4096)
            patch.setattr(nbd_splice, "CAPACITY", longest)
            patch.setattr(os, "fdatasync", lambda fd: None)
            outcomes.append(loop.run(play(requests, seed, Path(folder))))
    assert outcomes[0] == outcomes[1]


async def play(requests: list[Any], seed: int, folder: Path) -> tuple[bytes, dict[int, Any]]:
    """Send requests; return the image and the answers."""
    async with SpliceRig(folder / "f") as rig:
        _, client = await rig.open()
        reads, answers = {}, {}
        for command, offset, length, flags, fill, cuts in requests:
            client.cookie += 1
            if command == READ:
                reads[client.cookie] = length
            data = bytes([fill]) * length if command == WRITE else b""
            flags = flags if command in (WRITE, ZEROES) else 0
            raw = header(command, offset, 0 if command == FLUSH else length, flags, client.cookie)
            raw += data
            start = 0
            for cut in sorted(cuts):
                client.send(raw[start:cut])
                start = min(max(start, cut), len(raw))
                for _ in range(seed):
                    await asyncio.sleep(0)
            client.send(raw[start:])
            answer = await answer_of(client, reads)
            answers[answer[0]] = answer[1]
        return rig.image.read_bytes()[: 128 << 10], answers


async def answer_of(client: Client, reads: dict[int, int]) -> tuple[int, Any]:
    """Return a simple reply with its payload."""
    _, error, cookie = struct.unpack(">IIQ", await client.get(16))
    return cookie, (error, await client.get(reads.get(cookie, 0)))


@pytest.mark.parametrize("cut", [0, 5, 27, 28, 29, 100_000, 28 + MIB - 1])
@pytest.mark.parametrize("used", [False, True])
def test_a_client_that_goes_leaves_no_trace(
    cut: int, used: bool, tmp_path: Path, sizes: list[int]
) -> None:
    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            if used:
                await rig.get_used_to(client)
                assert rig.is_on()
            client.send((header(WRITE, 0, MIB) + b"x" * MIB)[:cut])
            client.close()
            await until(lambda: not rig.server._clients)
            assert rig.image.read_bytes() == bytes(SIZE)
            assert sizes == []
            if cut >= 28:
                reason = (
                    "Failed to read CMD_WRITE data: "
                    "Unexpected end-of-file before all data were read"
                )
            else:
                reason = "Unexpected end-of-file before all bytes were read"
            assert rig.reports == ([f"Disconnect client, due to: {reason}"] if cut else [])

    loop.run(main())


def test_a_client_that_goes_while_it_is_answered(tmp_path: Path, sizes: list[int]) -> None:
    """What came whole is written; the reset that comes of unread answers ends the rest."""

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            await rig.get_used_to(client)
            sock = client.writer.get_extra_info("socket")
            plain = socket.socket(fileno=os.dup(sock.fileno()))
            plain.setblocking(False)
            rest = memoryview(header(WRITE, 0, MIB) + b"x" * MIB + header(WRITE, MIB, MIB) + b"y")
            while rest:
                try:
                    rest = rest[plain.send(rest) :]
                except BlockingIOError:
                    await asyncio.sleep(0)
            await until(lambda: sizes == [MIB])
            client.close()
            plain.close()
            await until(lambda: not rig.server._clients)
            assert rig.image.read_bytes() == b"x" * MIB + bytes(SIZE - MIB)
            assert len(rig.reports) == 1

    loop.run(main())


def test_a_reset_in_the_middle_of_a_payload_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is seen: while the payload comes, or while the one before is written."""
    fill = pipes.Pipe.fill

    async def main() -> None:
        for after in (0, 1, 2):
            async with SpliceRig(tmp_path / "f") as rig:
                _, client = await rig.open()
                await rig.get_used_to(client)
                count = 0

                def reset(pipe: pipes.Pipe, fd: int, length: int, after: int = after) -> int:
                    nonlocal count
                    count += 1
                    if count > after:
                        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
                    return fill(pipe, fd, length)

                monkeypatch.setattr(pipes.Pipe, "fill", reset)
                client.request(WRITE, 0, MIB, data=b"x" * MIB)
                assert await client.at_end()
                monkeypatch.setattr(pipes.Pipe, "fill", fill)
                await until(lambda: not rig.server._clients)
                assert rig.reports == [
                    "Disconnect client, due to: Unable to read from socket: "
                    "Connection reset by peer"
                ]
                assert rig.image.read_bytes() == bytes(SIZE)

    loop.run(main())


@pytest.mark.parametrize(
    "code", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EAGAIN]
)
def test_sockets_that_cannot_do_it(
    code: int, tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EAGAIN with something in the socket means that the pipe is full."""

    def refuse(pipe: pipes.Pipe, fd: int, length: int) -> int:
        raise OSError(code, os.strerror(code))

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            await rig.get_used_to(client)
            monkeypatch.setattr(pipes.Pipe, "fill", refuse)
            data = pieces(3, 2)
            for index, each in enumerate(data):
                assert await client.ask(WRITE, index * MIB, MIB, data=each) == ["ok"]
            assert not rig.is_on()
            assert rig.image.read_bytes()[: 2 * MIB] == b"".join(data)
            assert sizes == []

    loop.run(main())


def test_a_pipe_that_is_full(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it goes on in the receive buffer, with all that follows."""
    monkeypatch.setattr(pipes, "CAPACITY", 16384)
    monkeypatch.setattr(nbd_splice, "PAUSE", 1)

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            await rig.get_used_to(client)
            data = pieces(2, 3)
            for index, each in enumerate(data):
                assert rig.is_on()
                assert await client.ask(WRITE, index * MIB, MIB, data=each) == ["ok"]
                assert not rig.is_on()
                await rig.get_used_to(client)
            assert sizes == []
            assert rig.image.read_bytes()[: 3 * MIB] == b"".join(data)

    loop.run(main())


def test_descriptors_are_left_to_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_splice, "has_room_for_client", lambda fd: False)
    monkeypatch.setattr(nbd_splice, "PAUSE", 1)

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            await rig.get_used_to(client)
            assert not rig.is_on()
            monkeypatch.undo()
            await rig.get_used_to(client)  # this one is left out
            await rig.get_used_to(client)
            assert rig.is_on()

    loop.run(main())


@pytest.mark.parametrize("failing", ["pipe2", "fcntl"])
def test_no_room_for_pipes(
    failing: str, tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = os if failing == "pipe2" else fcntl
    plain = getattr(module, failing)

    def refuse(*args: Any) -> Any:
        if failing == "pipe2" or args[1] == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "no")
        return plain(*args)

    monkeypatch.setattr(module, failing, refuse)

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            for each in pieces(4, 3):
                assert await client.ask(WRITE, 0, MIB, data=each) == ["ok"]
                assert rig.image.read_bytes()[:MIB] == each
            assert sizes == []

    loop.run(main())


def test_who_wants_to_see_each_write_does(tmp_path: Path, sizes: list[int]) -> None:
    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            node, client = await rig.open()
            await rig.get_used_to(client)
            node.detect_zeroes = "on"
            node.refresh_fast_paths()
            (data,) = pieces(5, 1)
            assert await client.ask(WRITE, 4096, MIB, data=data) == ["ok"]
            assert rig.image.read_bytes()[4096 : 4096 + MIB] == data
            assert sizes == []
            assert not rig.is_on()

    loop.run(main())


def test_bitmaps_know_what_nobody_has_seen(tmp_path: Path, sizes: list[int]) -> None:
    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            node, client = await rig.open()
            bitmap = DirtyBitmap(node, "b", 4096)
            bitmap.attach()
            await rig.get_used_to(client)
            (data,) = pieces(5, 1)
            assert await client.ask(WRITE, 4096, MIB, data=data) == ["ok"]
            assert list(bitmap.bits.areas()) == [(4096, MIB), (SIZE - MIB, MIB)]
            assert rig.image.read_bytes()[4096 : 4096 + MIB] == data
            assert sizes == [MIB]

    loop.run(main())


def test_a_drained_section_is_waited_for(tmp_path: Path, sizes: list[int]) -> None:
    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            node, client = await rig.open()
            await rig.get_used_to(client)
            (data,) = pieces(6, 1)
            spliced = rig.spliced
            async with Drained([node]):
                client.request(WRITE, 0, MIB, data=data)
                await until(lambda: not spliced.is_on)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert rig.image.read_bytes() == bytes(SIZE)
            assert (await client.reply())[1] == ["ok"]
            assert rig.image.read_bytes()[:MIB] == data
            assert sizes == []

    loop.run(main())


def fail_after(good: int, patch: pytest.MonkeyPatch, *, stops: bool = False) -> None:
    """Let one write from a pipe, behind some good ones, find no space, or do nothing at all."""
    write_to = pipes.Pipe.write_to
    count = 0

    def fail(pipe: pipes.Pipe, fd: int, offset: int, length: int) -> int:
        nonlocal count
        count += 1
        if count == good + 1:
            if stops:
                return 0
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_to(pipe, fd, offset, length)

    patch.setattr(pipes.Pipe, "write_to", fail)


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize("stops", [False, True])
def test_a_file_that_takes_no_more(
    good: int, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after a part is the answer; before that, the plain way decides."""

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            await rig.get_used_to(client)
            fail_after(good, monkeypatch, stops=stops)
            one, other = pieces(7, 2)
            cookies = [
                client.request(WRITE, 0, MIB, data=one),
                client.request(WRITE, MIB, MIB, data=other),
            ]
            answer = ["ok"] if not good else ["error", 5 if stops else 28]
            assert await client.reply() == (cookies[0], answer)
            assert await client.reply() == (cookies[1], ["ok"])
            content = rig.image.read_bytes()
            assert (
                content[: nbd_splice.SLICE if good else MIB]
                == one[: nbd_splice.SLICE if good else MIB]
            )
            assert content[MIB : 2 * MIB] == other

    loop.run(main())


class FreshRig(SpliceRig):
    """An export of a new qcow2 image."""

    def __init__(self, path: Path, *options: str) -> None:
        super().__init__(path)
        need("qemu-img")
        words = ["qemu-img", "create", "-q", "-f", "qcow2", *options]
        subprocess.run([*words, str(path), str(SIZE)], check=True)

    async def create(self) -> tuple[Node, Client]:
        await self.add(driver="file", node_name="f", filename=str(self.image))
        node = await self.add(driver="qcow2", node_name="n", file="f")
        await self.export("n", writable=True)
        return node, await self.go("n")


def check(image: Path) -> None:
    subprocess.run(["qemu-img", "check", "-q", str(image)], check=True)


async def content(node: Node) -> bytes:
    view = bytearray(SIZE)
    await node.read(0, memoryview(view))
    return bytes(view)


def test_new_clusters_are_filled(tmp_path: Path, sizes: list[int]) -> None:
    """A table that is not there, and a write across two of them, are for the plain way."""
    step, length = 110 * 4096, 400_000

    async def main() -> None:
        async with FreshRig(tmp_path / "q", "-o", "cluster_size=4k") as rig:
            node, client = await rig.create()
            await rig.get_used_to(client)
            expected = bytearray(SIZE)
            for index, each in enumerate(pieces(10, 6, length)):
                offset = index * step + 512
                assert await client.ask(WRITE, offset, length, data=each) == ["ok"]
                expected[offset : offset + length] = each
                await rig.get_used_to(client)
            assert sizes.count(length) == 4
            assert await content(node) == expected
            client.request(DISC)
            assert await client.at_end()

    loop.run(main())
    check(tmp_path / "q")


def test_a_client_that_goes_leaves_no_cluster(tmp_path: Path, sizes: list[int]) -> None:
    async def main() -> None:
        async with FreshRig(tmp_path / "q") as rig:
            node, client = await rig.create()
            await rig.get_used_to(client)
            assert (await client.ask(WRITE, MIB, MIB, data=bytes(MIB))) == ["ok"]
            assert sizes == [MIB]
            before = rig.image.read_bytes()
            client.send((header(WRITE, 0, MIB) + b"x" * MIB)[:-1])
            client.close()
            await until(lambda: not rig.server._clients)
            assert rig.image.read_bytes() == before
            assert await content(node) == bytes(SIZE)

    loop.run(main())
    check(tmp_path / "q")


@pytest.mark.parametrize("good", [0, 1])
def test_a_full_file_system_leaves_no_cluster(
    good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after a part is the answer, and the clusters are free again."""

    async def main() -> None:
        async with FreshRig(tmp_path / "q") as rig:
            node, client = await rig.create()
            await rig.get_used_to(client)
            fail_after(good, monkeypatch)
            one, other = pieces(7, 2)
            answer = ["error", errno.ENOSPC] if good else ["ok"]
            assert await client.ask(WRITE, 0, MIB, data=one) == answer
            assert (await content(node))[:MIB] == (bytes(MIB) if good else one)
            await rig.get_used_to(client)
            assert await client.ask(WRITE, MIB, MIB, data=other) == ["ok"]
            assert (await content(node))[MIB : 2 * MIB] == other

    loop.run(main())
    check(tmp_path / "q")


def test_what_the_image_does_not_take_is_tried_less_and_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            node, client = await rig.open()
            taken = node.receive_nowait

            def receive(offset: int, payload: Payload) -> bool:
                tried.append(len(sent))
                return len(sent) > 20 and taken(offset, payload)

            monkeypatch.setattr(node, "receive_nowait", receive)
            monkeypatch.setattr(nbd_splice, "PAUSE", 3)
            (data,) = pieces(11, 1)
            sent: list[int] = []
            while len(sent) < 25:
                sent.append(MIB)
                assert await client.ask(WRITE, 0, MIB, data=data) == ["ok"]

    loop.run(main())
    # One that goes the plain way says that others may come, and so does the one after each pause.
    assert tried == [2, 4, 7, 12, 17, 22, 23, 24, 25]


def test_what_is_not_a_plain_long_write_goes_the_plain_way(
    tmp_path: Path, sizes: list[int]
) -> None:
    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            (data,) = pieces(8, 1)
            for flags, offset, length, answer in (
                (FUA, 0, MIB, ["ok"]),
                (0, SIZE - 10, MIB, ["error", 22]),
                (0, 0, 2 * MIB, ["ok"]),
                (0, 0, nbd_splice.MIN_LENGTH - 1, ["ok"]),
                (128, 0, MIB, ["error", 22]),
            ):
                await rig.get_used_to(client)
                if not rig.is_on():
                    await rig.get_used_to(client)
                sizes.clear()
                assert rig.is_on()
                payload = (data * 2)[:length]
                assert await client.ask(WRITE, offset, length, flags, payload) == answer
                assert sizes == []

    loop.run(main())


def test_others_get_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a client sends ahead, no more than so much of it is written in one turn."""
    monkeypatch.setattr(nbd_splice, "MIN_LENGTH", 4096)
    monkeypatch.setattr(nbd_splice, "SLICE", 4096)
    monkeypatch.setattr(nbd_splice, "TURN", 16384)
    turns: list[int] = []
    receive = SplicedWrites.receive

    def note(spliced: SplicedWrites) -> bool:
        goes_on = receive(spliced)
        turns.append(spliced._turn)
        return goes_on

    monkeypatch.setattr(SplicedWrites, "receive", note)

    async def main() -> None:
        async with SpliceRig(tmp_path / "f") as rig:
            _, client = await rig.open()
            await rig.get_used_to(client)
            cookies = [client.request(WRITE, 8192 * n, 8192, data=b"d" * 8192) for n in range(16)]
            assert [(await client.reply())[0] for _ in cookies] == cookies
            assert rig.image.read_bytes()[: 16 * 8192] == b"d" * 16 * 8192

    loop.run(main())
    assert max(turns) == 16384 + 8192
    assert sum(turns) == 16 * 8192
