# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A stand-in for the ring that operations go to the kernel with."""

from __future__ import annotations

from qsd.aio.operations import OperationPool, PooledOperation


class HeldRing:
    """Stands for a ring: keeps what is begun until the test ends it."""

    def __init__(self) -> None:
        self.pool = OperationPool()
        self.held: list[PooledOperation] = []

    def start_all(self, opcode: int, fd: int, operations: list[PooledOperation]) -> None:
        self.held += operations

    def advance(self) -> None:
        """Nothing ends by itself."""

    def end(self, result: int | None = None) -> None:
        held, self.held = self.held, []
        for operation in held:
            operation.result = operation.length if result is None else result
        for sink in {operation.sink for operation in held}:
            sink.finished([operation for operation in held if operation.sink is sink])

    async def close(self) -> None:
        assert not self.held
