# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from tests.support.toyformat import CLUSTER, SIZE, add_toy, content, toy_rig

operation = st.tuples(
    st.sampled_from(["write", "zero", "discard", "share"]),
    st.integers(0, SIZE - 1),
    st.integers(1, 5 * CLUSTER),
    st.integers(1, 255),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(operation, max_size=25), st.booleans(), st.booleans(), st.booleans())
def test_model(operations: list[Any], backing: bool, cached: bool, fast: bool) -> None:
    async def main() -> None:
        async with toy_rig() as r:
            node, toy, memory = await add_toy(r, backing)
            toy.cached, memory.fast = cached, fast
            node.discard_unmap = True
            model = bytearray(await content(node))
            for kind, offset, length, fill in operations:
                length = min(length, SIZE - offset)
                if kind == "write":
                    data = bytes([fill]) * length
                    await node.write(offset, memoryview(data))
                    model[offset : offset + length] = data
                elif kind == "zero":
                    await node.zero(offset, length)
                    model[offset : offset + length] = bytes(length)
                elif kind == "discard":
                    await node.discard(offset, length)
                    start, end = -(-offset // CLUSTER) * CLUSTER, offset + length
                    end = end if end == SIZE else end // CLUSTER * CLUSTER
                    if start < end:
                        model[start:end] = bytes(end - start)
                else:
                    toy.shared.update(i for i, host in toy.table.items() if host >= 0)
                assert await content(node) == model
            assert not toy.abandoned
            assert not toy.ranges.exclusive_count

    run(main())
