# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The main job, on real input: a file system in an image, served, changed, copied out, intact.

An ext4 file system is filled with a tree of files and put into an image by qemu-img.  The daemon
serves it.  Copies taken over NBD must be clean file systems with exactly the files that went in.
Then the file system is changed, block by block over NBD, and the same holds for the new tree.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.nbd import FLUSH, WRITE, Client
from iotests.harness.tools import check_image, need, run

SIZE = 48 << 20
BLOCK = 4096
URI = "nbd+unix:///disk?socket=nbd.sock"

pytestmark = [pytest.mark.slow, pytest.mark.interop]

#: By name: options of qemu-img create, and of the qcow2 node.
VARIANTS = {
    "plain": "",
    "small-clusters": "cluster_size=4k",
    "extended": "extended_l2=on,cluster_size=128k",
    "v2": "compat=0.10",
    "data-file": "data_file=data.raw,data_file_raw=on",
    "compressed": "",
    "overlay": "",
}


def plant(tree: Path) -> None:
    """Make files of every awkward size, names of every awkward kind, links and empty folders."""
    source = random.Random(2)
    tree.mkdir()
    for number, size in enumerate([0, 1, 511, 512, 4095, 4096, 65537, 1 << 20, 3_000_001]):
        folder = tree / "sizes" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{size}.bin").write_bytes(source.randbytes(size))
    (tree / "names").mkdir()
    for name in ("with space", "ünïcödé", "n" * 200, ".hidden", "back\\slash"):
        (tree / "names" / name).write_text(name * 100)
    (tree / "empty" / "folder").mkdir(parents=True)
    (tree / "link").symlink_to("sizes/0/0.bin")
    with (tree / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(5 << 20)
        file.write(b"end")
    (tree / "many").mkdir()
    for number in range(300):
        (tree / "many" / f"{number:04}").write_bytes(source.randbytes(number * 7))


def listing(tree: Path) -> dict[str, bytes | str]:
    """Return every path of a tree with its content; folders are marked."""
    found: dict[str, bytes | str] = {}
    for place, folders, files in os.walk(tree):
        for name in [*folders, *files]:
            path = Path(place, name)
            if path.name == "lost+found":
                continue
            key = str(path.relative_to(tree))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            else:
                found[key] = "folder" if path.is_dir() else path.read_bytes()
    return found


def make_image(folder: Path, variant: str) -> None:
    """Put disk.raw into "image"."""
    convert = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2"]
    if variant == "overlay":
        backing = ["-b", "disk.raw", "-F", "raw"]
        run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *backing, "image")
    elif variant == "compressed":
        run(folder, *convert, "-c", "disk.raw", "image")
    else:
        options = ["-o", VARIANTS[variant]] if VARIANTS[variant] else []
        run(folder, *convert, *options, "disk.raw", "image")


def check_copy(folder: Path, copy: str, tree: Path) -> None:
    """Check that a copy is a clean file system that holds exactly that tree."""
    run(folder, "e2fsck", "-fn", copy)
    out = folder / "out"
    out.mkdir()
    run(folder, "debugfs", "-R", "rdump / out", copy)
    expected, got = listing(tree), listing(out)
    assert got.keys() == expected.keys()
    assert [key for key in got if got[key] != expected[key]] == []
    shutil.rmtree(out)


def change(folder: Path, tree: Path) -> Path:
    """Change the tree, and a copy of the disk likewise with debugfs; return that copy."""
    changed = folder / "changed.raw"
    shutil.copyfile(folder / "disk.raw", changed)
    (folder / "new.bin").write_bytes(random.Random(3).randbytes(2_500_000))
    commands = ["mkdir added", "cd added", f"write {folder}/new.bin new.bin", "cd /"]
    (tree / "added").mkdir()
    shutil.copyfile(folder / "new.bin", tree / "added" / "new.bin")
    for number in range(0, 300, 3):
        commands.append(f"rm many/{number:04}")
        (tree / "many" / f"{number:04}").unlink()
    commands += ["rm sizes/1/1048576.bin", "symlink another names/.hidden"]
    (tree / "sizes" / "1" / "1048576.bin").unlink()
    (tree / "another").symlink_to("names/.hidden")
    (folder / "commands").write_text("\n".join(commands) + "\n")
    run(folder, "debugfs", "-w", "-f", "commands", "changed.raw")
    check_copy(folder, "changed.raw", tree)
    return changed


def write_differences(path: Path, old: bytes, new: bytes) -> int:
    """Write the blocks that differ, many requests at a time; return their number."""
    client = Client(path, "disk")
    offsets = [
        at for at in range(0, len(new), BLOCK) if old[at : at + BLOCK] != new[at : at + BLOCK]
    ]
    random.Random(4).shuffle(offsets)
    in_flight = 0
    for cookie, offset in enumerate(offsets):
        client.send(WRITE, cookie, offset, data=new[offset : offset + BLOCK])
        in_flight += 1
        if in_flight == 16:
            assert client.receive()[1] == 0
            in_flight -= 1
    for _ in range(in_flight):
        assert client.receive()[1] == 0
    client.send(FLUSH, 0)
    assert client.receive()[1] == 0
    client.close()
    return len(offsets)


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_system(variant: str, tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img", "nbdcopy", "mkfs.ext4", "debugfs", "e2fsck")
    tree = tmp_path / "tree"
    plant(tree)
    (tmp_path / "disk.raw").touch()
    os.truncate(tmp_path / "disk.raw", SIZE)
    run(tmp_path, "mkfs.ext4", "-q", "-F", "-d", "tree", "disk.raw")
    make_image(tmp_path, variant)
    with Daemon(
        daemon_kind,
        tmp_path,
        *("--blockdev", "file,node-name=file,filename=image,discard=unmap"),
        *("--blockdev", "qcow2,node-name=disk,file=file,discard=unmap"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=x,node-name=disk,name=disk,writable=on"),
    ) as daemon:
        run(tmp_path, "nbdcopy", URI, "copied.raw")
        check_copy(tmp_path, "copied.raw", tree)

        changed = change(tmp_path, tree)
        old, new = (tmp_path / "copied.raw").read_bytes(), changed.read_bytes()
        assert write_differences(tmp_path / "nbd.sock", old, new) > 100
        run(tmp_path, "nbdcopy", URI, "copied.raw")
        check_copy(tmp_path, "copied.raw", tree)
        run(tmp_path, "qemu-img", "convert", "-f", "raw", "-O", "raw", URI, "converted.raw")
        check_copy(tmp_path, "converted.raw", tree)
        assert daemon.stop() == 0

    check_image(tmp_path, "image")
    run(tmp_path, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "final.raw")
    check_copy(tmp_path, "final.raw", tree)
    assert (tmp_path / "final.raw").read_bytes() == new
