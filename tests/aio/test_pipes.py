# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import fcntl
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd.aio.pipes import CAPACITY, Pipe

DATA = random.Random(1).randbytes(200_000)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        other.setblocking(False)
        yield one, other


def test_from_a_socket_to_a_file(
    pipe: Pipe, ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    one, other = ends
    with pytest.raises(BlockingIOError):
        pipe.fill(other.fileno(), 10)
    one.sendall(DATA)
    while pipe.filled < 150_000:
        before = pipe.filled
        assert pipe.fill(other.fileno(), 150_000 - before) == pipe.filled - before > 0
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < 100_000:
        done += pipe.write_to(fd, 1000 + done, 100_000 - done)
    assert pipe.filled == 50_000
    assert os.pread(fd, 200_000, 0) == bytes(1000) + DATA[:100_000]
    os.close(fd)
    rest = bytearray(60_000)
    pipe.read_all(memoryview(rest))
    assert rest == DATA[100_000:150_000] + bytes(10_000)
    assert pipe.filled == 0
    pipe.fill(other.fileno(), 10)
    pipe.drop()
    assert pipe.filled == 0
    pipe.drop()
    one.close()
    while pipe.fill(other.fileno(), CAPACITY):
        pass  # until the end of the stream, which is told by 0
    pipe.drop()


def test_what_is_not_written_stays(
    pipe: Pipe, ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    one, other = ends
    one.sendall(b"data")
    pipe.fill(other.fileno(), 4)
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pipe.write_to(fd, 0, 4)
    os.close(fd)
    content = bytearray(4)
    pipe.read_all(memoryview(content))
    assert content == b"data"


def test_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    pipe = Pipe()
    assert fcntl.fcntl(pipe._write_end, fcntl.F_GETPIPE_SZ) == CAPACITY
    pipe.close()
    pipe.close()

    def refuse(fd: int, command: int, argument: int) -> None:
        raise PermissionError

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(PermissionError):
        Pipe()
    assert os.listdir("/proc/self/fd") == before
