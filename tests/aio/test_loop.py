# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import sys

import pytest

from qsd.aio.loop import new_event_loop, run


def test_run_returns_and_cleans_up() -> None:
    log: list[str] = []

    async def main() -> int:
        async def left_over() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                log.append("cancelled")

        task = asyncio.get_running_loop().create_task(left_over())
        await asyncio.sleep(0)
        assert not task.done()
        return 7

    assert run(main()) == 7
    assert log == ["cancelled"]


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop()
    try:
        assert type(loop).__module__.startswith("asyncio")
    finally:
        loop.close()
