# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Devices on files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, with_desk


@pytest.mark.parametrize("append", [False, True])
def test_output(tmp_path: Path, append: bool) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old ")

    async def main(desk: Desk) -> None:
        await desk.registry.add("f", backend("file", out=str(out), append=append))
        assert desk.filename("f") == "file"
        desk.registry.attach("f", Recorder()).write(b"new")

    with_desk(main)
    assert out.read_bytes() == (b"old new" if append else b"new")


def test_input_ends(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"x" * 100_000)

    async def main(desk: Desk) -> None:
        await desk.registry.add("f", backend("file", out="/dev/null", **{"in": str(source)}))
        user = Recorder()
        desk.registry.attach("f", user)
        await user.until_event("closed")
        assert len(user.data) == 100_000
        assert user.events == ["opened", "closed"]

    with_desk(main)


def test_errors(tmp_path: Path) -> None:
    async def main(desk: Desk) -> None:
        with pytest.raises(QmpError, match="Could not open 'no/x': No such file or directory"):
            await desk.registry.add("f", backend("file", out="no/x"))
        with pytest.raises(QmpError, match="Could not open 'no/y': No such file or directory"):
            await desk.registry.add("f", backend("file", out="/dev/null", **{"in": "no/y"}))

    with_desk(main)
