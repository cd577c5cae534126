# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Ordinary programs on mounted nodes, the image tools above all: it is a file like others."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotests.harness.daemon import PATIENCE, Daemon
from iotests.harness.tools import check_image, need, run

SIZE = 32 << 20
SECTOR = 512

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop,
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and FUSE"
    ),
]


@pytest.fixture(autouse=True)
def _no_mount_left(tmp_path: Path) -> Iterator[None]:
    """Unmount what a failed test left, so that its folder can be removed."""
    yield
    for line in Path("/proc/mounts").read_text().splitlines():
        point = line.split()[1]
        if point.startswith(str(tmp_path)):
            subprocess.run(["umount", "-l", point], check=False)


def serve(
    kind: str, folder: Path, fmt: str, options: str = "writable=on", size: int = SIZE
) -> Daemon:
    """Start a daemon that shows a new image as the file "disk"."""
    if not (folder / "image").exists():
        run(folder, "qemu-img", "create", "-q", "-f", fmt, "image", str(size))
    (folder / "disk").touch()
    return Daemon(
        kind,
        folder,
        *("--blockdev", "file,node-name=file,filename=image,discard=unmap"),
        *("--blockdev", f"{fmt},node-name=node,file=file,discard=unmap"),
        *("--export", f"fuse,id=x,node-name=node,mountpoint={folder}/disk,{options}"),
    )


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("direct", [0, 1])
def test_fio_verifies(tmp_path: Path, daemon_kind: str, fmt: str, direct: int) -> None:
    need("qemu-img", "fio")
    with serve(daemon_kind, tmp_path, fmt) as daemon:
        run(
            tmp_path,
            *("fio", "--name=x", "--filename=disk", f"--size={SIZE}", f"--direct={direct}"),
            *("--rw=randwrite", "--bssplit=512/10:4k/60:64k/30", "--ioengine=libaio"),
            *("--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--io_size=16m"),
            *("--allow_file_create=0", "--fsync=64", "--verify_backlog=256"),
        )
        assert daemon.quit() == 0
    if fmt == "qcow2":
        check_image(tmp_path, "image")


def test_image_tools_work_on_the_file(tmp_path: Path, daemon_kind: str) -> None:
    """A qcow2 image inside of what a raw node shows: created, filled, checked, resized, read."""
    need("qemu-img", "qemu-io")
    with serve(daemon_kind, tmp_path, "raw", "writable=on,growable=on", 0) as daemon:
        run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "disk", "16M")
        run(tmp_path, "qemu-io", "-c", "write -P 7 1M 3M", "-c", "discard 2M 1M", "disk")
        check_image(tmp_path, "disk")
        run(tmp_path, "qemu-img", "resize", "-q", "disk", "64M")
        run(tmp_path, "qemu-io", "-c", "write -P 8 60M 64k", "-c", "read -P 7 1M 1M", "disk")
        data = random.Random(1).randbytes(4 << 20)
        (tmp_path / "source").write_bytes(data + bytes(4 << 20))
        run(tmp_path, "qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", "source", "disk")
        run(tmp_path, "qemu-img", "convert", "-O", "raw", "disk", "back")
        assert (tmp_path / "back").read_bytes()[: 8 << 20] == data + bytes(4 << 20)
        run(tmp_path, "qemu-img", "snapshot", "-c", "s", "disk")
        check_image(tmp_path, "disk")
        assert daemon.quit() == 0
    check_image(tmp_path, "image")


def test_image_tools_see_a_raw_disk(tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img", "qemu-io")
    with serve(daemon_kind, tmp_path, "qcow2") as daemon:
        run(tmp_path, "qemu-io", "-f", "raw", "-c", "write -P 3 64k 128k", "disk")
        run(tmp_path, "qemu-io", "-f", "raw", "-c", "write -z 128k 64k", "-c", "flush", "disk")
        run(tmp_path, "qemu-img", "resize", "-q", "-f", "raw", "disk", str(SIZE * 2))
        mapped = run(tmp_path, "qemu-img", "map", "-f", "raw", "--output=json", "disk")
        assert '"start": 65536, "length": 65536' in mapped
        run(tmp_path, "qemu-img", "compare", "-f", "raw", "-F", "raw", "disk", "disk")
        assert daemon.quit() == 0
    check_image(tmp_path, "image")
    out = run(tmp_path, "qemu-io", "-c", "read -P 3 64k 64k", "-c", "length", "image")
    assert "failed" not in out
    assert "64 MiB" in out


def test_a_file_system(tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img", "mkfs.ext4", "e2fsck")
    with serve(daemon_kind, tmp_path, "qcow2") as daemon:
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "file").write_bytes(random.Random(2).randbytes(3 << 20))
        run(tmp_path, "mkfs.ext4", "-q", "-F", "-E", "discard", "-d", "tree", "disk")
        run(tmp_path, "e2fsck", "-f", "-n", "disk")
        assert daemon.quit() == 0
    check_image(tmp_path, "image")
    run(tmp_path, "qemu-img", "convert", "-O", "raw", "image", "raw")
    run(tmp_path, "e2fsck", "-f", "-n", "raw")


def test_sparse_copies_and_holes(tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img", "qemu-io", "fallocate")
    with serve(daemon_kind, tmp_path, "qcow2") as daemon:
        run(tmp_path, "qemu-io", "-f", "raw", "-c", "write -P 5 4M 1M", "disk")
        run(tmp_path, "cp", "--sparse=always", "disk", "copy")
        assert (tmp_path / "copy").stat().st_size == SIZE
        assert (tmp_path / "copy").stat().st_blocks * 512 <= 2 << 20
        run(tmp_path, "cmp", "disk", "copy")
        run(tmp_path, "fallocate", "-p", "-o", "4M", "-l", "512k", "disk")
        with (tmp_path / "disk").open("rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == (4 << 20) + (512 << 10)
            assert os.lseek(file.fileno(), 5 << 20, os.SEEK_HOLE) == 5 << 20
        assert daemon.quit() == 0


def test_mounted_over_the_image_itself(tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img", "qemu-io")
    run(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "image", "8M")
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--blockdev", "file,node-name=file,filename=image"),
        *("--blockdev", "qcow2,node-name=node,file=file"),
        *("--export", f"fuse,id=x,node-name=node,mountpoint={tmp_path}/image,writable=on"),
    ) as daemon:
        assert (tmp_path / "image").stat().st_size == 8 << 20
        run(tmp_path, "qemu-io", "-f", "raw", "-c", "write -P 9 1M 1M", "image")
        daemon.ok("block-export-del", id="x")
        assert (tmp_path / "image").stat().st_size < 8 << 20
        assert daemon.quit() == 0
    check_image(tmp_path, "image")
    assert "failed" not in run(tmp_path, "qemu-io", "-c", "read -P 9 1M 1M", "image")


def test_several_exports_at_once(tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img")
    with serve(daemon_kind, tmp_path, "qcow2") as daemon:
        for number in range(4):
            (tmp_path / f"m{number}").touch()
            daemon.ok(
                "block-export-add",
                **{"type": "fuse", "id": f"e{number}", "node-name": "node"},
                mountpoint=str(tmp_path / f"m{number}"),
            )
        data = random.Random(4).randbytes(1 << 20)
        with (tmp_path / "disk").open("r+b") as file:
            file.write(data)
        for number in range(4):
            with (tmp_path / f"m{number}").open("rb") as file:
                assert file.read(1 << 20) == data
        daemon.ok("block-export-del", id="e1")
        assert (tmp_path / "m1").stat().st_size == 0
        assert daemon.stop() == 0
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_a_killed_daemon_leaves_a_mount_that_the_next_one_replaces(
    tmp_path: Path, daemon_kind: str
) -> None:
    need("qemu-img", "fusermount3")
    with serve(daemon_kind, tmp_path, "raw") as daemon:
        daemon.kill()
    with pytest.raises(OSError, match="not connected"):
        (tmp_path / "disk").stat()
    run(tmp_path, "fusermount3", "-u", "disk")
    with serve(daemon_kind, tmp_path, "raw") as daemon:
        assert (tmp_path / "disk").stat().st_size == SIZE
        assert daemon.quit() == 0


def _python_for_everybody(folder: Path) -> str:
    """Return an interpreter that another user can run; skip the test if there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        code = "import sys; print(sys.version_info >= (3, 11))"
        command = f"{python} -c '{code}'"
        if run(folder, "su", "nobody", "-s", "/bin/sh", "-c", command, check=False) == "True\n":
            return python
    pytest.skip("another user cannot run Python 3.11")


def test_a_plain_user_mounts_through_the_helper(tmp_path: Path, daemon_kind: str) -> None:
    need("fusermount3", "su")
    if daemon_kind != "ours":
        pytest.skip("the command line below is ours")
    import shlex

    from iotests.harness.daemon import ROOT

    if not os.stat("/dev/fuse").st_mode & 0o002:
        pytest.skip("only root may open /dev/fuse here")
    python = _python_for_everybody(tmp_path)
    folder = Path(run(tmp_path, "mktemp", "-d", "/tmp/qsd-user-XXXXXX").strip())
    try:
        (folder / "image").write_bytes(b"u" * 4096)
        (folder / "disk").touch()
        run(folder, "chown", "-R", "nobody", ".")
        words = [
            *(python, "-m", "qsd"),
            *("--blockdev", "file,node-name=f,filename=image"),
            *("--export", "fuse,id=x,node-name=f,mountpoint=disk,writable=on"),
            *("--pidfile", "pid"),
        ]
        script = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.join(words)}"
        process = subprocess.Popen(
            ["su", "nobody", "-s", "/bin/sh", "-c", script],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not (folder / "pid").exists():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            command = "cat disk; echo changed | dd of=disk conv=notrunc status=none; head -c 7 disk"
            seen = run(folder, "su", "nobody", "-s", "/bin/sh", "-c", command)
            assert seen == "u" * 4096 + "changed"
        finally:
            if (folder / "pid").exists():
                os.kill(int((folder / "pid").read_text()), 15)
            else:
                process.kill()
            process.communicate(timeout=PATIENCE)
        assert str(folder) not in Path("/proc/mounts").read_text()
        assert (folder / "image").read_bytes()[:7] == b"changed"
    finally:
        subprocess.run(["umount", "-q", "-l", folder / "disk"], check=False)
        run(tmp_path, "rm", "-rf", str(folder))


def test_kill(tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    """SIGKILL under writes with fsync: what was synced is there, and the image is sound."""
    need("qemu-img")
    source = random.Random(11)
    sectors = SIZE // SECTOR
    durable: dict[int, int] = {}
    stamp = 0
    for _ in range(max(kill_rounds // 5, 2)):
        written: dict[int, list[int]] = {}
        with serve(daemon_kind, tmp_path, "qcow2") as daemon:
            killer = threading.Timer(source.uniform(0.1, 0.5), daemon.kill)
            fd = os.open(tmp_path / "disk", os.O_RDWR)
            killer.start()
            try:
                while True:
                    for _ in range(8):
                        stamp += 1
                        sector = source.randrange(sectors)
                        written.setdefault(sector, []).append(stamp)
                        os.pwrite(fd, stamp.to_bytes(8, "little") * 64, sector * SECTOR)
                    os.fsync(fd)
                    for number, stamps in written.items():
                        durable[number] = stamps[-1]
                    written.clear()
            except OSError:
                pass  # killed
            finally:
                killer.join()
                try:
                    os.close(fd)
                except OSError:
                    pass
        run(tmp_path, "umount", "disk")
        check_image(tmp_path, "image", leaks=True)
        run(tmp_path, "qemu-img", "convert", "-O", "raw", "image", "after")
        after = (tmp_path / "after").read_bytes()
        for number in durable.keys() | written.keys():
            content = after[number * SECTOR : (number + 1) * SECTOR]
            found = int.from_bytes(content[:8], "little")
            assert content == found.to_bytes(8, "little") * 64, f"sector {number} is torn"
            assert found in {durable.get(number, 0), *written.get(number, [])}
            durable[number] = found
