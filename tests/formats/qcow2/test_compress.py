# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Compressed clusters, read and written, with the real tools at the other end."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.mapping import COMPRESSED
from qsd.formats.qcow2.compress import ZLIB, ZSTD, compress, decompress
from tests.formats.qcow2.support import add_image, check, content, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

VARIANTS = ("", "cluster_size=4k", "compression_type=zstd", "extended_l2=on,cluster_size=16k",
            "refcount_bits=2,cluster_size=8k")  # fmt: skip


@given(
    st.binary(min_size=512, max_size=4096), st.sampled_from([ZLIB, ZSTD]), st.binary(max_size=600)
)
def test_round_trip_with_rubbish_behind(data: bytes, method: int, rubbish: bytes) -> None:
    packed = compress(data, method)
    assert decompress(memoryview(packed + rubbish), len(data), method) == data


@given(st.binary(max_size=2000), st.sampled_from([ZLIB, ZSTD]))
def test_rubbish_is_an_input_error(data: bytes, method: int) -> None:
    try:
        assert len(decompress(memoryview(data), 65536, method)) == 65536
    except OSError as exc:
        assert exc.errno == 5  # noqa: PT017


@pytest.mark.parametrize("method", [ZLIB, ZSTD])
def test_bombs_do_not_expand(method: int) -> None:
    packed = compress(bytes(8 << 20), method)
    assert decompress(memoryview(packed), 65536, method) == bytes(65536)


@pytest.mark.parametrize("options", VARIANTS)
def test_reading_what_the_real_tools_wrote(tmp_path: Path, options: str) -> None:
    need("qemu-img")
    raw = tmp_path / "raw"
    pick = random.Random(1)
    raw.write_bytes(b"".join(bytes([pick.randrange(256)]) * 700 for _ in range(1500)) + bytes(512))
    path = tmp_path / "image"
    extra = ["-o", options] if options else []
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *extra, raw, path)
    data = content(path, tmp_path)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            view = bytearray(node.length())
            await node.read(0, memoryview(view))
            assert view == data
            for _ in range(50):
                offset = pick.randrange(len(data) - 3000)
                part = bytearray(3000)
                await node.read(offset, memoryview(part))
                assert part == data[offset : offset + 3000]

    run(main())


@pytest.mark.parametrize("options", VARIANTS)
def test_writing(tmp_path: Path, options: str) -> None:
    """Compressible and incompressible clusters, rewritten, overwritten plainly, reopened."""
    need("qemu-img")
    size = (1 << 20) + 512
    path = make(tmp_path / "image", size, options)
    model = bytearray(size)

    async def main(seed: int) -> None:
        pick = random.Random(seed)
        async with rig() as graph:
            node = await add_image(graph, path)
            unit = node.driver.image_info()["cluster-size"]
            for _ in range(30):
                offset = pick.randrange(size // unit + 1) * unit
                length = min(unit * pick.randrange(1, 4), size - offset)
                data = pick.choice((bytes([pick.randrange(256)]) * length, os.urandom(length)))
                if pick.random() < 0.3:
                    start = pick.randrange(size - 600)
                    await node.write(start, memoryview(data[:600]))
                    model[start : start + len(data[:600])] = data[:600]
                    continue
                try:
                    await node.write(offset, memoryview(data), COMPRESSED)
                except OSError as exc:
                    assert exc.errno == 5  # noqa: PT017 - over other data
                    view = bytearray(length)
                    await node.read(offset, memoryview(view))
                    model[offset : offset + length] = view
                else:
                    model[offset : offset + length] = data
                if pick.random() < 0.2:
                    await node.flush()
            view = bytearray(size)
            await node.read(0, memoryview(view))
            assert view == model

    for seed in range(2):
        run(main(seed))
        check(path)
        assert content(path, tmp_path) == model


def test_small_clusters_share_host_clusters(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "4M")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            for number in range(64):
                data = bytes([number]) * 65536
                await node.write(number << 16, memoryview(data), COMPRESSED)

    run(main())
    assert check(path)["compressed-clusters"] == 64
    assert path.stat().st_size < 512 << 10
