# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""SIGKILL at a random moment of a random load, over and over on the same image.

After every kill the image must check clean but for leaked clusters, and every sector must hold what
was flushed or something written later.  The next round goes on from the state the crash left.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from iotests.harness.crash import Load
from iotests.harness.daemon import Daemon
from iotests.harness.tools import check_image, need, run

SIZE = "24M"

VARIANTS: dict[str, list[str]] = {
    "raw": [],
    "plain": [],
    "small-clusters": ["-o", "cluster_size=4k"],
    "tiny-clusters": ["-o", "cluster_size=512"],
    "refcount64": ["-o", "refcount_bits=64,cluster_size=8k"],
    "refcount1": ["-o", "refcount_bits=1,cluster_size=16k"],
    "v2": ["-o", "compat=0.10"],
    "lazy": ["-o", "lazy_refcounts=on"],
    "extended-l2": ["-o", "extended_l2=on,cluster_size=64k"],
    "backing": ["-b", "base.raw", "-F", "raw"],
    "data-file": ["-o", "data_file=data.raw"],
    "snapshot": [],
    "compressed": [],
    "prealloc": ["-o", "preallocation=metadata"],
    "tiny-cache": ["-o", "cluster_size=1k"],
}
#: Options of the qcow2 node: metadata that is evicted all the time reaches the disk early.
NODE_OPTIONS = {
    "tiny-cache": ",l2-cache-size=2048,refcount-cache-size=4096",
}


def make(folder: Path, variant: str) -> dict[int, bytes]:
    """Create the image; return what its sectors hold already."""
    before: dict[int, bytes] = {}
    if variant == "raw":
        run(folder, "qemu-img", "create", "-q", "-f", "raw", "image", SIZE)
        return before
    content = b"".join(bytes([sector % 251 + 1]) * 512 for sector in range(8192))
    if variant in ("backing", "compressed"):
        (folder / "base.raw").write_bytes(content)
        before = {n: content[n * 512 : (n + 1) * 512] for n in range(8192)}
    if variant == "compressed":
        run(folder, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "image")
        run(folder, "qemu-img", "resize", "-q", "-f", "qcow2", "image", SIZE)
        return before
    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *VARIANTS[variant], "image", SIZE)
    if variant == "snapshot":
        run(folder, "qemu-io", "-f", "qcow2", "-c", "write -P 9 0 8M", "image")
        run(folder, "qemu-img", "snapshot", "-c", "before", "image")
        before = dict.fromkeys(range(16384), b"\x09" * 512)
    return before


def serve(kind: str, folder: Path, variant: str) -> Daemon:
    """Start a daemon that exports the image as "x"."""
    (folder / "nbd.sock").unlink(missing_ok=True)
    fmt = "raw" if variant == "raw" else "qcow2"
    return Daemon(
        kind,
        folder,
        "--blockdev",
        "file,node-name=file,filename=image,discard=unmap",
        "--blockdev",
        f"{fmt},node-name=top,file=file,discard=unmap" + NODE_OPTIONS.get(variant, ""),
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=x,node-name=top,name=x,writable=on",
    )


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kill(variant: str, tmp_path: Path, daemon_kind: str, kill_rounds: int) -> None:
    need("qemu-img", "qemu-io")
    before = make(tmp_path, variant)
    fmt = "raw" if variant == "raw" else "qcow2"
    source = random.Random(variant)
    for number in range(-(-kill_rounds // len(VARIANTS))):
        with serve(daemon_kind, tmp_path, variant) as daemon:
            load = Load(tmp_path / "nbd.sock", "x", source.randrange(1 << 30))
            # The moment of the kill is random in time, so it hits any step of any request.
            delay = source.uniform(0.02, 0.6)
            killer = threading.Timer(delay, daemon.kill)
            killer.start()
            load.run(100000, before)
            killer.join()
            load.client.close()
        if fmt == "qcow2":
            if variant == "lazy":
                # The dirty bit says that refcounts must be rebuilt first; whoever opens it does.
                run(tmp_path, "qemu-img", "check", "-r", "all", "-f", "qcow2", "image")
            check_image(tmp_path, "image", leaks=True)
            run(tmp_path, "qemu-img", "convert", "-f", fmt, "-O", "raw", "image", "after.raw")
            before = load.verify((tmp_path / "after.raw").read_bytes())
        else:
            before = load.verify((tmp_path / "image").read_bytes())
        assert load.history, f"round {number} did nothing"


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("variant", VARIANTS)
def test_orderly_end_leaves_a_clean_image(variant: str, tmp_path: Path, daemon_kind: str) -> None:
    need("qemu-img", "qemu-io")
    before = make(tmp_path, variant)
    fmt = "raw" if variant == "raw" else "qcow2"
    with serve(daemon_kind, tmp_path, variant) as daemon:
        load = Load(tmp_path / "nbd.sock", "x", 5)
        load.run(400, before)
        load.client.close()
        assert daemon.stop() == 0
    if fmt == "qcow2":
        check_image(tmp_path, "image")
        run(tmp_path, "qemu-img", "convert", "-f", fmt, "-O", "raw", "image", "after.raw")
        load.verify((tmp_path / "after.raw").read_bytes())
    else:
        load.verify((tmp_path / "image").read_bytes())
