# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Short requests on encrypted nodes that are served together, seen by a client: like all others."""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.formats.sectors import Sectors
from tests.exports.rig import READ, WRITE, Client, NbdRig
from tests.formats.secrets import SecretRig

MIB = 1 << 20
K4, K64 = 4096, 64 << 10
#: Bytes between the starts of requests, which do not overlap.
UNIT = 80 << 10
LUKS = {"key-secret": "s", "iter-time": 0}
ENCRYPTIONS: dict[str, dict[str, Any]] = {
    "qcow2-luks": {"format": "luks", **LUKS},
    "qcow2-aes": {"format": "qcow", "key-secret": "s"},
}
KINDS = ["luks", *ENCRYPTIONS]


class Rig(SecretRig, NbdRig):
    """A server, and secrets."""

    async def __aenter__(self) -> Self:
        await SecretRig.__aenter__(self)
        return await NbdRig.__aenter__(self)

    async def add_image(self, path: Path, kind: str) -> None:
        """Make an encrypted image, and export it as ``n``."""
        path.touch()
        file = {"driver": "file", "filename": str(path)}
        if kind == "luks":
            await self.create("luks", file=file, size=MIB, **LUKS)
            await self.add(driver="luks", node_name="n", file=file, key_secret="s")
        else:
            encrypt = ENCRYPTIONS[kind]
            await self.create("qcow2", file=file, size=MIB, encrypt=encrypt)
            opening = {"format": kind.removeprefix("qcow2-"), "key-secret": "s"}
            await self.add(driver="qcow2", node_name="n", file=file, encrypt=opening)
        await self.export("n", writable=True)


def on_image(kind: str, body: Callable[[Rig], Awaitable[None]]) -> None:
    async def main(folder: str) -> None:
        async with Rig() as rig:
            await rig.add_image(Path(folder) / "image", kind)
            await body(rig)

    with tempfile.TemporaryDirectory() as folder:
        loop.run(main(folder))


async def fill(client: Client, seed: int) -> bytearray:
    """Write all of the image, so that all of it is data."""
    content = random.Random(seed).randbytes(MIB)
    assert await client.ask(WRITE, 0, MIB, data=content) == ["ok"]
    await client.ask(READ, 0, 1)
    return bytearray(content)


async def collect(client: Client, asked: dict[int, tuple[int, int]]) -> dict[tuple[int, int], Any]:
    """Receive all replies; `asked` has place and length of reads, length 0 for writes."""
    found: dict[tuple[int, int], Any] = {}
    while asked:
        if client.structured:
            cookie, chunks = await client.reply()
            place = asked.pop(cookie)
            found[place] = b"".join(
                bytes(one[2]) for one in chunks if isinstance(one, tuple) and one[0] != "none"
            )
        else:
            magic, error, cookie = struct.unpack(">IIQ", await client.get(16))
            assert (magic, error) == (0x67446698, 0)
            place = asked.pop(cookie)
            found[place] = await client.get(place[1])
    return found


steps = st.tuples(
    st.booleans(),
    st.sampled_from([0, 512, 1536, K4, 100]),
    st.sampled_from([512, K4, K4, 8192, 16384, 16896, 32768, K64, K64, K64 + 512, 1, 700]),
)
batches = st.lists(
    st.lists(steps, min_size=1, max_size=MIB // UNIT), min_size=1, max_size=3
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(batches=batches, structured=st.booleans(), seed=st.integers(0, 99))
def test_like_a_bytearray(
    kind: str, batches: list[list[tuple[bool, int, int]]], structured: bool, seed: int
) -> None:
    """Batches of requests that do not overlap: reads, writes, some odd or long ones between."""

    async def body(rig: Rig) -> None:
        client = await rig.go("n", structured=structured)
        content = await fill(client, seed)
        for batch in batches:
            asked: dict[int, tuple[int, int]] = {}
            for unit, (is_write, start, length) in enumerate(batch):
                offset = unit * UNIT + start
                if is_write:
                    data = random.Random(unit).randbytes(length)
                    content[offset : offset + length] = data
                    asked[client.request(WRITE, offset, length, data=data)] = (offset, 0)
                else:
                    asked[client.request(READ, offset, length)] = (offset, length)
            for (offset, length), data in (await collect(client, asked)).items():
                assert data == content[offset : offset + length]
        seen = await collect(client, {client.request(READ, 0, MIB): (0, MIB)})
        assert seen[0, MIB] == content

    on_image(kind, body)


@pytest.mark.parametrize(
    ("size", "asked", "served"), [(K4, 8, [8]), (K64, 1, [1]), (K64, 9, [8, 1])]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cipher_is_called_once(
    kind: str, size: int, asked: int, served: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of reads that came in one go, and short writes; long writes as far as they came."""
    counts: list[tuple[str, int]] = []
    for name in ("read_run", "write_run"):
        plain = getattr(Sectors, name)

        def spy(self: Sectors, node: Any, pieces: Any, name: str = name, plain: Any = plain) -> Any:
            counts.append((name, len(pieces)))
            return plain(self, node, pieces)

        monkeypatch.setattr(Sectors, name, spy)

    async def body(rig: Rig) -> None:
        client = await rig.go("n")
        await fill(client, 1)
        for command in (WRITE, READ):
            data = b"x" * size if command == WRITE else b""
            length = size if command == READ else 0
            await collect(
                client,
                {
                    client.request(command, at * UNIT, size, data=data): (at * UNIT, length)
                    for at in range(asked)
                },
            )
        assert [count for name, count in counts if name == "read_run"] == served
        written = [count for name, count in counts if name == "write_run"]
        assert sum(written) == asked
        assert size == K64 or written == served

    on_image(kind, body)


def test_who_must_see_writes_sees_them() -> None:
    """A node with a write threshold has one that only reads; in a drained section it has none."""

    async def body(rig: Rig) -> None:
        node = rig.graph.find("n")
        backend = rig.registry.find("exp-n").backend
        assert backend.run_path() is not None
        node.write_threshold = MIB
        node.refresh_fast_paths()
        path = backend.run_path()
        assert path is not None
        assert path.read_run([(0, memoryview(bytearray(K4)))] * 3) == 3
        assert not path.write_run([(0, memoryview(bytes(K4)))] * 3)
        node.write_threshold = 0
        node.refresh_fast_paths()
        backend.drained_begin()
        assert backend.run_path() is None
        backend.drained_end()
        assert backend.run_path() is not None

    on_image("luks", body)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_told_by_the_plain_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(rig: Rig) -> None:
        client = await rig.go("n")
        await fill(client, 1)
        calls = 0

        def refuse(*_: Any) -> int:
            nonlocal calls
            calls += 1
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", refuse)
        sent = [client.request(WRITE, at * UNIT, K4, data=b"x" * K4) for at in range(4)]
        replies = dict([await client.reply() for _ in sent])
        assert calls
        assert set(replies) == set(sent)
        monkeypatch.undo()

    on_image(kind, body)
