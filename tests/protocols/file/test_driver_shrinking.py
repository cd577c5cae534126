# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from qsd.protocols.file.driver import FileDriver
from qsd.protocols.file.prealloc import resize
from tests.protocols.file.test_driver import LENGTH, with_file
from tests.support.memory import Rig


def test_a_file_that_gets_shorter_is_not_seen_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a view shows of the part that is cut off would be an error of the call that takes it."""
    image = tmp_path / "f"
    held = threading.Event()

    def hold(*arguments: Any) -> None:
        held.wait(10)
        resize(*arguments)

    monkeypatch.setattr("qsd.protocols.file.driver.resize", hold)
    image.write_bytes(bytes(LENGTH))

    async def body(rig: Rig, driver: FileDriver) -> None:
        see = driver.view_path()
        assert see is not None
        assert see(0, 512) is not None
        async with asyncio.TaskGroup() as group:
            change = group.create_task(driver.node.truncate(LENGTH // 2))
            await asyncio.sleep(0.01)
            assert not change.done()
            assert see(0, 512) is None
            held.set()
        assert see(0, 512) is not None
        assert see(LENGTH // 2, 512) is None

    with_file(body, image)
