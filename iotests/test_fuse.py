# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Ordinary programs on mounted nodes, the image tools above all: it is a file like others."""

from __future__ import annotations

import importlib.util
import mmap
import os
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotests.harness.daemon import PATIENCE, ROOT, Daemon, real_daemon
from iotests.harness.tools import check_image, need, run, unmount_below

SIZE = 32 << 20
SECTOR = 512
CLUSTER = 65536

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
    yield
    unmount_below(tmp_path)


def serve(
    kind: str, folder: Path, fmt: str, options: str = "writable=on", size: int = SIZE
) -> Daemon:
    """Start a daemon that shows a new image as the file "disk"."""
    if not (folder / "image").exists():
        run(folder, "qemu-img", "create", "-q", "-f", fmt, "image", str(size))
    if "disk" not in os.listdir(folder):  # a dead mount on it cannot be touched
        (folder / "disk").touch()
    return Daemon(
        kind,
        folder,
        *("--blockdev", "file,node-name=file,filename=image,discard=unmap"),
        *("--blockdev", f"{fmt},node-name=node,file=file,discard=unmap"),
        *("--export", f"fuse,id=x,node-name=node,mountpoint={folder}/disk,{options}"),
    )


@pytest.fixture(params=["native", "pyfuse3"])
def engine(
    request: pytest.FixtureRequest, daemon_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let our daemon serve by each of its engines in turn."""
    if request.param == "native":
        return
    if daemon_kind != "ours":
        pytest.skip("the choice of an engine is ours")
    if importlib.util.find_spec("pyfuse3") is None:
        pytest.skip("pyfuse3 is not installed")
    monkeypatch.setenv("QSD_FUSE_ENGINE", request.param)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("direct", [0, 1])
def test_fio_verifies(tmp_path: Path, daemon_kind: str, fmt: str, direct: int) -> None:
    need("qemu-img", "fio")
    if direct and daemon_kind == "real":
        pytest.skip("the C daemon mixes up the data of direct writes that are in flight together")
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


@pytest.mark.usefixtures("engine")
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


@pytest.mark.usefixtures("engine")
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


def test_the_mount_of_a_killed_daemon(tmp_path: Path, daemon_kind: str) -> None:
    """It answers every request with an error; the next daemon of ours takes it away by itself."""
    need("qemu-img", "fusermount3")
    for _ in range(2):
        with serve(daemon_kind, tmp_path, "raw") as daemon:
            assert (tmp_path / "disk").stat().st_size == SIZE  # which the kernel remembers
            daemon.kill()
        with pytest.raises(OSError, match="not connected"):
            (tmp_path / "disk").open()
        if daemon_kind != "ours":
            run(tmp_path, "fusermount3", "-u", "disk")
    with serve(daemon_kind, tmp_path, "raw") as daemon:
        assert (tmp_path / "disk").stat().st_size == SIZE
        assert daemon.quit() == 0
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


#: For a second user: a device that he may open stands in the place of /dev/fuse, which nobody else
#: sees, since all this happens in a mount namespace of its own.
NAMESPACE = """
set -e
mknod device c 10 229
chmod 666 device
mount --bind device /dev/fuse
exec su nobody -s /bin/sh -c "$0"
"""


def _python_for_everybody(folder: Path) -> str:
    """Return an interpreter that another user can run; skip the test if there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        code = "import sys; print(sys.version_info >= (3, 11))"
        command = f"{python} -c '{code}'"
        if run(folder, "su", "nobody", "-s", "/bin/sh", "-c", command, check=False) == "True\n":
            return python
    pytest.skip("another user cannot run Python 3.11")


def test_a_plain_user_mounts_through_the_helper(tmp_path: Path, daemon_kind: str) -> None:
    """He may not let others in, unless fuse.conf says so, and root is one of the others."""
    need("fusermount3", "su", "unshare", "nsenter")
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    command = [real_daemon()]
    if daemon_kind == "ours":
        command = [_python_for_everybody(tmp_path), "-m", "qsd"]
    # The test's own folder is not for others to enter.
    folder = Path(tempfile.mkdtemp(prefix="qsd-user-"))
    try:
        (folder / "image").write_bytes(b"u" * 4096)
        (folder / "disk").touch()
        run(folder, "chown", "-R", "nobody", ".")
        words = [
            *command,
            *("--blockdev", "file,node-name=f,filename=image"),
            *("--export", "fuse,id=x,node-name=f,mountpoint=disk,writable=on"),
            *("--pidfile", "pid"),
        ]
        last = "disk"
        if daemon_kind == "ours":
            # The helper runs while a file is open that this daemon shows; the C daemon would hang.
            last = "again"
            (folder / last).touch()
            run(folder, "chown", "nobody", last)
            words += ["--blockdev", "file,node-name=own,filename=disk"]
            words += ["--export", "fuse,id=y,node-name=own,mountpoint=again,writable=on"]
        script = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.join(words)}"
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", NAMESPACE, script],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _wait_for(folder / "pid", process)
            pid = (folder / "pid").read_text().strip()

            def as_nobody(line: str) -> str:
                inside = ("nsenter", "-t", pid, "-m", "su", "nobody", "-s", "/bin/sh", "-c")
                return run(folder, *inside, f"cd {folder}; {line}")

            seen = as_nobody(
                f"cat disk; echo changed | dd of={last} conv=notrunc status=none; head -c 7 {last}"
            )
            assert seen == "u" * 4096 + "changed"
            assert as_nobody("chmod 700 disk; stat -c %a,%U disk") == "700,nobody\n"
            refused = as_nobody("chmod 644 disk 2>&1 || true")
            assert "Operation not permitted" in refused
            mounts = Path(f"/proc/{pid}/mounts").read_text()
            assert f" {folder}/disk fuse " in mounts
        finally:
            # What was started became su, which waits for the daemon.
            if (folder / "pid").exists():
                os.kill(int((folder / "pid").read_text()), 15)
            else:
                process.kill()
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert (folder / "image").read_bytes()[:7] == b"changed"
    finally:
        run(tmp_path, "rm", "-rf", str(folder))


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_may_look(tmp_path: Path, daemon_kind: str) -> None:
    """With allow-other it is a matter of owner and mode; without it root alone is let in."""
    need("qemu-img", "setpriv")
    tmp_path.parent.parent.chmod(0o755)
    for folder in (tmp_path.parent, tmp_path):
        folder.chmod(0o755)

    def nobody(*command: str) -> str:
        words = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command)
        return run(tmp_path, *words, check=False)

    for allowed in ("on", "auto", "off"):
        options = f"writable=on,allow-other={allowed}"
        with serve(daemon_kind, tmp_path, "raw", options) as daemon:
            assert "Permission denied" in nobody("head", "-c", "1", "disk")
            if allowed == "off":
                assert "Permission denied" in nobody("stat", "disk")
                assert "not permitted" in run(tmp_path, "chmod", "666", "disk", check=False)
                assert "not supported" in run(tmp_path, "chown", "nobody", "disk", check=False)
            else:
                assert "disk" in nobody("stat", "disk")
                run(tmp_path, "chmod", "606", "disk")
                assert nobody("dd", "if=/dev/zero", "of=disk", "count=1", "status=none") == ""
                run(tmp_path, "chown", "nobody", "disk")
                run(tmp_path, "chmod", "400", "disk")
                assert nobody("head", "-c", "1", "disk") == "\0"
                assert "Permission denied" in nobody("truncate", "-s", "0", "disk")
            assert daemon.quit() == 0


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("direct", [0, os.O_DIRECT])
def test_random_operations(tmp_path: Path, daemon_kind: str, fmt: str, direct: int) -> None:
    """Whatever is done to the file, it stays what a model says, and so does the image."""
    need("qemu-img", "fallocate")
    source = random.Random(f"{fmt} {direct}")
    model = bytearray(4 << 20)
    limit = 8 << 20
    with serve(daemon_kind, tmp_path, fmt, "writable=on,growable=on", len(model)) as daemon:
        fd = os.open(tmp_path / "disk", os.O_RDWR | direct)
        memory = mmap.mmap(-1, 1 << 20)
        try:
            for _ in range(250):
                offset = source.randrange(limit // SECTOR) * SECTOR
                length = source.choice([SECTOR, 4096, 65536, 200 * SECTOR, 1 << 20])
                kind = source.choice(["write", "write", "read", "read", "punch", "zero", "size"])
                if kind == "write" and offset + length <= limit:
                    with memoryview(memory)[:length] as view:
                        view[:] = source.randbytes(length)
                        assert os.pwritev(fd, [view], offset) == length
                        model.extend(bytes(max(offset + length - len(model), 0)))
                        model[offset : offset + length] = view
                elif kind == "read":
                    with memoryview(memory)[:length] as view:
                        count = os.preadv(fd, [view], offset)
                        assert view[:count] == model[offset : offset + length]
                elif kind == "punch" and offset + length <= len(model):
                    # To discard parts of clusters changes nothing, here as with any other user.
                    offset, length = offset // CLUSTER * CLUSTER, -(-length // CLUSTER) * CLUSTER
                    where = ("-o", str(offset), "-l", str(length))
                    run(tmp_path, "fallocate", "-p", *where, "disk")
                    end = min(offset + length, len(model))
                    model[offset:end] = bytes(end - offset)
                elif kind == "zero" and offset + length <= limit:
                    run(tmp_path, "fallocate", "-z", "-o", str(offset), "-l", str(length), "disk")
                    model.extend(bytes(max(offset + length - len(model), 0)))
                    model[offset : offset + length] = bytes(length)
                elif kind == "size":
                    size = max(offset, SECTOR)
                    os.ftruncate(fd, size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
                assert os.fstat(fd).st_size == len(model)
            os.fsync(fd)
        finally:
            os.close(fd)
            memory.close()
        assert (tmp_path / "disk").read_bytes() == model
        assert daemon.quit() == 0
    run(tmp_path, "qemu-img", "convert", "-f", fmt, "-O", "raw", "image", "after")
    assert (tmp_path / "after").read_bytes() == model
    if fmt == "qcow2":
        check_image(tmp_path, "image")


def test_several_programs_at_once(tmp_path: Path, daemon_kind: str) -> None:
    """Each in its own part of the file, through the page cache and around it."""
    need("qemu-img", "fio")
    with serve(daemon_kind, tmp_path, "qcow2") as daemon:
        jobs = []
        for number in range(4):
            jobs += [
                *(f"--name=j{number}", "--filename=disk", f"--offset={number * 8}m", "--size=8m"),
                *("--rw=randwrite", "--bs=4k", f"--direct={number % 2}", "--ioengine=psync"),
                *("--verify=crc32c", "--verify_fatal=1", "--allow_file_create=0"),
            ]
        run(tmp_path, "fio", *jobs)
        assert daemon.quit() == 0
    check_image(tmp_path, "image")


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
        run(tmp_path, "umount", "-l", "disk")
        check_image(tmp_path, "image", leaks=True)
        run(tmp_path, "qemu-img", "convert", "-O", "raw", "image", "after")
        after = (tmp_path / "after").read_bytes()
        for number in durable.keys() | written.keys():
            content = after[number * SECTOR : (number + 1) * SECTOR]
            found = int.from_bytes(content[:8], "little")
            assert content == found.to_bytes(8, "little") * 64, f"sector {number} is torn"
            assert found in {durable.get(number, 0), *written.get(number, [])}
            durable[number] = found
