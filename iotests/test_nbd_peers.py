# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Our NBD client against the servers that people run; TLS against the tools they use."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotests.harness.daemon import ROOT, Daemon, command_line
from iotests.harness.nbd import Client
from iotests.harness.tools import need, run
from iotests.test_clients import SIZE, content, free_port

pytestmark = [pytest.mark.slow, pytest.mark.interop]

WORK = (
    "write -P 7 1M 8M", "read -P 7 1M 8M", "write -z 3M 1M", "read -P 0 3M 1M", "write -P 99 5 7",
    "read -P 99 5 7", "discard 0 64k", "flush", "write -f -P 3 1k 1k", "read -P 3 1k 1k",
)  # fmt: skip


@contextlib.contextmanager
def running(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "peer.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def client_of(kind: str, folder: Path, options: str, *more: str) -> Iterator[Daemon]:
    """Run a daemon that serves another server's export once more, as soon as there is one."""
    daemon = Daemon(
        kind,
        folder,
        *more,
        *("--blockdev", f"nbd,node-name=c,discard=unmap,open-timeout=20,{options}"),
        *("--nbd-server", "addr.type=unix,addr.path=again.sock"),
        *("--export", "nbd,id=x,node-name=c,name=disk,writable=on"),
    )
    with daemon:
        yield daemon
        assert daemon.quit() == 0


def work(folder: Path, uri: str = "nbd+unix:///disk?socket=again.sock") -> None:
    """Compare what is read with the source, then write and read in all ways."""
    run(folder, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, "source.raw")
    words = [word for command in WORK for word in ("-c", command)]
    said = run(folder, "qemu-io", "-f", "raw", *words, uri)
    assert "failed" not in said, said


PEERS = {
    "qemu-nbd": (("qemu-nbd", "-t", "-f", "raw", "-x", "y", "-k", "{0}/n.sock", "image"), "y"),
    "nbdkit": (("nbdkit", "-f", "-U", "n.sock", "file", "image"), ""),
    "nbdkit-delay": (
        ("nbdkit", "-f", "-U", "n.sock", "--filter=delay", "file", "image", "rdelay=2ms"),
        "",
    ),
    "nbdkit-blocks": (
        (
            *("nbdkit", "-f", "-U", "n.sock", "--filter=blocksize-policy", "file", "image"),
            *("blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=262144"),
            "blocksize-error-policy=error",
        ),
        "",
    ),
    "nbdkit-simple": (("nbdkit", "-f", "--no-sr", "-U", "n.sock", "file", "image"), ""),
    "nbdkit-newstyle": (
        ("nbdkit", "-f", "--mask-handshake=0", "-U", "n.sock", "file", "image"),
        "",
    ),
}


@pytest.mark.parametrize("peer", PEERS)
def test_peer(peer: str, tmp_path: Path, daemon_kind: str) -> None:
    command, export = PEERS[peer]
    need(command[0], "qemu-img", "qemu-io")
    (tmp_path / "source.raw").write_bytes(content())
    (tmp_path / "image").write_bytes(content())
    where = "server.type=unix,server.path=n.sock" + (f",export={export}" if export else "")
    with (
        running(tmp_path, *(word.format(tmp_path) for word in command)),
        client_of(daemon_kind, tmp_path, where),
    ):
        work(tmp_path)


def test_nbd_server(tmp_path: Path, daemon_kind: str) -> None:
    need("nbd-server", "qemu-img", "qemu-io")
    (tmp_path / "source.raw").write_bytes(content())
    (tmp_path / "image").write_bytes(content())
    port = free_port()
    (tmp_path / "config").write_text(
        f"[generic]\nlistenaddr=127.0.0.1\nport={port}\n[disk]\nexportname={tmp_path}/image\n"
    )
    where = f"server.type=inet,server.host=127.0.0.1,server.port={port},export=disk"
    with (
        running(tmp_path, "nbd-server", "-C", "config", "-d"),
        client_of(daemon_kind, tmp_path, where),
    ):
        work(tmp_path)


def test_errors_of_the_server_arrive(tmp_path: Path, daemon_kind: str) -> None:
    need("nbdkit")
    (tmp_path / "image").write_bytes(content())
    command = ("nbdkit", "-f", "-U", "n.sock", "--filter=error", "file", "image")
    with (
        running(tmp_path, *command, "error=ENOSPC", "error-pwrite-rate=100%"),
        client_of(daemon_kind, tmp_path, "server.type=unix,server.path=n.sock"),
    ):
        said = run(
            tmp_path, "qemu-io", "-f", "raw", "-c", "write 0 4k", "-c", "read 0 4k",
            "nbd+unix:///disk?socket=again.sock", check=False,
        )  # fmt: skip
        assert "write failed: No space left on device" in said
        assert "read 4096/4096" in said


def test_killed_and_restarted_under_load(tmp_path: Path, daemon_kind: str) -> None:
    """With reconnect-delay nothing of what was confirmed is lost, and nothing fails."""
    need("qemu-nbd")
    (tmp_path / "image").write_bytes(bytes(SIZE))
    command = ("qemu-nbd", "-t", "-f", "raw", "-x", "y", "-k", f"{tmp_path}/n.sock", "image")
    where = "server.type=unix,server.path=n.sock,export=y,reconnect-delay=30"
    with contextlib.ExitStack() as servers, contextlib.ExitStack() as stack:
        server = servers.enter_context(running(tmp_path, *command))
        stack.enter_context(client_of(daemon_kind, tmp_path, where))
        client = Client(tmp_path / "again.sock", "disk")
        for number in range(200):
            if number in (50, 120):
                server.kill()
                server.wait()
                server = servers.enter_context(running(tmp_path, *command))
            data = number.to_bytes(2, "big") * 2048
            client.send(1, number, number * 4096, data=data)
            if number % 8 == 7:
                for _ in range(8):
                    assert client.receive()[1] == 0
        client.call(3)
        for number in range(200):
            assert client.call(0, number * 4096, 4096) == number.to_bytes(2, "big") * 2048
        client.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    done = subprocess.run(
        [*command_line("ours"), "pki", str(tmp_path), "--client", "alice"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_tls_both_ways(certificates: Path, daemon_kind: str) -> None:
    need("qemu-img", "nbdinfo", "nbdcopy")
    folder = certificates
    (folder / "source.raw").write_bytes(content())
    (folder / "image").write_bytes(content())
    port = free_port()
    serving = Daemon(
        daemon_kind,
        folder,
        *("--object", "tls-creds-x509,id=t,endpoint=server,dir=server"),
        *("--object", "authz-simple,id=z,identity=CN=alice"),
        *("--blockdev", "file,node-name=f,filename=image"),
        "--nbd-server",
        f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t,tls-authz=z",
        *("--export", "nbd,id=x,node-name=f,name=disk,writable=on"),
    )
    with serving:
        uri = f"nbds://localhost:{port}/disk?tls-certificates={folder}/client-alice"
        assert run(folder, "nbdinfo", "--size", uri).strip() == str(SIZE)
        run(folder, "nbdcopy", uri, "copy.raw")
        assert (folder / "copy.raw").read_bytes() == content()
        said = run(folder, "nbdinfo", "--size", f"nbd://localhost:{port}/disk", check=False)
        assert "server requires TLS encryption first" in said
        second = folder / "second"
        second.mkdir()
        where = f"server.type=inet,server.host=localhost,server.port={port},export=disk"
        creds = f"tls-creds-x509,id=c,endpoint=client,dir={folder}/client-alice"
        (second / "source.raw").write_bytes(content())
        with client_of(daemon_kind, second, f"{where},tls-creds=c", "--object", creds):
            work(second)
        assert serving.quit() == 0


def test_pre_shared_keys(tmp_path: Path, daemon_kind: str) -> None:
    need("nbdcopy")
    (tmp_path / "image").write_bytes(content())
    (tmp_path / "keys.psk").write_text("alice:00112233445566778899aabbccddeeff\n")
    port = free_port()
    serving = Daemon(
        daemon_kind,
        tmp_path,
        *("--object", "tls-creds-psk,id=t,endpoint=server,dir=."),
        *("--blockdev", "file,node-name=f,filename=image"),
        *("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t"),
        *("--export", "nbd,id=x,node-name=f,name=disk"),
    )
    with serving:
        uri = f"nbds://alice@localhost:{port}/disk?tls-psk-file={tmp_path}/keys.psk"
        run(tmp_path, "nbdcopy", uri, "copy.raw")
        assert (tmp_path / "copy.raw").read_bytes() == content()
        assert serving.quit() == 0
