# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The job that makes images."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.errors import QmpError, os_error
from qsd.jobs.create import CreateJob
from tests.jobs.support import World, in_world


def test_success() -> None:
    async def story(world: World) -> None:
        seen: list[Any] = []

        async def creator(graph: Any, options: Any) -> None:
            seen.append((graph, options))

        graph: Any = object()
        job = CreateJob(world.registry, graph, "j", creator, "options")
        job.start()
        await job.wait_end()
        assert seen == [(graph, "options")]
        assert world.take() == [
            "j created", "j running", "j waiting", "j pending", "j concluded",
        ]  # fmt: skip
        info = job.info()
        assert (info.type, info.current_progress, info.total_progress) == ("create", 1, 1)

    in_world(story)


@pytest.mark.parametrize("exc", [QmpError("Bad size"), os_error(5, "Bad size")])
def test_failure_counts_as_progress(exc: Exception) -> None:
    async def story(world: World) -> None:
        async def creator(graph: Any, options: Any) -> None:
            raise exc

        graph: Any = object()
        job = CreateJob(world.registry, graph, "j", creator, None)
        job.start()
        await job.wait_end()
        info = job.info()
        assert (info.current_progress, info.total_progress) == (1, 1)
        assert info.error == "Bad size"
        assert world.take() == ["j created", "j running", "j aborting", "j concluded"]

    in_world(story)
