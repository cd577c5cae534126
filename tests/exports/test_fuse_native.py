# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The engine against a kernel that is played by the test, well-behaved and otherwise.

Invariant: whatever is read from the device, each request gets one well-formed reply, or none if it
is of a kind that gets none, and the next request is served as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.exports import fuse_native
from qsd.exports.fuse_file import FuseFile
from qsd.exports.fuse_native import NativeEngine
from qsd.wire import fuse
from tests.support.memory import MemoryDriver, Rig

SIZE = 1 << 20
READ_FLAGS = (0, 0, 0, 0)


class FakeKernel(Rig):
    """The other end of the device.

    Attributes:
        engine: What is tested.
        driver: The node below.
    """

    engine: NativeEngine
    driver: MemoryDriver

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = {"writable": True, "growable": False, **options}
        self._socket, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._unique = 100

    async def __aenter__(self) -> Self:
        self.driver = await self.memory("m")
        self.driver.data[:] = bytes(range(256)) * (SIZE // 256)
        backend = Backend(self.graph, "", "test")
        backend.attach(self.graph.nodes["m"], perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
        self.file = FuseFile(backend, **self._options)
        self.engine = NativeEngine(self.file, self.tasks)
        for end in (self._socket, self._device):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                fuse_native, "mount", lambda path, *, allow_other: os.dup(self._device.fileno())
            )
            await self.engine.mount("/nowhere", allow_other=False)
        return self

    async def __aexit__(self, exc_type: object, *rest: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fuse_native, "unmount", lambda path: None)
            await self.engine.unmount()
        self._socket.close()
        self._device.close()
        await self.file.backend.detach()
        await super().__aexit__(exc_type, *rest)
        if exc_type is None:
            assert not self.errors, self.errors

    def send(
        self, opcode: int, arguments: bytes = b"", *, node: int = 1, extra: int = 0, caller: int = 0
    ) -> int:
        """Send a request; `extra` is what its length is wrong by.  Return its number."""
        self._unique += 2
        length = fuse.IN_HEADER.size + len(arguments) + extra
        head = fuse.IN_HEADER.pack(length, opcode, self._unique, node, 0, 0, caller, 0)
        self._socket.send(head + arguments)
        return self._unique

    def send_raw(self, message: bytes) -> None:
        self._socket.send(message)

    async def receive(self) -> tuple[int, int, bytes]:
        """Return (error, number, result) of the next reply."""
        while True:
            try:
                message = self._socket.recv(2 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            length, error, unique = fuse.OUT_HEADER.unpack_from(message)
            assert length == len(message)
            return -error, unique, message[fuse.OUT_HEADER.size :]

    async def ask(self, opcode: int, arguments: bytes = b"", **more: int) -> tuple[int, bytes]:
        sent = self.send(opcode, arguments, **more)
        error, unique, result = await self.receive()
        assert unique == sent
        return error, result

    async def is_well(self) -> None:
        """Check that requests are served."""
        assert await self.ask(fuse.READ, io(256, 512)) == (0, bytes(range(256)) * 2)


def io(offset: int, length: int, data: bytes = b"") -> bytes:
    return fuse.READ_IN.pack(0, offset, length, *READ_FLAGS) + data


def with_kernel(use: Callable[[FakeKernel], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with FakeKernel(**options) as kernel:
            await use(kernel)
            kernel.driver.gate = None
            await kernel.is_well()

    loop.run(main())


def test_every_operation_once() -> None:
    async def use(kernel: FakeKernel) -> None:
        error, result = await kernel.ask(fuse.INIT, struct.pack("=IIII", 7, 38, 4096, 0xFFFFFFFF))
        assert (error, struct.unpack_from("=II", result)) == (0, (7, 31))
        for opcode in (fuse.FLUSH, fuse.FSYNC, fuse.RELEASE, fuse.DESTROY):
            assert await kernel.ask(opcode) == (0, b"")
        assert await kernel.ask(fuse.OPEN) == (0, bytes(16))
        assert len((await kernel.ask(fuse.GETATTR))[1]) == 104
        assert len((await kernel.ask(fuse.STATFS))[1]) == 80
        assert await kernel.ask(fuse.WRITE, io(0, 3, b"abc")) == (0, fuse.write_reply(3))
        assert kernel.driver.data[:4] == b"abc\3"
        fallocate = struct.pack("=QQQII", 0, 0, 256, 16, 0)
        assert await kernel.ask(fuse.FALLOCATE, fallocate) == (0, b"")
        assert not any(kernel.driver.data[:256])
        seek = struct.pack("=QQII", 0, 5, os.SEEK_DATA, 0)
        assert await kernel.ask(fuse.LSEEK, seek) == (0, fuse.lseek_reply(5))
        resize = struct.pack("=IIQQQQQQIIIIIIII", fuse.FATTR_SIZE, 0, 0, SIZE * 2, *[0] * 12)
        assert (await kernel.ask(fuse.SETATTR, resize))[0] == 0
        assert len(kernel.driver.data) == SIZE * 2
        # Notice of the new length is for the registry's listener to give.
        kernel.engine.length_changed()
        assert await kernel.receive() == (
            -fuse.NOTIFY_INVAL_INODE,
            0,
            struct.pack("=Qqq", 1, -1, 0),
        )

    with_kernel(use)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [0, 1, 511, 4096, 65536, SIZE])
def test_reads_and_writes_of_all_sizes(fast: bool, size: int) -> None:
    async def use(kernel: FakeKernel) -> None:
        kernel.driver.fast = fast
        content = random.Random(size).randbytes(size)
        for offset in {0, SIZE - size}:
            assert await kernel.ask(fuse.WRITE, io(offset, size, content)) == (
                0,
                fuse.write_reply(size),
            )
            assert await kernel.ask(fuse.READ, io(offset, size)) == (0, content)
            assert kernel.driver.data[offset : offset + size] == content
            kernel.driver.data[:1024] = bytes(range(256)) * 4

    with_kernel(use)


def test_the_ends_of_the_file() -> None:
    async def use(kernel: FakeKernel) -> None:
        assert await kernel.ask(fuse.READ, io(SIZE - 2, 100)) == (0, b"\xfe\xff")
        for offset in (SIZE, SIZE + 1, 1 << 63, (1 << 64) - 1):
            assert await kernel.ask(fuse.READ, io(offset, 100)) == (0, b"")
            assert (await kernel.ask(fuse.WRITE, io(offset, 1, b"x")))[0] == errno.EIO
        assert await kernel.ask(fuse.WRITE, io(SIZE - 1, 3, b"xyz")) == (0, fuse.write_reply(1))
        assert len(kernel.driver.data) == SIZE
        error, result = await kernel.ask(fuse.READ, io(0, 0xFFFFFFFF))
        assert (error, len(result)) == (0, fuse.MAX_PAYLOAD)

    with_kernel(use)


def test_a_read_only_file() -> None:
    async def use(kernel: FakeKernel) -> None:
        assert (await kernel.ask(fuse.WRITE, io(0, 1, b"x")))[0] == errno.EACCES

    with_kernel(use, writable=False)


def test_requests_that_make_no_sense() -> None:
    async def use(kernel: FakeKernel) -> None:
        for opcode in (0, fuse.LOOKUP, fuse.GETXATTR, 999, 0xFFFFFFFF):
            assert (await kernel.ask(opcode))[0] == errno.ENOSYS
        # Another inode, another length than was read.
        assert (await kernel.ask(fuse.READ, io(0, 512), node=2))[0] == errno.ENOSYS
        for extra in (-1, 1, 1 << 20):
            assert (await kernel.ask(fuse.READ, io(0, 512), extra=extra))[0] == errno.ENOSYS
            assert (await kernel.ask(fuse.GETATTR, extra=extra))[0] == errno.ENOSYS
        # Other data than is said.
        for length in (0, 2, 4, 1 << 20, 0xFFFFFFFF):
            assert (await kernel.ask(fuse.WRITE, io(0, length, b"abc")))[0] == errno.EINVAL
        assert kernel.driver.data[:4] == b"\0\1\2\3"
        # Another protocol.
        init = struct.pack("=IIII", 8, 0, 0, 0)
        assert (await kernel.ask(fuse.INIT, init))[0] == errno.EPROTO
        # What gets no reply.
        for opcode in fuse.SILENT:
            kernel.send(opcode)
        for length in range(fuse.IN_HEADER.size):
            kernel.send_raw(bytes(length) or b"x")

    with_kernel(use)


@pytest.mark.parametrize(
    "opcode", [fuse.INIT, fuse.SETATTR, fuse.READ, fuse.WRITE, fuse.FALLOCATE, fuse.LSEEK]
)
def test_requests_that_are_cut_off(opcode: int) -> None:
    """The bytes of an earlier request, which are still in the inbox, are not taken for theirs."""

    async def use(kernel: FakeKernel) -> None:
        for length in (0, 4, 15):
            await kernel.is_well()
            assert await kernel.ask(opcode, bytes(length)) == (errno.EINVAL, b"")

    with_kernel(use)


IO_ARGUMENTS = st.builds(
    io, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=99)
)
REQUESTS = st.tuples(st.integers(0, 50), st.integers(0, 3), st.binary(max_size=120) | IO_ARGUMENTS)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200) | REQUESTS, max_size=12))
def test_noise(messages: list[bytes | tuple[int, int, bytes]]) -> None:
    async def main() -> None:
        async with FakeKernel() as kernel:
            for message in messages:
                if isinstance(message, bytes):
                    kernel.send_raw(message)
                else:
                    kernel.send(message[0], message[2], node=message[1])
            # Behind all that a plain question, whose answer must come.
            sent = kernel.send(fuse.GETATTR)
            while (await kernel.receive())[1] != sent:
                pass

    loop.run(main())


def test_many_requests_wait_and_the_rest_is_not_read() -> None:
    """The works hold so many requests and no more; all are answered in the end."""

    async def use(kernel: FakeKernel) -> None:
        kernel.driver.gate = asyncio.Event()
        sent = {kernel.send(fuse.READ, io(index * 512, 512)) for index in range(150)}
        for _ in range(20):
            await asyncio.sleep(0)
        sent |= {kernel.send(fuse.READ, io(index * 512, 512)) for index in range(150)}
        while len(kernel.driver.log) < fuse_native._MAX_IN_FLIGHT:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(kernel.driver.log) == fuse_native._MAX_IN_FLIGHT
        kernel.driver.gate.set()
        for _ in range(300):
            error, unique, result = await kernel.receive()
            assert (error, len(result)) == (0, 512)
            sent.remove(unique)

    with_kernel(use)


def test_waiting_writes_keep_their_data() -> None:
    """A long one keeps its inbox, a short one a copy, whatever is read meanwhile."""

    async def use(kernel: FakeKernel) -> None:
        kernel.driver.gate = asyncio.Event()
        source = random.Random(1)
        expected = bytearray(kernel.driver.data)
        count = 0
        for offset in range(0, SIZE, 65536):
            length = source.choice([512, 4096, 65536])
            content = source.randbytes(length)
            expected[offset : offset + length] = content
            kernel.send(fuse.WRITE, io(offset, length, content))
            count += 1
            await asyncio.sleep(0)
        while len(kernel.driver.log) < count:
            await asyncio.sleep(0)
        kernel.driver.gate.set()
        for _ in range(count):
            assert (await kernel.receive())[0] == 0
        assert kernel.driver.data == expected
        kernel.driver.data[:1024] = bytes(range(256)) * 4

    with_kernel(use)


def test_reads_that_are_ended_by_the_node() -> None:
    """Without a coroutine; where that fails the slow way is gone."""

    async def use(kernel: FakeKernel) -> None:
        kernel.driver.fast = False
        kernel.driver.later = []
        first = kernel.send(fuse.READ, io(0, 512))
        second = kernel.send(fuse.READ, io(512, 512))
        while len(kernel.driver.later) < 2:
            await asyncio.sleep(0)
        kernel.driver.later[1](True)
        assert (await kernel.receive())[1:] == (second, bytes(range(256)) * 2)
        kernel.driver.later[0](False)
        assert (await kernel.receive())[1:] == (first, bytes(range(256)) * 2)
        assert ("read", 0, 512) in kernel.driver.log
        kernel.driver.later = None

    with_kernel(use)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 40),
            st.sampled_from([1, 512, 4096, 9000, 1 << 16, 70_000, 1 << 17]),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_requests_that_come_together(requests: list[tuple[bool, int, int]], seen: bool) -> None:
    """Each reply says what the file was when its request was carried out, in their order."""

    async def use(kernel: FakeKernel) -> None:
        driver = kernel.driver
        kernel.file.backend.view_nowait = lambda offset, length: (
            memoryview(driver.data)[offset : offset + length] if seen else None
        )
        model = bytearray(driver.data)
        expected = {}
        for number, (is_write, place, length) in enumerate(requests):
            offset = place * 20_000
            if is_write:
                model[offset : offset + length] = data = bytes((number + 1,)) * length
                expected[kernel.send(fuse.WRITE, io(offset, length, data))] = fuse.write_reply(
                    length
                )
            else:
                expected[kernel.send(fuse.READ, io(offset, length))] = bytes(
                    model[offset : offset + length]
                )
        for unique, result in expected.items():
            assert await kernel.receive() == (0, unique, result)
        assert driver.data == model
        del kernel.file.backend.view_nowait
        kernel.file.backend.rebind()
        driver.data[:1024] = bytes(range(256)) * 4

    with_kernel(use)


def test_replies_are_sent_together_where_requests_come_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen at a time, except to who waits for each; of many, the first is not held back."""
    log: list[str] = []
    write = os.writev

    def sent(fd: int, parts: Any) -> int:
        log.append("reply")
        return write(fd, parts)

    monkeypatch.setattr(fuse_native, "_writev", sent)

    async def use(kernel: FakeKernel) -> None:
        receive = kernel.engine._receive

        def received(room: memoryview) -> int | None:
            count = receive(room)
            log.append("request" if count else "end")
            return count

        kernel.engine._receive = received
        for expected in (
            ["request", "reply", *["request"] * 16, *["reply"] * 16, *["request"] * 3, "end"],
            [*["request"] * 16, *["reply"] * 16, *["request"] * 4, "end"],
        ):
            log.clear()
            asked = [kernel.send(fuse.READ, io(512 * index, 512)) for index in range(20)]
            for unique in asked:
                assert (await kernel.receive())[1] == unique
            assert log[: len(expected)] == expected
        for _ in range(2):
            log.clear()
            await kernel.is_well()
        assert log[:3] == ["request", "reply", "end"]

    with_kernel(use)


@pytest.mark.parametrize("seen", [True, False])
def test_reads_are_the_same_with_and_without_views(seen: bool) -> None:
    async def use(kernel: FakeKernel) -> None:
        views: list[tuple[int, int]] = []

        def view(offset: int, length: int) -> memoryview | None:
            views.append((offset, length))
            return memoryview(bytes(kernel.driver.data))[offset : offset + length] if seen else None

        backend = kernel.file.backend
        backend.view_nowait = view
        content = random.Random(7).randbytes(SIZE)
        assert await kernel.ask(fuse.WRITE, io(0, SIZE, content)) == (0, fuse.write_reply(SIZE))
        for offset, length in ((0, 1), (511, 2), (4096, 4096), (0, SIZE), (SIZE - 5, 5), (9, 0)):
            assert await kernel.ask(fuse.READ, io(offset, length)) == (
                0,
                content[offset : offset + length],
            )
        # Nobody has a view of what is not there.
        assert (await kernel.ask(fuse.READ, io(SIZE - 5, 6)))[1] == content[-5:]
        assert (await kernel.ask(fuse.READ, io(0, 4), node=3))[0] == errno.ENOSYS
        assert views == [(0, SIZE)]
        async with Drained([kernel.graph.nodes["m"]]):
            views.clear()
            kernel.send(fuse.READ, io(0, SIZE))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not views
        assert (await kernel.receive())[2] == content
        kernel.driver.data[:1024] = bytes(range(256)) * 4

    with_kernel(use)


def test_a_view_that_has_lost_its_pages(tmp_path: Path) -> None:
    """Somebody has cut the file off: that request ends, and the next one is served."""

    async def use(kernel: FakeKernel) -> None:
        path = tmp_path / "image"
        path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapping:
            file.truncate(0)
            backend = kernel.file.backend
            view = memoryview(mapping)
            backend.view_nowait = lambda offset, length: view[offset : offset + length]
            kernel.send(fuse.READ, io(0, SIZE))
            for _ in range(10):
                await asyncio.sleep(0)
            del backend.view_nowait
            backend.rebind()
            await kernel.is_well()
            view.release()

    with_kernel(use)


def test_errors_of_the_node() -> None:
    async def use(kernel: FakeKernel) -> None:
        kernel.driver.fail = lambda operation, offset: errno.ENOSPC
        assert (await kernel.ask(fuse.READ, io(0, 512)))[0] == errno.ENOSPC
        assert (await kernel.ask(fuse.WRITE, io(0, 1, b"x")))[0] == errno.ENOSPC
        assert (await kernel.ask(fuse.FLUSH))[0] == errno.ENOSPC
        kernel.driver.fail = lambda operation, offset: 0

    with_kernel(use)


def test_a_defect_leaves_nobody_waiting() -> None:
    async def main() -> None:
        async with FakeKernel() as kernel:
            kernel.driver.fast = False

            def fail(operation: str, offset: int) -> int:
                raise ZeroDivisionError

            good, kernel.driver.fail = kernel.driver.fail, fail
            assert (await kernel.ask(fuse.READ, io(0, 512)))[0] == errno.EIO
            assert (await kernel.ask(fuse.WRITE, io(0, 1, b"x")))[0] == errno.EIO
            kernel.driver.fail = good
            await kernel.is_well()
            kernel.errors.clear()

    loop.run(main())


def test_a_drained_node_is_left_alone() -> None:
    async def use(kernel: FakeKernel) -> None:
        async with Drained([kernel.graph.nodes["m"]]):
            sent = {
                kernel.send(fuse.READ, io(0, 512)),
                kernel.send(fuse.WRITE, io(4096, 1, b"x")),
                kernel.send(
                    fuse.SETATTR,
                    struct.pack("=IIQQQQQQIIIIIIII", fuse.FATTR_SIZE, 0, 0, 8192, *[0] * 12),
                ),
            }
            for _ in range(30):
                await asyncio.sleep(0)
            assert not kernel.driver.log
            assert len(kernel.driver.data) == SIZE
        for _ in range(3):
            sent.remove((await kernel.receive())[1])
        assert kernel.driver.data[4096:4097] == b"x"
        assert len(kernel.driver.data) == 8192

    with_kernel(use)


def test_our_own_threads_close_files_without_a_flush() -> None:
    """The end of a killed process closes its files, and nobody would answer."""

    async def use(kernel: FakeKernel) -> None:
        mine = threading.get_native_id()
        assert await kernel.ask(fuse.OPEN, bytes(8), caller=mine) == (
            0,
            fuse.open_reply(fuse.FOPEN_NOFLUSH),
        )
        for other in (0, os.getppid()):
            assert await kernel.ask(fuse.OPEN, bytes(8), caller=other) == (0, fuse.open_reply())

    with_kernel(use)
