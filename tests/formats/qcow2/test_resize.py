# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Growing and shrinking."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from tests.formats.qcow2.support import add_image, check, content, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

K64 = 65536


def resize(path: Path, size: int, prealloc: str = "off") -> None:
    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            await node.truncate(size, prealloc=prealloc)
            assert node.length() == size

    run(main())
    check(path)


@pytest.mark.parametrize("options", ["", "cluster_size=512", "extended_l2=on", "lazy_refcounts=on"])
def test_sizes_up_and_down(tmp_path: Path, options: str) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M", options)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", path)
    pick = random.Random(3)
    model = bytearray(b"\x05" * (1 << 20))
    for _ in range(8):
        size = pick.randrange(1, 8000) * 512
        resize(path, size)
        del model[size:]
        model.extend(bytes(size - len(model)))
        assert content(path, tmp_path) == model


def test_a_shrunken_image_gives_its_space_back(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "8M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 8M", path)
    resize(path, 1 << 20)
    assert path.stat().st_size == 1376256


def test_a_shrunken_image_ends_with_a_whole_cluster(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")
    assert path.stat().st_size % K64
    resize(path, 0)
    assert path.stat().st_size == 4 * K64


@pytest.mark.parametrize("prealloc", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=4k,extended_l2=off"])
def test_preallocation_of_what_is_added(tmp_path: Path, prealloc: str, options: str) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M", options)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", "-c", "discard 0 512k", path)
    resize(path, 3 << 20, prealloc)
    parts = json.loads(tool("qemu-img", "map", "--output=json", "-f", "qcow2", path))
    assert all("offset" in part for part in parts if part["start"] >= 1 << 20)
    # Clusters that were freed before may hold anything: none of it may show.
    assert not any(content(path, tmp_path)[1 << 20 :])


def test_a_longer_backing_file_stays_hidden(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    base = make(tmp_path / "base", "4M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 4M", base)
    path = make(tmp_path / "image", "4M", f"backing_file={base},backing_fmt=qcow2")
    resize(path, 1 << 20)
    resize(path, 2 << 20)
    data = content(path, tmp_path)
    assert data[: 1 << 20] == b"\x05" * (1 << 20)
    assert not any(data[1 << 20 :])


@pytest.mark.parametrize("options", ["", ",extended_l2=on"])
@pytest.mark.parametrize("written", [False, True])
def test_growing_over_a_longer_backing_file(tmp_path: Path, options: str, written: bool) -> None:
    need("qemu-img", "qemu-io")
    base = make(tmp_path / "base", "4M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 4M", base)
    path = make(tmp_path / "image", "66048", f"backing_file={base},backing_fmt=qcow2{options}")
    if written:
        # The rest of the cluster comes from the backing file, also what is behind the end.
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 512", path)
    resize(path, 3 << 20)
    data = content(path, tmp_path)
    assert data[:65536] == b"\x05" * 65536
    assert data[65536:66048] == (b"\x07" if written else b"\x05") * 512
    assert not any(data[66048:])
    resize(path, 1024)
    resize(path, 65536)
    assert content(path, tmp_path) == b"\x05" * 1024 + bytes(65536 - 1024)


def test_growing_an_old_image_over_a_longer_backing_file(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    base = make(tmp_path / "base", "4M")
    backing = f"backing_file={base},backing_fmt=qcow2"
    path = make(tmp_path / "image", "1M", f"compat=0.10,{backing}")
    with pytest.raises(QmpError, match=r"^Failed to zero out new clusters: Operation not"):
        resize(path, 2 << 20)


def test_l1_table_growth_with_many_tables(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "4M", "cluster_size=512,refcount_bits=64")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 1M", path)
    resize(path, 1 << 30)
    tool("qemu-io", "-f", "qcow2", "-c", "read -P 5 1M 1M", path)
    resize(path, 2 << 20)
    tool("qemu-io", "-f", "qcow2", "-c", "read -P 5 1M 1M", path)


@pytest.mark.parametrize(
    ("options", "size", "prealloc", "message"),
    [
        ("", 4 << 60, "off", "Failed to grow the L1 table: File too large"),
        ("", 1000, "off", "The new size must be a multiple of 512"),
        ("", 512, "full", "Preallocation can't be used for shrinking an image"),
        ("compat=0.10", 8 << 20, "off", "Can't resize a v2 image which has snapshots"),
    ],
)
def test_refusals(tmp_path: Path, options: str, size: int, prealloc: str, message: str) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", options)
    if "0.10" in options:
        tool("qemu-img", "snapshot", "-c", "s", path)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            with pytest.raises(QmpError) as caught:
                await node.truncate(size, prealloc=prealloc)
            assert caught.value.desc == message
            if "multiple" in message:  # what a FUSE export answers
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno == errno.EINVAL
            assert node.length() == 1 << 20
            await node.write((1 << 20) - K64, memoryview(b"x" * K64))

    run(main())
    check(path)


def test_data_files_follow(tmp_path: Path) -> None:
    need("qemu-img")
    for raw in ("on", "off"):
        data = tmp_path / f"data-{raw}"
        path = make(tmp_path / "image", "1M", f"data_file={data},data_file_raw={raw}")
        resize(path, 3 << 20)
        assert data.stat().st_size == 3 << 20
        resize(path, 2 << 20)
        assert data.stat().st_size == 2 << 20
