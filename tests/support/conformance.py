# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What every block node must do, whatever its driver: a model, random operations, and checks.

A test module for a driver says how to make a node and lets this module exercise it::

    @given(conformance.programs(LENGTH))
    def test_like_a_bytearray(program):
        run(check(program))

    async def check(program):
        async with Rig(...) as rig:
            node = await rig.add(...)
            await conformance.check_program(rig, node, program)

    def test_conforms():
        ... await conformance.check_contract(rig, node)

The model is a bytearray.  After a discard, bytes may be the old ones or zero, and the model takes
over what it finds.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.mapping import FUA, MAY_UNMAP, NO_FALLBACK, ST_DATA, ST_ZERO
from qsd.block.node import Node
from tests.support.memory import Rig

#: Bytes; the longest single request of a program.
MAX_REQUEST = 200_000


class Step(NamedTuple):
    """One request: kind, offset, length, the byte to write, flags."""

    kind: str
    offset: int
    length: int
    fill: int
    flags: int


class Traits(NamedTuple):
    """Where nodes may differ.

    Attributes:
        keeps: Whether what was written can be read back (null nodes do not keep anything).
    """

    keeps: bool = True


KEEPS = Traits()


def steps(length: int) -> st.SearchStrategy[Step]:
    """Generate single requests for a node of `length` bytes, with a liking for round numbers."""
    offsets = st.one_of(
        st.integers(0, length - 1),
        st.integers(0, (length - 1) // 512).map(lambda sector: sector * 512),
        st.integers(0, (length - 1) // 65536).map(lambda cluster: cluster * 65536),
        st.just(length - 1),
    )
    lengths = st.one_of(
        st.integers(1, MAX_REQUEST), st.sampled_from([1, 511, 512, 513, 4096, 65536, 131072])
    )

    def build(kind: str, offset: int, size: int, fill: int, flags: int) -> Step:
        allowed = {"write": FUA, "zero": FUA | MAY_UNMAP | NO_FALLBACK}.get(kind, 0)
        return Step(kind, offset, min(size, length - offset), fill, flags & allowed)

    return st.builds(
        build,
        st.sampled_from(["write", "write", "write", "zero", "discard", "read", "flush"]),
        offsets,
        lengths,
        st.integers(0, 255),
        st.sampled_from([0, 0, 0, FUA, MAY_UNMAP, MAY_UNMAP | FUA, NO_FALLBACK]),
    )


def programs(length: int, longest: int = 20) -> st.SearchStrategy[list[Step]]:
    """Generate sequences of requests."""
    return st.lists(steps(length), min_size=1, max_size=longest)


def attach(rig: Rig, node: Node) -> Backend:
    """Make a user of the node that may do everything but resize."""
    backend = Backend(rig.graph, "user", "the conformance suite")
    taken = perms.CONSISTENT_READ | (0 if node.read_only else perms.WRITE)
    backend.attach(node, taken, perms.ALL)
    return backend


async def read(backend: Backend, offset: int, length: int) -> bytes:
    """Read into a buffer that held something else."""
    view = memoryview(bytearray(b"\xa5" * length))
    await backend.read(offset, view)
    return bytes(view)


async def read_all(backend: Backend) -> bytes:
    """Read everything in pieces."""
    length = backend.length()
    parts = [
        await read(backend, start, min(1 << 20, length - start))
        for start in range(0, length, 1 << 20)
    ]
    return b"".join(parts)


async def apply(backend: Backend, model: bytearray, step: Step, traits: Traits = KEEPS) -> None:
    """Do one request on the node and on the model."""
    offset, length = step.offset, step.length
    end = offset + length
    if step.kind == "write":
        data = bytes([step.fill]) * length
        await backend.write(offset, memoryview(data), step.flags)
        model[offset:end] = data
    elif step.kind == "zero":
        try:
            await backend.zero(offset, length, step.flags)
        except OSError as exc:
            if not (step.flags & NO_FALLBACK and exc.errno == errno.ENOTSUP):
                raise
            # Some pieces may have been zeroed before one could not be.
            found = await read(backend, offset, length)
            assert_old_or_zero(found, model[offset:end])
            model[offset:end] = found
            return
        model[offset:end] = bytes(length)
    elif step.kind == "discard":
        await backend.discard(offset, length)
        found = await read(backend, offset, length)
        if traits.keeps:
            assert_old_or_zero(found, model[offset:end])
        model[offset:end] = found
    elif step.kind == "flush":
        await backend.flush()
    else:
        found = await read(backend, offset, length)
        if traits.keeps:
            assert found == model[offset:end], f"wrong content after {step}"


def assert_old_or_zero(found: bytes, old: bytes | bytearray) -> None:
    """Check that each byte is the old one or zero."""
    assert all(new in (0, before) for new, before in zip(found, old, strict=True))


async def check_status(backend: Backend, model: bytes | bytearray) -> None:
    """Walk the block status: it must cover everything, and zeroes must be zeroes."""
    length = backend.length()
    position = 0
    while position < length:
        status = await backend.block_status(position, length - position)
        assert 0 < status.length <= length - position
        part = model[position : position + status.length]
        if status.flags & ST_ZERO:
            assert not any(part), f"claims zeroes at {position}"
        else:
            assert status.flags & ST_DATA, f"claims nothing at {position}"
        position += status.length
    assert position == length


async def check_program(
    rig: Rig, node: Node, program: Sequence[Step], traits: Traits = KEEPS
) -> bytes:
    """Run a program against the model, then compare everything; return the final content."""
    backend = attach(rig, node)
    try:
        model = bytearray(await read_all(backend))
        for step in program:
            await apply(backend, model, step, traits)
        await backend.flush()
        found = await read_all(backend)
        if traits.keeps:
            assert found == model
            await check_status(backend, model)
        return found
    finally:
        await backend.detach()


async def check_contract(rig: Rig, node: Node, traits: Traits = KEEPS) -> None:
    """Check bounds, empty requests, flags, concurrency, and that nothing stays in flight."""
    backend = attach(rig, node)
    try:
        await _check_bounds(backend)
        await _check_empty(backend)
        if not node.read_only:
            await _check_concurrent(rig, backend, traits)
        assert node.in_flight == 0
    finally:
        await backend.detach()


async def _check_bounds(backend: Backend) -> None:
    length = backend.length()
    assert length % 512 == 0
    one = memoryview(bytearray(1))
    for offset in (length, length + 512, -1):
        with pytest.raises(OSError) as info:
            await backend.read(offset, one)
        assert info.value.errno == errno.EIO
    if backend.node.read_only:
        with pytest.raises(OSError) as info:
            await backend.write(0, one)
        assert info.value.errno == errno.EPERM
        return
    # Protocol nodes that grow by being written to leave the upper bound to their users.
    for offset in (-1,) if backend.node.driver.grows else (length, -1):
        with pytest.raises(OSError) as info:
            await backend.write(offset, one)
        assert offset < 0 or info.value.errno == errno.EIO
        with pytest.raises(OSError) as info:
            await backend.zero(offset, 1)
        assert info.value.errno == errno.EIO


async def _check_empty(backend: Backend) -> None:
    nothing = memoryview(bytearray(0))
    for offset in (0, backend.length()):
        await backend.read(offset, nothing)
        if not backend.node.read_only:
            await backend.write(offset, nothing)
            await backend.write(offset, nothing, FUA)
            await backend.zero(offset, 0)
            await backend.discard(offset, 0)


async def _check_concurrent(rig: Rig, backend: Backend, traits: Traits) -> None:
    """Neighbouring requests, unaligned on purpose, must not tread on each other."""
    length = backend.length()
    piece = 1000
    count = min(64, length // piece)
    data = [bytes([index + 1]) * piece for index in range(count)]
    tasks = [
        rig.tasks.spawn(backend.write(index * piece, memoryview(part)), f"write {index}")
        for index, part in enumerate(data)
    ]
    for task in tasks:
        await task
    reads = [
        rig.tasks.spawn(read(backend, index * piece, piece), f"read {index}")
        for index in range(count)
    ]
    found = [await task for task in reads]
    if traits.keeps:
        assert found == data
    flushes = [rig.tasks.spawn(backend.flush(), "flush") for _ in range(3)]
    for flush in flushes:
        await flush
