# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Bytes that nobody should send, and images that nobody should open.

Whatever comes, the daemon goes on: it serves the next client, holds no more memory than before, and
reports no internal error.  Random choices are seeded; a failure names the seed.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import struct
import time
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.nbd import FLUSH, READ, TRIM, WRITE, ZERO, Client, Gone
from iotests.harness.qmp import Monitor
from iotests.harness.tools import need, run

#: KiB; how much a daemon may grow under fire.
GROWTH = 256 << 10

pytestmark = [pytest.mark.slow, pytest.mark.interop]

WORDS = [
    *(
        b'{"execute": "query-block"}',
        b'{"execute": "qmp_capabilities"}',
        b"{'execute': 'quit-not'}",
    ),
    *(
        b'{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}}',
        b"\xff",
    ),
    *(b'{"execute": "blockdev-del", "arguments": {"node-name": "n"}}', b"{" * 50, b"[" * 2000),
    *(b'"\\ud800"', b"1e400", b"-", b"\x00", b'"' + b"x" * 5000, b"}", b"]", b",", b"\n" * 100),
    *(b'{"id": ' + b"[" * 900 + b"]" * 900 + b', "execute": "query-jobs"}', b"0x10", b"nul", b"%s"),
]


def memory(daemon: Daemon) -> int:
    """Return the resident memory in KiB."""
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1])


def unharmed(daemon: Daemon, before: int) -> None:
    """Check that the daemon is alive, sane and not bloated."""
    assert daemon.process.poll() is None, daemon.log_text()
    assert daemon.ok("query-version")
    assert "nternal error" not in daemon.log_text()
    assert "Traceback" not in daemon.log_text()
    assert memory(daemon) - before < GROWTH


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))  # waits while others are to be accepted first
    client.settimeout(20)
    return client


def drain(client: socket.socket) -> None:
    """Read until the other side has nothing to say or is gone."""
    client.settimeout(0.05)
    try:
        while client.recv(1 << 16):
            pass
    except OSError:
        pass


def mutated(source: random.Random, data: bytes) -> bytes:
    """Flip, drop, double or cut some bytes."""
    changed = bytearray(data)
    for _ in range(source.randrange(1, 6)):
        at = source.randrange(len(changed) + 1)
        kind = source.randrange(4)
        if kind == 0:
            changed[at : at + 1] = source.randbytes(1)
        elif kind == 1:
            del changed[at : at + source.randrange(1, 9)]
        elif kind == 2:
            changed[at:at] = changed[at : at + source.randrange(1, 65)]
        else:
            changed[at : at + 4] = source.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_monitor(seed: int, tmp_path: Path, daemon_kind: str) -> None:
    if daemon_kind == "real":
        pytest.skip("the C daemon looks after itself")
    source = random.Random(seed)
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--chardev", "socket,id=second,path=second.sock,server=on,wait=off"),
        *("--monitor", "second"),
    ) as daemon:
        before = memory(daemon)
        for _ in range(12):
            with connected(tmp_path / "second.sock") as client:
                words = source.choices(WORDS, k=source.randrange(1, 40))
                if source.random() < 0.7:
                    words = [mutated(source, word) for word in words]
                try:
                    client.sendall(b" ".join(words))
                    if source.random() < 0.5:
                        drain(client)
                except OSError:
                    pass
        unharmed(daemon, before)
        after = Monitor(tmp_path / "second.sock")
        assert "return" in after.call("query-version")
        after.close()
        assert daemon.quit() == 0


def option(number: int, data: bytes) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def request(kind: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, 1, offset, length) + data


GO = option(7, struct.pack(">I", 4) + b"disk" + struct.pack(">HH", 1, 3))
CONTEXT = option(
    10, struct.pack(">I", 4) + b"disk" + struct.pack(">II", 1, 15) + b"base:allocation"
)
HANDSHAKES = [
    *(
        GO,
        CONTEXT,
        option(8, b""),
        option(3, b""),
        option(1, b"disk"),
        option(2, b""),
        option(5, b""),
    ),
    *(option(6, struct.pack(">I", 4) + b"disk" + b"\0\0"), option(99, b"x" * 100), option(9, b"")),
    *(option(1, b"x" * 4097), option(7, b"\xff" * 300), b"IHAVEOPT\0\0\0\7\xff\xff\xff\xff"),
]
REQUESTS = [
    *(request(READ, 0, 4096), request(WRITE, 0, 512, b"w" * 512), request(FLUSH, 0, 0)),
    *(request(TRIM, 0, 1 << 20), request(ZERO, 1 << 19, 1 << 19), request(7, 0, 1 << 20)),
    *(
        request(READ, 1 << 62, 1),
        request(READ, 0, 0xFFFFFFFF),
        request(WRITE, (1 << 20) - 1, 9, b"9" * 9),
    ),
    *(
        request(99, 0, 0),
        request(5, 0, 4096),
        request(READ, 0, 0),
        request(READ, 5, 7, flags=0xFFFF),
    ),
]


@pytest.mark.parametrize("seed", range(3))
def test_nbd(seed: int, tmp_path: Path, daemon_kind: str) -> None:
    source = random.Random(seed)
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--blockdev", "file,node-name=disk,filename=disk.raw,discard=unmap"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=x,node-name=disk,writable=on"),
    ) as daemon:
        before = memory(daemon)
        for _ in range(40):
            with connected(tmp_path / "nbd.sock") as client:
                flags = struct.pack(">I", source.choice([3, 3, 3, 1, 0, 0xFFFFFFFF]))
                options = source.choices(HANDSHAKES, k=source.randrange(0, 5))
                requests = source.choices(REQUESTS, k=source.randrange(1, 20))
                which = source.randrange(3)
                if which == 0:
                    options = [mutated(source, item) for item in options]
                elif which == 1:
                    requests = [mutated(source, item) for item in requests]
                try:
                    client.sendall(flags + b"".join([*options, GO, *requests]))
                    if source.random() < 0.5:
                        drain(client)
                except OSError:
                    pass
        unharmed(daemon, before)
        good = Client(tmp_path / "nbd.sock", "disk")
        good.send(WRITE, 1, 4096, data=b"good" * 128)
        assert good.receive()[1] == 0
        good.send(READ, 2, 4096, 512)
        assert good.receive() == (2, 0, b"good" * 128)
        good.close()
        assert daemon.quit() == 0


def test_clients_that_leave_replies_unread(tmp_path: Path, daemon_kind: str) -> None:
    """Closing a socket with unread data resets the connection, here in the middle of a message.

    The daemon must notice: a monitor takes the next client, an export is no longer in use.
    """
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--blockdev", "null-co,node-name=disk,size=1048576"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=x,node-name=disk"),
        *("--chardev", "socket,id=second,path=second.sock,server=on,wait=off"),
        *("--monitor", "second"),
    ) as daemon:
        with connected(tmp_path / "second.sock") as client:
            assert client.recv(1)
            client.sendall(b'{"execute": "query-')
        Monitor(tmp_path / "second.sock").close()

        with connected(tmp_path / "nbd.sock") as client:
            client.sendall(struct.pack(">I", 3) + GO + request(READ, 0, 4096))
            while len(client.recv(1 << 14, socket.MSG_PEEK)) < 4096:
                time.sleep(0.001)  # the reply is to be there, and to stay there
            client.sendall(b"\x25\x60\x95")
        for _ in range(200):
            if "return" in daemon.qmp("block-export-del", id="x"):
                break
            time.sleep(0.01)
        daemon.event("BLOCK_EXPORT_DELETED", id="x")
        assert daemon.quit() == 0


def exercise(path: Path, source: random.Random) -> None:
    """Use every kind of request; errors are welcome."""
    client = Client(path, "disk")
    try:
        for cookie in range(12):
            offset = source.randrange(0, client.size - 4096, 512) if client.size > 4096 else 0
            kind = source.choice([READ, READ, WRITE, TRIM, ZERO, FLUSH])
            if kind == FLUSH:
                client.send(FLUSH, cookie)
            else:
                data = b"h" * 4096 if kind == WRITE else b""
                client.send(kind, cookie, offset, 4096, data=data)
            client.receive()
    except Gone:
        pass
    finally:
        client.close()


@pytest.mark.parametrize("options", ["", "compat=0.10", "extended_l2=on", "refcount_bits=1"])
def test_images(options: str, tmp_path: Path, daemon_kind: str) -> None:
    """Images with damaged metadata are refused, or fail where they are damaged."""
    if daemon_kind == "real":
        pytest.skip("the C daemon looks after itself")
    need("qemu-img", "qemu-io")
    extra = ["-o", options] if options else []
    run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", *extra, "good.qcow2", "4M")
    run(tmp_path, "qemu-io", "-f", "qcow2", "-c", "write -q -P 1 64k 2M", "good.qcow2")
    if options != "refcount_bits=1":
        run(tmp_path, "qemu-img", "snapshot", "-c", "s", "good.qcow2")
    good = (tmp_path / "good.qcow2").read_bytes()
    source = random.Random(options)
    address = {"type": "unix", "data": {"path": str(tmp_path / "nbd.sock")}}
    with Daemon(daemon_kind, tmp_path) as daemon:
        daemon.ok("nbd-server-start", addr=address)
        before = memory(daemon)
        opened = 0
        for number in range(60):
            bad = bytearray(good)
            # Headers, tables and counts lie in the first clusters; zeroes are dull, so aim at data.
            spots = [at for at in range(0, 8 << 16, 4) if any(good[at : at + 4])] + list(range(112))
            for _ in range(source.randrange(1, 4)):
                at = source.choice(spots)
                bad[at : at + source.randrange(1, 9)] = source.randbytes(source.randrange(1, 9))
            path = tmp_path / f"bad{number}.qcow2"
            path.write_bytes(bad[: len(good) if source.random() < 0.9 else len(good) // 2])
            kept = shutil.copyfile(path, tmp_path / "last.qcow2")
            node = {"driver": "qcow2", "node-name": "disk", "backing": None}
            file = {"driver": "file", "filename": str(path)}
            reply = daemon.qmp("blockdev-add", **node, file=file)
            if "return" in reply:
                opened += 1
                added = daemon.qmp(
                    "block-export-add", type="nbd", id="x", node_name="disk", writable=True
                )
                if "return" in added:
                    exercise(tmp_path / "nbd.sock", source)
                    daemon.ok("block-export-del", id="x", mode="hard")
                    daemon.event("BLOCK_EXPORT_DELETED", id="x")
                daemon.ok("blockdev-del", node_name="disk")
            assert daemon.process.poll() is None, f"{kept}: {json.dumps(reply)}"
            path.unlink()
        assert opened
        unharmed(daemon, before)
        assert daemon.quit() == 0
