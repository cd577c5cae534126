# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Short writes of equal length, served together: like all others, and recorded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.block.dirty import DirtyBitmap
from qsd.exports.nbd_scattered import ScatteredWrites
from qsd.formats.raw import RawDriver
from tests.exports.rig import FUA, READ, WRITE, Client, NbdRig
from tests.exports.test_nbd_joins import KINDS, answers, on_image
from tests.exports.test_nbd_marks import BAD, Expected, fail_there

SIZE = 2 << 20


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were served together each time."""
    noted: list[int] = []
    plain = ScatteredWrites._write

    def spy(self: ScatteredWrites, *arguments: Any) -> int:
        noted.append(plain(self, *arguments))
        return noted[-1]

    monkeypatch.setattr(ScatteredWrites, "_write", spy)
    return noted


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_served_together(kind: str, served: list[int]) -> None:
    async def body(rig: NbdRig, client: Client) -> None:
        bitmap = DirtyBitmap(rig.graph.find("n"), "b", 4096)
        places = [7, 3, 11, 5, 9]
        await client.ask(WRITE, 0, 512, data=bytes(512))  # the tables are there
        for recorded in (False, True):
            served.clear()
            data = [bytes([place + recorded]) * 4096 for place in places]
            cookies = {
                client.request(WRITE, place * 8192, 4096, data=one)
                for place, one in zip(places, data, strict=True)
            }
            assert all(chunks == ["ok"] for chunks in (await answers(client, cookies)).values())
            assert sum(served) == 5
            for place, one in zip(places, data, strict=True):
                assert await client.ask(READ, place * 8192, 4096) == [one]
            bitmap.attach()
        assert [offset for offset, _ in bitmap.bits.areas()] == sorted(8192 * p for p in places)

    on_image(kind, body)


SLOT = 16384
KINDS_OF_REQUEST = [*["write"] * 12, "read", "fua", "longer", "beyond"]
BATCHES = st.lists(
    st.tuples(
        st.sampled_from([512, 4096, 4096, 3000, 8192]),
        st.sampled_from([0, 0, 0, 512]),  # from the start of a slot
        st.lists(
            st.tuples(st.sampled_from(KINDS_OF_REQUEST), st.integers(0, SIZE // SLOT - 1)),
            min_size=1,
            max_size=24,
            unique_by=lambda request: request[1],
        ),
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([512, 4096, 65536]), st.sampled_from(["raises", "refuses", "works"]), BATCHES
)
def test_like_a_bytearray(
    granularity: int, way: str, batches: list[tuple[int, int, list[tuple[str, int]]]]
) -> None:
    """With others between them; BAD cannot be written, but may be recorded."""

    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            disk = await rig.memory("m", SIZE)
            top = await rig.add(driver="raw", node_name="n", file="m")
            if way != "works":
                disk.fail = fail_there(way)
            content = bytearray(SIZE)
            both = [Expected(DirtyBitmap(node, "b", granularity)) for node in (top, disk.node)]
            await rig.export("n", writable=True)
            client = await rig.go("n")
            for number, (length, within, requests) in enumerate(batches):
                expected: dict[int, tuple[bool, int]] = {}
                for kind, slot in requests:
                    offset = slot * SLOT + within + (SIZE if kind == "beyond" else 0)
                    size = length * 2 if kind == "longer" else length
                    if kind == "read":
                        expected[client.request(READ, offset, size)] = False, size
                        continue
                    data = bytes([number * 50 + slot % 50 + 1]) * size
                    cookie = client.request(WRITE, offset, size, FUA * (kind == "fua"), data)
                    fails = kind == "beyond" or (way != "works" and offset in BAD)
                    expected[cookie] = fails, 0
                    if kind != "beyond":
                        for one in both:
                            one.wrote(offset, size)
                    if not fails:
                        content[offset : offset + size] = data
                while expected:
                    head = await client.get(16)
                    fails, size = expected.pop(int.from_bytes(head[8:]))
                    assert any(head[4:8]) == fails
                    await client.get(size)
            for one in both:
                one.check()
            assert bytes(disk.data) == content

    loop.run(main())


def test_an_image_that_grew_is_as_long_as_before_for_who_knows_no_better() -> None:
    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            disk = await rig.memory("m", SIZE)
            await rig.export("m", writable=True)
            client = await rig.go("m")
            await disk.node.truncate(2 * SIZE, exact=True)
            cookies = [client.request(WRITE, at, 512, data=b"x" * 512) for at in (8192, 0, SIZE)]
            replies = await answers(client, set(cookies))
            assert [replies[cookie] == ["ok"] for cookie in cookies] == [True, True, False]
            assert not any(disk.data[SIZE:])

    loop.run(main())


def test_bitmaps_that_come_and_go_learn_of_what_they_should(served: list[int]) -> None:
    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            disk = await rig.memory("m", SIZE)
            await rig.export("m", writable=True)
            client = await rig.go("m")

            async def write() -> None:
                cookies = {client.request(WRITE, at, 512, data=bytes(512)) for at in (8192, 0)}
                assert set(map(tuple, (await answers(client, cookies)).values())) == {("ok",)}

            await write()
            bitmap = DirtyBitmap(disk.node, "b", 512)
            bitmap.attach()
            await write()
            assert list(bitmap.bits.areas()) == [(0, 512), (8192, 512)]
            bitmap.bits.clear_all()
            bitmap.detach()
            await write()
            assert not bitmap.bits
            assert served == [2, 2, 2]

    loop.run(main())
