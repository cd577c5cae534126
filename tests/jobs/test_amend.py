# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The job that changes options of images."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.errors import QmpError
from qsd.jobs.amend import AmendJob
from tests.jobs.support import World, in_world


class Image:
    """A node and its driver, as far as the job uses them."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.seen: list[Any] = []
        self.driver = self

    def end_amend(self) -> None:
        self.seen.append("end")

    async def amend(self, options: Any, *, force: bool) -> None:
        self.seen.append((options, force))
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("force", [False, True])
def test_success(force: bool) -> None:
    async def story(world: World) -> None:
        image: Any = Image()
        job = AmendJob(world.registry, image, "j", "options", force=force)
        job.start()
        await job.wait_end()
        assert image.seen == [("options", force), "end"]
        info = job.info()
        assert (info.type, info.current_progress, info.total_progress) == ("amend", 1, 1)
        assert world.take()[-1] == "j concluded"

    in_world(story)


def test_failure_counts_as_progress() -> None:
    async def story(world: World) -> None:
        image: Any = Image(QmpError("No"))
        job = AmendJob(world.registry, image, "j", None, force=False)
        job.start()
        await job.wait_end()
        info = job.info()
        assert (info.current_progress, info.total_progress, info.error) == (1, 1, "No")
        assert image.seen[-1] == "end"
        assert world.take() == ["j created", "j running", "j aborting", "j concluded"]

    in_world(story)


def test_cancelled_before_it_did_anything() -> None:
    async def story(world: World) -> None:
        image: Any = Image()
        job = AmendJob(world.registry, image, "j", None, force=False)
        job.start()
        await job.cancel(True)
        await job.wait_end()
        assert image.seen == ["end"]
        assert world.take()[-1] == "j concluded"

    in_world(story)
