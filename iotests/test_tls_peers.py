# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""TLS clients of other libraries, and such that behave badly.

GnuTLS and OpenSSL talk to a monitor, which shows whether each byte arrives; for the NBD server it
is about clients that begin a handshake and never end it.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from iotests.harness.daemon import ROOT, Daemon, command_line
from iotests.harness.tools import need
from iotests.test_clients import free_port

pytestmark = [pytest.mark.slow, pytest.mark.interop]

SIZE = 1 << 20
OPTION_TLS = struct.pack(">IQII", 3, 0x49484156454F5054, 5, 0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with certificates and an image."""
    subprocess.run([*command_line("ours"), "pki", str(tmp_path)], cwd=ROOT, check=True)
    (tmp_path / "image").write_bytes(b"x" * SIZE)
    return tmp_path


@pytest.fixture
def ports() -> tuple[int, int]:
    """Ports of the NBD server and of a monitor."""
    return free_port(), free_port()


@pytest.fixture
def daemon(place: Path, ports: tuple[int, int], daemon_kind: str) -> Iterator[Daemon]:
    arguments = (
        *("--object", "tls-creds-x509,id=t,endpoint=server,dir=server"),
        *("--blockdev", "file,node-name=f,filename=image"),
        "--nbd-server",
        f"addr.type=inet,addr.host=127.0.0.1,addr.port={ports[0]},tls-creds=t,max-connections=0",
        *("--export", "nbd,id=x,node-name=f,name=disk"),
        "--chardev",
        f"socket,id=m,host=127.0.0.1,port={ports[1]},server=on,wait=off,tls-creds=t",
        *("--monitor", "m"),
    )
    with Daemon(daemon_kind, place, *arguments) as running:
        yield running
        assert running.quit() == 0


def converse(folder: Path, command: Sequence[str], lines: Sequence[str]) -> str:
    """Give a client one line after the other, each after an answer; return all it printed."""
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        os.set_blocking(process.stdout.fileno(), False)
        deadline = time.monotonic() + 20

        def answers(wanted: int) -> None:
            nonlocal said
            while said.count(b'{"return"') + said.count(b"KEYUPDATE") < wanted:
                assert time.monotonic() < deadline, said
                said += process.stdout.read() or b"" if process.stdout else b""
                time.sleep(0.01)

        for wanted, line in enumerate(lines, 1):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answers(wanted)
        process.kill()
        return said.decode(errors="replace")


def test_peer_changes_its_keys(place: Path, ports: tuple[int, int], daemon: Daemon) -> None:
    """s_client takes lines of one letter as commands: "k" changes keys, "K" wants ours changed."""
    need("openssl")
    command = (
        f"openssl s_client -connect 127.0.0.1:{ports[1]} -CAfile server/ca-cert.pem"
        " -cert client/client-cert.pem -key client/client-key.pem"
    )
    ask = '{"execute":"query-jobs"}'
    lines = ['{"execute":"qmp_capabilities"}', "K", ask, "k", ask, "K", "K", ask]
    said = converse(place, command.split(), lines)
    assert said.count("KEYUPDATE") == 4
    assert said.count('{"return": []}') == 3


def test_gnutls_client(place: Path, ports: tuple[int, int], daemon: Daemon) -> None:
    need("gnutls-cli")
    command = (
        f"gnutls-cli --x509cafile server/ca-cert.pem --x509certfile client/client-cert.pem"
        f" --x509keyfile client/client-key.pem -p {ports[1]} localhost"
    )
    for priority in ("NORMAL", "NORMAL:-VERS-TLS1.3", "SECURE128"):
        lines = ['{"execute":"qmp_capabilities"}', '{"execute":"query-jobs"}']
        said = converse(place, [*command.split(), "--priority", priority], lines)
        assert '{"return": []}' in said
        assert "The certificate is trusted" in said


def test_qemu_img_over_tls(place: Path, ports: tuple[int, int], daemon: Daemon) -> None:
    need("qemu-img")
    options = f"driver=nbd,host=localhost,port={ports[0]},export=disk,tls-creds=c"
    creds = "tls-creds-x509,id=c,endpoint=client,dir=client"
    command = ["qemu-img", "convert", "--object", creds, "--image-opts", options, "copy"]
    subprocess.run(command, cwd=place, check=True)
    assert (place / "copy").read_bytes() == b"x" * SIZE


def begin_tls(port: int) -> socket.socket:
    """Connect to the NBD server, up to where the TLS handshake begins."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=10)
    peer.sendall(OPTION_TLS)
    missing = 18 + 20  # greeting and acknowledgement
    while missing:
        missing -= len(peer.recv(missing))
    return peer


def resident(daemon: Daemon) -> int:
    """Return the resident memory in KiB."""
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def test_many_that_never_end_their_handshake(
    place: Path, ports: tuple[int, int], daemon: Daemon
) -> None:
    need("nbdinfo")
    descriptors = Path(f"/proc/{daemon.process.pid}/fd")
    before, memory = len(list(descriptors.iterdir())), resident(daemon)
    peers = [begin_tls(ports[0]) for _ in range(200)]
    for index, peer in enumerate(peers):
        # The head of a record, a part of one, and nothing at all.
        peer.sendall(
            (b"", b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x02\x00" + b"\1" * 99)[index % 3]
        )
    uri = f"nbds://localhost:{ports[0]}/disk?tls-certificates={place}/client"
    size = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, check=True, text=True)
    assert size.stdout.strip() == str(SIZE)
    assert resident(daemon) - memory < 200 << 10
    for peer in peers:
        peer.close()
    deadline = time.monotonic() + 10
    while len(list(descriptors.iterdir())) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert daemon.ok("query-jobs") == []


def test_a_handshake_without_end_is_refused(
    place: Path, ports: tuple[int, int], daemon: Daemon
) -> None:
    """A greeting of 16 MiB is not waited for."""
    memory = resident(daemon)
    with begin_tls(ports[0]) as peer:
        record = b"\x16\x03\x01\x40\x00"
        peer.sendall(record + b"\x01\xff\xff\xff" + bytes(0x4000 - 4))
        with pytest.raises(ConnectionError):
            peer.sendall((record + bytes(0x4000)) * 2000)
    assert resident(daemon) - memory < 20 << 10
    daemon.ok("query-jobs")


def test_a_stream_that_is_cut_off(place: Path, ports: tuple[int, int], daemon: Daemon) -> None:
    """In the middle of a record, and between two; the daemon serves the next one."""
    context = ssl.create_default_context(cafile=str(place / "server/ca-cert.pem"))
    context.load_cert_chain(place / "client/client-cert.pem", place / "client/client-key.pem")
    for rest in (b"", b"\x17\x03\x03\x01\x00half"):
        raw = begin_tls(ports[0])
        handle = os.dup(raw.fileno())
        with context.wrap_socket(raw, server_hostname="localhost") as peer:
            # Behind the back of the library, which would say goodbye.
            os.write(handle, rest)
            os.close(handle)
            with socket.socket(fileno=peer.detach()):
                pass
    raw = begin_tls(ports[0])
    with context.wrap_socket(raw, server_hostname="localhost") as peer:
        name = b"disk"
        wanted = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        peer.sendall(struct.pack(">QII", 0x49484156454F5054, 7, len(wanted)) + wanted)
        assert peer.recv(8) == struct.pack(">Q", 0x3E889045565A9)
