# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""vduse-blk: options are checked first, the kernel is asked late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports import vduse_blk
from tests.exports.export_rig import ExportRig

NO_DEVICE = "failed to create vduse device"
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, NO_DEVICE),
    ({"queue_size": 4}, NO_DEVICE),
    ({"queue_size": 1024, "num_queues": 16, "serial": "x" * 40}, NO_DEVICE),
    ({"num_queues": 0, "queue_size": 0}, "num-queues must be greater than 0"),
    *[({"queue_size": size}, "queue-size is invalid") for size in (0, 2, 3, 2048)],
    (
        {"logical_block_size": 100},
        "Property e.logical-block-size doesn't take value 100 (minimum: 512, maximum: 2097152)",
    ),
]


@pytest.mark.parametrize(("options", "text"), CASES)
def test_refusals(
    options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vduse_blk, "CONTROL", str(tmp_path / "none"))

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError) as caught:
                await rig.export("vduse-blk", "m", name="x", **options)
            assert caught.value.desc == text
            assert bool(rig.reports) == (text == NO_DEVICE)

    loop.run(main())


def test_with_the_kernels_part_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "control").touch()
    monkeypatch.setattr(vduse_blk, "CONTROL", str(tmp_path / "control"))

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError, match="cannot drive VDUSE"):
                await rig.export("vduse-blk", "m", name="x")

    loop.run(main())
