# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""NBD exports of real files, where long replies are sent from the page cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.aio.pagecache import CacheProbe
from qsd.exports.nbd_views import ViewReads
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.exports.rig import DF, READ, NbdRig

MIB = 1 << 20


def joined(chunks: list[Any]) -> bytes:
    return b"".join(
        bytes(chunk[2]) if chunk[0] == "hole" else chunk[2] if isinstance(chunk, tuple) else chunk
        for chunk in chunks
    )


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Return a list that gets (offset, length, sent) of every try to send a file."""
    tries: list[tuple[int, int, bool]] = []
    send_file = ViewReads.send_file

    def spy(self: ViewReads, cookie: int, offset: int, length: int, flags: int) -> bool:
        done = send_file(self, cookie, offset, length, flags)
        tries.append((offset, length, done))
        return done

    monkeypatch.setattr(ViewReads, "send_file", spy)
    monkeypatch.setattr(CacheProbe, "is_cached", lambda *_: True)
    monkeypatch.setattr("qsd.exports.nbd_views.MAX_VIEW", 0)
    monkeypatch.setattr("qsd.exports.nbd_quick.MAX_VIEW", 0)
    return tries


@pytest.mark.parametrize("structured", [False, True])
def test_long_reads_are_sent_from_the_page_cache(
    tmp_path: Path, structured: bool, sent: list[tuple[int, int, bool]]
) -> None:
    async def main() -> None:
        data = os.urandom(4 * MIB)
        (tmp_path / "f").write_bytes(data)
        async with NbdRig(file=FileDriver, raw=RawDriver) as rig:
            await rig.add(driver="file", node_name="f", filename=str(tmp_path / "f"))
            await rig.add(driver="raw", node_name="r", file="f", offset=512, size=2 * MIB)
            await rig.export("f")
            await rig.export("r")
            client = await rig.go("f", structured=structured)
            for offset, length in [(0, 65536), (65536, 32769), (MIB - 7, MIB), (0, 4 * MIB)]:
                assert (
                    joined(await client.ask(READ, offset, length))
                    == (data[offset : offset + length])
                )
            # A structured read first looks for holes; the result is remembered.
            expected = [not structured, True, True, True]
            assert [done for _, _, done in sent] == expected
            client = await rig.go("r", structured=structured)
            flags = DF if structured else 0
            chunks = await client.ask(READ, 100, 100_000, flags)
            assert joined(chunks) == data[612:100_612]
            assert sent[-1] == (100, 100_000, True)
            # Many at once, more than the socket takes.
            wanted = {client.request(READ, n, 2 * MIB - 20, flags): n for n in range(20)}
            while wanted:
                cookie, chunks = await client.reply(2 * MIB - 20)
                start = 512 + wanted.pop(cookie)
                assert joined(chunks) == data[start : start + 2 * MIB - 20]

    loop.run(main())


def test_holes_are_not_sent_as_data(tmp_path: Path, sent: list[tuple[int, int, bool]]) -> None:
    async def main() -> None:
        with open(tmp_path / "f", "wb") as file:
            file.truncate(4 * MIB)
            file.seek(MIB)
            file.write(b"x" * MIB)
        async with NbdRig(file=FileDriver) as rig:
            await rig.add(driver="file", node_name="f", filename=str(tmp_path / "f"))
            await rig.export("f")
            client = await rig.go("f", structured=True)
            for _ in range(2):
                assert await client.ask(READ, 0, 3 * MIB) == [
                    ("hole", 0, MIB),
                    ("data", MIB, b"x" * MIB),
                    ("hole", 2 * MIB, MIB),
                ]
                assert await client.ask(READ, MIB, 65536) == [("data", MIB, b"x" * 65536)]
            assert sent[-1][2]

    loop.run(main())


def test_uncached_ranges_are_not_sent_by_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        (tmp_path / "f").write_bytes(b"y" * MIB)
        monkeypatch.setattr(CacheProbe, "is_cached", lambda *_: False)
        monkeypatch.setattr(
            "qsd.exports.outlet._sendfile", lambda *_: pytest.fail("nothing may be sent so")
        )
        async with NbdRig(file=FileDriver) as rig:
            await rig.add(driver="file", node_name="f", filename=str(tmp_path / "f"))
            await rig.export("f")
            client = await rig.go("f")
            assert await client.ask(READ, 0, MIB) == [b"y" * MIB]
            assert await client.ask(READ, 1, 40_000) == [b"y" * 40_000]

    loop.run(main())


def test_length_stays_and_the_name_is_bound() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m", size=1000 * 512)
            export = await rig.export("m", name="other", description="text")
            assert (export.size, export.name, export.description) == (512_000, "other", "text")
            assert rig.server.find("other") is export
            assert rig.server.offers() == [export]
            assert rig.server.find("m") is None

    loop.run(main())


def test_the_longest_transfer_below_is_announced() -> None:
    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            memory = await rig.memory("m")
            await rig.add(driver="raw", node_name="r", file="m")
            export = await rig.export("r", name="x")
            assert export.maximum_block == 32 * MIB
            memory.limits.max_transfer = 65536
            assert export.maximum_block == 65536

    loop.run(main())
