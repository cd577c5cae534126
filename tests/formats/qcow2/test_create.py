# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Making images: checks and their texts, and what the real tools say of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.formats.qcow2.create import create
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.protocols.null import NullDriver
from qsd.qapi.schema.block_create import BlockdevCreateOptionsQcow2
from tests.formats.qcow2.support import RecordingFile, rig
from tests.formats.qcow2.support import run as tool
from tests.support.memory import Rig
from tests.support.tools import need

M4 = 4 << 20


def make(tmp: Path, size: int = M4, **given: Any) -> Path:
    """Make an image in an empty file, with data in another one if asked for."""
    for name in ("image", "data"):
        (tmp / name).write_bytes(b"")

    async def main() -> None:
        async with rig() as graph:
            await graph.add(driver="file", node_name="f", filename=str(tmp / "image"))
            await graph.add(driver="file", node_name="d", filename=str(tmp / "data"))
            try:
                options = BlockdevCreateOptionsQcow2(file="f", size=size, **given)
                await create(graph.graph, options)
            finally:
                assert sorted(graph.graph.nodes) == ["d", "f"]
                for name in ("d", "f"):
                    await graph.graph.release(graph.graph.nodes[name])

    run(main())
    return tmp / "image"


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        (1000, {}, "Image size must be a multiple of 512 bytes"),
        (1 << 62, {}, "Could not resize image: Failed to grow the L1 table: File too large"),
        (-512, {}, "Could not resize image: Image size cannot be negative"),
        (M4, {"cluster_size": 1000},
         "Cluster size must be a power of two between 512 and 2048k"),
        (M4, {"cluster_size": 4 << 20},
         "Cluster size must be a power of two between 512 and 2048k"),
        (M4, {"refcount_bits": 7},
         "Refcount width must be a power of two and may not exceed 64 bits"),
        (M4, {"version": "v2", "refcount_bits": 8},
         "Different refcount widths than 16 bits require compatibility level 1.1 or above "
         "(use version=v3 or greater)"),
        (M4, {"version": "v2", "lazy_refcounts": True},
         "Lazy refcounts only supported with compatibility level 1.1 and above "
         "(use version=v3 or greater)"),
        (M4, {"version": "v2", "extended_l2": True},
         "Extended L2 entries are only supported with compatibility level 1.1 and above "
         "(use version=v3 or greater)"),
        (M4, {"extended_l2": True, "cluster_size": 8192},
         "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"),
        (M4, {"version": "v2", "compression_type": "zstd"},
         "Non-zlib compression type is only supported with compatibility level 1.1 and above "
         "(use version=v3 or greater)"),
        (M4, {"version": "v2", "data_file": "d"},
         "External data files are only supported with compatibility level 1.1 and above "
         "(use version=v3 or greater)"),
        (M4, {"data_file_raw": True}, "data-file-raw requires data-file"),
        (M4, {"data_file": "d", "data_file_raw": True, "backing_file": "x"},
         "Backing file and data-file-raw cannot be used at the same time"),
        (M4, {"backing_fmt": "raw"}, "Backing format cannot be used without backing file"),
        (M4, {"backing_file": "x", "preallocation": "full"},
         "Backing file and preallocation can only be used at the same time if extended_l2 is on"),
        (M4, {"backing_file": "x" * 1024, "backing_fmt": "raw"},
         f"Could not assign backing file '{'x' * 1024}' with format 'raw': Invalid argument"),
        (M4, {"backing_file": "x" * 500, "cluster_size": 512},
         f"Could not assign backing file '{'x' * 500}': No space left on device"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, size: int, given: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        make(tmp_path, size, **given)
    assert caught.value.desc == message


@pytest.mark.parametrize(
    ("size", "given", "length"),
    [
        (M4, {}, 196616),
        (0, {}, 196608),
        (M4, {"cluster_size": 512}, 2560),
        (M4, {"cluster_size": 2 << 20}, 6291464),
        (M4, {"version": "v2"}, 196616),
        (M4, {"refcount_bits": 1}, 196616),
        (M4, {"extended_l2": True, "refcount_bits": 64, "lazy_refcounts": True}, 196616),
        (M4, {"compression_type": "zstd"}, 196616),
        (M4, {"preallocation": "metadata"}, 4521984),
        (M4, {"preallocation": "falloc"}, 4521984),
        (M4, {"preallocation": "full"}, 4521984),
        (1 << 20, {"preallocation": "metadata", "cluster_size": 512}, 1071104),
        (M4, {"preallocation": "metadata", "extended_l2": True}, 4521984),
        (M4, {"data_file": "d"}, 196616),
        (M4, {"data_file": "d", "data_file_raw": True}, 327680),
        (M4, {"data_file": "d", "preallocation": "full"}, 327680),
    ],
)  # fmt: skip
def test_images(tmp_path: Path, size: int, given: dict[str, Any], length: int) -> None:
    """The length is that of the C daemon's image for the same options."""
    need("qemu-img")
    path = make(tmp_path, size, **given)
    assert path.stat().st_size == length
    tool("qemu-img", "check", path)
    info = json.loads(tool("qemu-img", "info", "--output=json", path))
    assert info["virtual-size"] == size
    data = info["format-specific"]["data"]
    assert data["compat"] == ("0.10" if given.get("version") == "v2" else "1.1")
    assert data["refcount-bits"] == given.get("refcount_bits", 16)
    assert data["compression-type"] == given.get("compression_type", "zlib")
    assert data.get("extended-l2", False) == given.get("extended_l2", False)
    assert data.get("data-file-raw", False) == given.get("data_file_raw", False)
    if "data_file" in given:
        assert (tmp_path / "data").stat().st_size == size
        assert data["data-file"] == str(tmp_path / "data")


def test_a_data_file_without_a_name_of_its_own_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"")

    async def main() -> None:
        async with Rig(qcow2=Qcow2Driver, file=RecordingFile, null_co=NullDriver) as graph:
            await graph.add(driver="file", node_name="f", filename=str(tmp_path / "image"))
            await graph.add(driver="null-co", node_name="d", size=M4)
            await create(graph.graph, BlockdevCreateOptionsQcow2(file="f", size=M4, data_file="d"))
            for name in ("d", "f"):
                await graph.graph.release(graph.graph.nodes[name])

    run(main())
    assert b"null-co" not in (tmp_path / "image").read_bytes()


def test_backing_file(tmp_path: Path) -> None:
    need("qemu-img")
    (tmp_path / "base.raw").write_bytes(b"x" * M4)
    path = make(tmp_path, backing_file="base.raw", backing_fmt="raw")
    info = json.loads(tool("qemu-img", "info", "--output=json", path))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("base.raw", "raw")
    tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", tmp_path / "base.raw", path)


def test_preallocation_under_a_backing_file(tmp_path: Path) -> None:
    need("qemu-img")
    (tmp_path / "base.raw").write_bytes(b"x" * M4)
    path = make(
        tmp_path,
        backing_file="base.raw",
        backing_fmt="raw",
        extended_l2=True,
        preallocation="metadata",
    )
    tool("qemu-img", "check", path)
    tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", tmp_path / "base.raw", path)
