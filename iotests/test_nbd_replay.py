# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The same random bytes for both daemons' NBD servers: the answers must be the same.

Compared are all bytes of the handshake, texts of errors, extents, data, and at the end the images.
Where a server has a choice, :mod:`iotests.harness.nbd_replay` levels it out.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotests.harness.daemon import Daemon
from iotests.harness.nbd_replay import Export, Maker, play
from iotests.harness.tools import need, run

pytestmark = [pytest.mark.slow, pytest.mark.interop]

MIB = 1 << 20
#: Scripts for one pair of daemons.
SCRIPTS = 150

EXPORTS = [
    *(Export("raw", MIB), Export("ro", MIB), Export("odd", MIB + 100), Export("blocks", MIB, 4096)),
    *(
        Export("errors", MIB, alone=True),
        Export("zero", MIB),
        Export("big", 1 << 40),
        Export("", MIB),
    ),
    Export(
        "q",
        4 * MIB,
        contexts=(
            *("base:allocation", "qemu:allocation-depth"),
            *("qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"),
        ),
    ),
    Export("detect", MIB),
]

RULES = ",".join(
    f"inject-error.{index}.event=none,inject-error.{index}.iotype={kind},"
    f"inject-error.{index}.errno={code},inject-error.{index}.sector={sector}"
    for index, (kind, code, sector) in enumerate(
        [("read", 5, 16), ("write", 28, 800), ("discard", 1, 200), ("block-status", 12, 1200)]
    )
)

NODES = [
    "file,node-name=raw,filename=raw.img,discard=unmap",
    "file,node-name=ro,filename=ro.img,read-only=on",
    "file,node-name=odd,filename=odd.img,discard=unmap",
    "file,node-name=base-file,filename=base.qcow2",
    "qcow2,node-name=base,file=base-file,read-only=on",
    "file,node-name=q-file,filename=q.qcow2",
    "qcow2,node-name=q,file=q-file,backing=base,discard=unmap",
    "file,node-name=blocks-file,filename=blocks.img",
    "blkdebug,node-name=blocks,image=blocks-file,align=4096,max-transfer=65536",
    "file,node-name=errors-file,filename=errors.img",
    f"blkdebug,node-name=errors,image=errors-file,{RULES}",
    f"null-co,node-name=zero,size={MIB},read-zeroes=on",
    f"null-co,node-name=big,size={1 << 40},read-zeroes=on",
    "file,node-name=detect-file,filename=detect.img",
    "raw,node-name=detect,file=detect-file,detect-zeroes=unmap,discard=unmap",
]

#: Options beyond the name, which is the node's unless it is told.
SERVED = {
    "raw": "name=raw,writable=on,description=A raw one",
    "ro": "name=ro",
    "q": "name=q,writable=on,bitmaps.0=b0,bitmaps.1=b1,allocation-depth=on",
    "odd": "name=odd,writable=on",
    "blocks": "name=blocks,writable=on",
    "errors": "name=errors,writable=on",
    "zero": "name=zero,writable=on",
    "big": "name=big,writable=on",
    "detect": "name=detect,writable=on",
}

ARGUMENTS = [
    *(part for node in NODES for part in ("--blockdev", node)),
    *("--nbd-server", "addr.type=unix,addr.path=nbd.sock,max-connections=0"),
    *(
        part
        for node, options in SERVED.items()
        for part in ("--export", f"nbd,id={node}-export,node-name={node},{options}")
    ),
    *("--export", "nbd,id=nameless,node-name=raw,name=,allocation-depth=on"),
]

RAW_IMAGES = {
    **dict.fromkeys(["raw.img", "ro.img", "blocks.img", "errors.img", "detect.img"], MIB),
    "odd.img": MIB + 100,
}


def make_images(folder: Path, chance: random.Random) -> None:
    """Make images of data and holes."""
    for name, size in RAW_IMAGES.items():
        with (folder / name).open("wb") as image:
            image.truncate(size)
            for start in range(0, size, 65536):
                if chance.random() < 0.5:
                    image.seek(start)
                    length = min(chance.choice([512, 4096, 65536]), size - start)
                    image.write(bytes([chance.randrange(1, 256)]) * length)
    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "3M")
    write(folder, "base.qcow2", "write -P 1 0 300k", "write -z 512k 128k", "write -P 2 1M 64k")
    backed = ("-b", "base.qcow2", "-F", "qcow2")
    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *backed, "q.qcow2", "4M")
    run(folder, "qemu-img", "bitmap", "--add", "q.qcow2", "b0")
    write(folder, "q.qcow2", "write -P 3 128k 200k", "write -z 1M 128k")
    run(folder, "qemu-img", "bitmap", "--add", "-g", "4k", "q.qcow2", "b1")
    write(folder, "q.qcow2", "write -P 3 3M 20k")
    for bitmap in ("b0", "b1"):  # a writable export takes only those that do not change
        run(folder, "qemu-img", "bitmap", "--disable", "q.qcow2", bitmap)


def write(folder: Path, image: str, *commands: str) -> None:
    """Let qemu-io write."""
    arguments = [part for command in commands for part in ("-c", command)]
    run(folder, "qemu-io", "-f", "qcow2", *arguments, image)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: where other file systems have holes depends on when they write back."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="nbd-replay-") as path:
        yield Path(path)


@pytest.mark.parametrize("seed", [1, 1000, 2000])
def test_same_answers(folder: Path, seed: int) -> None:
    need("qemu-img", "qemu-io", "qemu-storage-daemon")
    ours, theirs = folder / "ours", folder / "real"
    theirs.mkdir()
    make_images(theirs, random.Random(seed))
    run(folder, "cp", "-a", "real", "ours")
    with Daemon("ours", ours, *ARGUMENTS) as mine, Daemon("real", theirs, *ARGUMENTS) as original:
        for number in range(seed, seed + SCRIPTS):
            script = Maker(random.Random(number), EXPORTS).script()
            expected = play(theirs / "nbd.sock", script)
            assert play(ours / "nbd.sock", script) == expected, f"seed {number}: {script}"
        assert mine.quit() == original.quit() == 0
        assert "nternal error" not in mine.log_text()
    for name in RAW_IMAGES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    run(
        folder,
        "qemu-img",
        "compare",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "ours/q.qcow2",
        "real/q.qcow2",
    )
