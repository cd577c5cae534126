# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A Linux guest works on a disk of ours: what its kernel sees, reads back and leaves behind.

The plans of four workers are made here, together with a model of the disk; see
``harness/guest_init.sh`` for who carries them out.  Workers share clusters' tables but no chunk, so
the outcome does not depend on who comes first, though they run side by side on two queues.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.guest import MODULES, initramfs, linux, linux_parts, machine
from iotests.harness.tools import check_image, need, run

# Emulation is slow, and slower while other tests run.  So nothing is said about the time that a
# guest takes; only one that is silent for too long has failed.
_LONG = 1500
pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(_LONG)]
SILENCE = 120.0

MIB = 1 << 20
SIZE = 32 * MIB
GROWN = 48 * MIB
CHUNK = 256 << 10
CLUSTER = 64 << 10
WORKERS = 4
OPERATIONS = 60


class Workload:
    """Random plans, and the disk that they lead to.

    Attributes:
        disk: The model.
        pattern: What all written data is taken from.
        plans: By worker, the lines of its plan.
    """

    def __init__(self, seed: int, block: int) -> None:
        self._random = random.Random(seed)
        self._block = block
        self.disk = bytearray(SIZE)
        self.pattern = self._random.randbytes(2 * CHUNK)
        self.plans = [self._plan(worker) for worker in range(WORKERS)]

    def _plan(self, worker: int) -> list[str]:
        lines = []
        chunks = range(worker, SIZE // CHUNK, WORKERS)
        for _ in range(OPERATIONS):
            start = self._random.choice(chunks) * CHUNK
            lines.append(self._operation(start))
        lines += [self._check(chunk * CHUNK, CHUNK) for chunk in chunks[::4]]
        return lines

    def _operation(self, start: int) -> str:
        kind = self._random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        # What is discarded reads as zeroes only if whole clusters go.
        unit = CLUSTER if kind == "discard" else self._block
        units = CHUNK // unit
        first = self._random.randrange(units)
        count = min(self._random.choice([1, 8, 128, units]), units - first)
        offset, length = start + first * unit, count * unit
        if kind == "check":
            return self._check(offset, length)
        if kind in ("zero", "discard"):
            self.disk[offset : offset + length] = bytes(length)
            return f"{kind} {offset} {length}"
        place = self._random.randrange(CHUNK)
        self.disk[offset : offset + length] = self.pattern[place : place + length]
        return f"{kind} {offset} {length} {place}"

    def _check(self, offset: int, length: int) -> str:
        return f"check {offset} {length} {digest(self.disk[offset : offset + length])}"

    def files(self) -> dict[str, bytes]:
        """Return what the guest needs."""
        return {
            "modules": " ".join(MODULES).encode(),
            "pattern": self.pattern,
            "digest": digest(self.disk).encode(),
            **{f"plan/{n}": "\n".join([*plan, ""]).encode() for n, plan in enumerate(self.plans)},
        }


_WEIGHTS = {"direct": 30, "cached": 15, "durable": 10, "zero": 10, "discard": 10, "check": 25}


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def tell(process: subprocess.Popen[bytes], until: str) -> list[str]:
    """Return what the guest says up to a line that begins so; what it must not say fails."""
    lines: list[str] = []
    for raw in said(process):
        line = raw.decode(errors="replace").rstrip()
        lines.append(line)
        if line.startswith(until):
            break
    else:
        raise AssertionError("the guest ended early:\n" + "\n".join(lines))
    assert not [line for line in lines if "BAD" in line], "\n".join(lines)
    return lines


def said(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield the guest's lines; a silent guest is ended."""
    assert process.stdout is not None
    while True:
        watchdog = threading.Timer(SILENCE, process.terminate)
        watchdog.start()
        try:
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            return
        yield line


def prepare(folder: Path, fmt: str, workload: Workload, *, grows: bool) -> None:
    """Make the disk's image and the archive that the guest boots."""
    run(folder, "qemu-img", "create", "-q", "-f", fmt, "image", str(SIZE))
    files = workload.files() | ({"grow": b""} if grows else {})
    (folder / "initrd").write_bytes(initramfs(linux_parts(), ["/usr/sbin/blkdiscard"], files))


def compare(folder: Path, fmt: str, expected: bytes | bytearray) -> None:
    """Hold the image against the model."""
    if fmt == "qcow2":
        check_image(folder, "image")
    run(folder, "qemu-img", "convert", "-f", fmt, "-O", "raw", "image", "flat")
    found = (folder / "flat").read_bytes()
    assert len(found) == len(expected)
    differing = [
        n for n in range(0, len(found), 512) if found[n : n + 512] != expected[n : n + 512]
    ]
    assert not differing, f"the image differs at {differing[:10]}"


def blockdevs(fmt: str) -> list[str]:
    return [
        *("--blockdev", "file,node-name=file,filename=image,discard=unmap"),
        *("--blockdev", f"{fmt},node-name=node,file=file,discard=unmap"),
    ]


@pytest.mark.parametrize(("fmt", "block"), [("qcow2", 512), ("raw", 4096)])
def test_a_guest_over_vhost_user(tmp_path: Path, daemon_kind: str, fmt: str, block: int) -> None:
    """The C daemon does not tell the guest of its write cache, nor (as of 7.2) of a new size."""
    need("qemu-system-x86_64", "qemu-img", "ldd", "blkdiscard")
    grows = daemon_kind != "real"
    workload = Workload(5, block)
    prepare(tmp_path, fmt, workload, grows=grows)
    with Daemon(
        daemon_kind,
        tmp_path,
        *blockdevs(fmt),
        "--export",
        "vhost-user-blk,id=x,node-name=node,writable=on,num-queues=2,"
        f"logical-block-size={block},addr.type=unix,addr.path=x.sock",
    ) as daemon:
        with machine(
            tmp_path,
            *("-chardev", "socket,id=c,path=x.sock"),
            *("-device", "vhost-user-blk-pci,chardev=c,num-queues=2"),
            *linux(),
            seconds=_LONG,
        ) as process:
            told = []
            if grows:
                told += tell(process, "READY")
                daemon.ok("block_resize", **{"node-name": "node", "size": GROWN})
            told += tell(process, "END")
            assert process.wait(SILENCE) == 0
        assert daemon.quit() == 0
    check_told(told, block)
    if grows:
        assert "LIMIT write_cache write back" in told
        assert f"SIZE {GROWN // 512}" in told
        workload.disk += bytes(GROWN - SIZE)
        workload.disk[-4096:] = workload.pattern[:4096]
    compare(tmp_path, fmt, workload.disk)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_a_guest_over_nbd(tmp_path: Path, daemon_kind: str, fmt: str) -> None:
    """An NBD client is not told of a new size, so the disk keeps its size here."""
    need("qemu-system-x86_64", "qemu-img", "ldd", "blkdiscard")
    workload = Workload(6, 512)
    prepare(tmp_path, fmt, workload, grows=False)
    with Daemon(
        daemon_kind,
        tmp_path,
        *blockdevs(fmt),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=x,node-name=node,name=x,writable=on"),
    ) as daemon:
        with machine(
            tmp_path,
            "-blockdev",
            "nbd,node-name=n,server.type=unix,server.path=nbd.sock,export=x,discard=unmap",
            *("-device", "virtio-blk-pci,drive=n,num-queues=2"),
            *linux(),
            seconds=_LONG,
        ) as process:
            told = tell(process, "END")
            assert process.wait(SILENCE) == 0
        assert daemon.quit() == 0
    check_told(told, 512)
    assert "LIMIT write_cache write back" in told
    compare(tmp_path, fmt, workload.disk)


def check_told(lines: list[str], block: int) -> None:
    """Look at what the guest's kernel knew of the disk, and that all workers came to their end."""
    assert {f"SIZE {SIZE // 512}", "QUEUES 2"} <= set(lines)
    limits = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("LIMIT"))
    assert int(limits["logical_block_size"]) == block
    assert int(limits["discard_max_bytes"]) >= CHUNK
    assert int(limits["write_zeroes_max_bytes"]) >= CHUNK
    worked = sorted(line for line in lines if line.startswith("WORKED"))
    checks = -(-SIZE // CHUNK // WORKERS // 4)
    assert worked == [f"WORKED {n} {OPERATIONS + checks}" for n in range(WORKERS)]
    assert {f"INTERRUPTED by queue {n}" for n in range(2)} <= set(lines)
