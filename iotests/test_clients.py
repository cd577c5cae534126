# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The clients that people use, each doing what it is for: over unix and TCP, on raw and qcow2."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.tools import check_image, need, run

SIZE = 16 << 20

pytestmark = [pytest.mark.slow, pytest.mark.interop]


class Served:
    """An image that a daemon serves.

    Attributes:
        daemon: The daemon.
        folder: Where everything is.
        uri: How clients find the export.
        fmt: The image's format.
        content: What the guest sees at first.
    """

    def __init__(self, kind: str, folder: Path, transport: str, fmt: str) -> None:
        self.folder = folder
        self.fmt = fmt
        self.content = content()
        (folder / "source.raw").write_bytes(self.content)
        run(folder, "qemu-img", "convert", "-f", "raw", "-O", fmt, "source.raw", "image")
        if transport == "unix":
            address = "addr.type=unix,addr.path=nbd.sock"
            self.uri = f"nbd+unix:///disk?socket={folder}/nbd.sock"
        else:
            port = free_port()
            address = f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"
            self.uri = f"nbd://127.0.0.1:{port}/disk"
        self.daemon = Daemon(
            kind,
            folder,
            *("--blockdev", "file,node-name=file,filename=image,discard=unmap"),
            *("--blockdev", f"{fmt},node-name=disk,file=file,discard=unmap"),
            *("--nbd-server", address),
            *("--export", "nbd,id=x,node-name=disk,name=disk,writable=on,allocation-depth=on"),
        )

    def tool(self, *command: str) -> str:
        """Run a program beside the image."""
        return run(self.folder, *command)

    def ended(self) -> bytes:
        """End the daemon, check the image, and return the disk's content."""
        assert self.daemon.stop() == 0
        if self.fmt == "qcow2":
            check_image(self.folder, "image")
        self.tool("qemu-img", "convert", "-f", self.fmt, "-O", "raw", "image", "ended.raw")
        return (self.folder / "ended.raw").read_bytes()


def content() -> bytes:
    """Data, zeroes and data again, of sizes that fit no cluster."""
    source = random.Random(1)
    disk = bytearray(SIZE)
    disk[0 : 3 << 20] = source.randbytes(3 << 20)
    disk[5_000_192 : 5_000_192 + 70_000] = source.randbytes(70_000)
    disk[-4096:] = source.randbytes(4096)
    return bytes(disk)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["unix-raw", "unix-qcow2", "tcp-raw", "tcp-qcow2"])
def served(request: pytest.FixtureRequest, tmp_path: Path, daemon_kind: str) -> Iterator[Served]:
    need("qemu-img")
    transport, fmt = request.param.split("-")
    found = Served(daemon_kind, tmp_path, transport, fmt)
    yield found
    found.daemon.kill()


def test_qemu_img_reads(served: Served) -> None:
    info = json.loads(served.tool("qemu-img", "info", "-f", "raw", "--output=json", served.uri))
    assert info["virtual-size"] == SIZE
    served.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri, "source.raw")
    served.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", served.uri, "copy.qcow2")
    served.tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "copy.qcow2", "source.raw")
    entries = json.loads(served.tool("qemu-img", "map", "-f", "raw", "--output=json", served.uri))
    covered = 0
    for entry in entries:
        assert entry["start"] == covered
        covered += entry["length"]
        if entry["zero"]:
            assert not any(served.content[entry["start"] : covered])
    assert covered == SIZE
    assert any(entry["zero"] for entry in entries)


def test_qemu_img_writes(served: Served) -> None:
    other = bytes(reversed(served.content))
    (served.folder / "other.raw").write_bytes(other)
    served.tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "other.raw", served.uri)
    assert served.ended() == other


def test_qemu_io(served: Served) -> None:
    commands = [
        *("write -P 17 0 1M", "read -P 17 0 1M", "write -P 18 1000 513", "read -P 18 1000 513"),
        *("write -z 64k 64k", "read -P 0 64k 64k", "write -zu 256k 64k", "read -P 0 256k 64k"),
        *("discard 512k 128k", "flush", "write -f -P 19 2M 4k", "read -P 19 2M 4k"),
        *("aio_write -P 20 3M 1M", "aio_write -P 21 4M 1M", "aio_flush"),
        *(
            "read -P 20 3M 1M",
            "read -P 21 4M 1M",
            "writev -P 22 6M 4k 8k 512",
            "read -P 22 6M 12800",
        ),
    ]
    words = [word for command in commands for word in ("-c", command)]
    output = served.tool("qemu-io", "-f", "raw", *words, served.uri)
    assert "failed" not in output
    disk = served.ended()
    assert disk[3 << 20 : 5 << 20] == b"\x14" * (1 << 20) + b"\x15" * (1 << 20)


def test_nbdinfo(served: Served) -> None:
    need("nbdinfo")
    (export,) = json.loads(served.tool("nbdinfo", "--json", served.uri))["exports"]
    assert export["export-name"] == "disk"
    assert export["export-size"] == SIZE
    assert not export["is_read_only"]
    for feature in ("can_cache", "can_df", "can_flush", "can_fua", "can_trim", "can_zero"):
        assert export[feature], feature
    assert set(export["contexts"]) == {"base:allocation", "qemu:allocation-depth"}
    for context in export["contexts"]:
        extents = json.loads(served.tool("nbdinfo", "--json", f"--map={context}", served.uri))
        assert sum(extent["length"] for extent in extents) == SIZE
    assert served.tool("nbdinfo", "--size", served.uri).strip() == str(SIZE)
    listed = json.loads(
        served.tool("nbdinfo", "--list", "--json", served.uri.replace("/disk", "/"))
    )
    assert [export["export-name"] for export in listed["exports"]] == ["disk"]


def test_nbdcopy_out(served: Served) -> None:
    need("nbdcopy")
    served.tool("nbdcopy", served.uri, "copy.raw")
    assert (served.folder / "copy.raw").read_bytes() == served.content


def test_nbdcopy_in(served: Served) -> None:
    need("nbdcopy")
    other = bytes(reversed(served.content))
    (served.folder / "other.raw").write_bytes(other)
    served.tool("nbdcopy", "--flush", "--destination-is-zero", "other.raw", served.uri)
    served.tool("nbdcopy", "--flush", "--connections=4", "other.raw", served.uri)
    assert served.ended() == other


NBDSH = """
import nbd
assert h.get_size() == {size}
assert h.get_structured_replies_negotiated()
assert h.can_multi_conn()
assert h.can_fast_zero()
h.set_strict_mode(0)
h.pwrite(b"x" * 1000, 100)
assert h.pread(1200, 0)[100:1100] == b"x" * 1000
h.zero(500, 200, nbd.CMD_FLAG_NO_HOLE)
assert bytes(h.pread(500, 200)) == bytes(500)
h.trim(65536, 65536)
h.flush()
h.cache(4096, 0)
chunks = []
h.pread_structured(1 << 20, 2 << 20, lambda data, offset, kind, error: chunks.append(len(data)))
assert sum(chunks) <= 1 << 20
found = []
def extent(context, offset, entries, error):
    found.append((context, offset, sum(entries[::2])))
h.block_status({size}, 0, extent)
assert {{context for context, _, _ in found}} == {{"base:allocation", "qemu:allocation-depth"}}
for call in (lambda: h.pread(512, {size}), lambda: h.pwrite(b"y" * 512, {size} - 1)):
    try:
        call()
    except nbd.Error as exc:
        assert exc.errnum in (22, 28), exc
    else:
        raise SystemExit("a request beyond the end was served")
for n in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 4096), n * 8192)
while h.aio_in_flight():
    h.poll(-1)
for n in range(64):
    assert bytes(h.pread(4096, n * 8192)) == bytes([n]) * 4096
h.flush()
"""


def test_nbdsh(served: Served) -> None:
    need("nbdsh")
    # The module comes from the distribution, so it is the distribution's Python that has it.
    path = "PATH=/usr/bin:/bin"
    if "nbd" not in run(served.folder, "env", path, "nbdsh", "--version", check=False):
        pytest.skip("nbdsh cannot load its module (package python3-libnbd)")
    (served.folder / "script.py").write_text(NBDSH.format(size=SIZE))
    served.tool(
        *("env", path, "nbdsh", "-c", 'h.add_meta_context("base:allocation")'),
        *("-c", 'h.add_meta_context("qemu:allocation-depth")'),
        *("-c", f"h.connect_uri({served.uri!r})"),
        *("-c", "exec(open('script.py').read())"),
    )
    assert served.ended()[8192:12288] == b"\x01" * 4096


def test_fio_verifies(served: Served) -> None:
    need("fio")
    if "nbd" not in served.tool("fio", "--enghelp"):
        pytest.skip("this fio has no nbd engine")
    (served.folder / "job.fio").write_text(
        f"[verify]\nioengine=nbd\nuri={served.uri}\nrw=randrw\nrwmixwrite=70\niodepth=16\n"
        "bsrange=512-64k\nbs_unaligned=0\nblockalign=512\nsize=8m\nverify=crc32c\n"
        "do_verify=1\nverify_fatal=1\nverify_backlog=64\nrandseed=3\nend_fsync=1\n"
    )
    report = served.tool("fio", "--output-format=terse", "job.fio")
    assert report.splitlines()[-1].split(";")[4] == "0", report
    served.ended()


def test_qemu_qmp(tmp_path: Path, daemon_kind: str) -> None:
    """The asyncio client of the QEMU project: commands, errors, events, disconnecting."""
    qmp = pytest.importorskip("qemu.qmp")

    async def talk() -> list[str]:
        client: Any = qmp.QMPClient("story")
        await client.connect(str(tmp_path / "second.sock"))
        try:
            seen: list[str] = []
            with client.listener("JOB_STATUS_CHANGE") as listener:
                options = {"driver": "file", "filename": str(tmp_path / "made.raw"), "size": 4096}
                await client.execute("blockdev-create", {"job-id": "make", "options": options})
                async for event in listener:
                    seen.append(event["data"]["status"])
                    if seen[-1] == "concluded":
                        break
            await client.execute("job-dismiss", {"id": "make"})
            with pytest.raises(qmp.ExecuteError, match="Failed to find node"):
                await client.execute("blockdev-del", {"node-name": "missing"})
            schema = await client.execute("query-qmp-schema")
            assert len(schema) > 400
            return seen
        finally:
            await client.disconnect()

    with Daemon(
        daemon_kind,
        tmp_path,
        *("--chardev", "socket,id=second,path=second.sock,server=on,wait=off"),
        *("--monitor", "second"),
    ):
        assert asyncio.run(talk()) == ["created", "running", "waiting", "pending", "concluded"]
        assert (tmp_path / "made.raw").stat().st_size == 4096
        assert asyncio.run(talk())[-1] == "concluded"
