# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Comparing a driver with a raw image."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from tests.filters.support import data, edges, filter_rig, read


class Exit(BaseException):
    """Stands for the end of the process."""


def leave(code: int) -> None:
    assert code == 1
    raise Exit


async def add(rig: Any) -> tuple[Any, Any, Any]:
    test, raw = await rig.memory("t"), await rig.memory("r")
    node = await rig.add(driver="blkverify", node_name="v", test="t", raw="r")
    return node, test, raw


def test_agreement() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, test, raw = await add(rig)
            await node.write(100, data(1, 5000))
            await node.zero(200, 1000)
            assert test.data == raw.data
            assert await read(node, 0, 8192) == bytes(raw.data[:8192])
            for driver in (test, raw):
                driver.fast = False
                driver.fail = lambda operation, offset: errno.ENOSPC
            with pytest.raises(OSError) as info:
                await node.write(0, data(1, 1))
            assert info.value.errno == errno.ENOSPC

    run(main())


def test_different_content(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os._exit", leave)

    async def main() -> None:
        async with filter_rig() as rig:
            node, test, _ = await add(rig)
            test.data[5000] = 1
            with pytest.raises(Exit):
                await node.read(4096, data_in(4096))

    run(main())
    text = "blkverify: read offset=4096 bytes=4096 contents mismatch at offset 5000\n"
    assert capsys.readouterr().err == text


def data_in(length: int) -> memoryview:
    return memoryview(bytearray(length))


def test_different_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os._exit", leave)

    async def main() -> None:
        async with filter_rig() as rig:
            node, test, _ = await add(rig)
            test.fast = False
            test.fail = lambda operation, offset: errno.EIO
            with pytest.raises(Exit):
                await node.write(0, data(1, 512))

    run(main())
    assert capsys.readouterr().err == (
        "blkverify: write offset=0 bytes=512 return value mismatch -5 != 0\n"
    )


def test_permissions() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, _, _ = await add(rig)
            assert edges(node) == {
                "raw": (0, perms.ALL), "test": (0, perms.ALL & ~perms.RESIZE)
            }  # fmt: skip

    run(main())
