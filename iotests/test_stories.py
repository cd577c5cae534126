# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Tell every story and compare its transcript with the one that is kept.

``pytest iotests --daemon real`` tells them with the C daemon: both must give the same transcript.
``--regenerate`` writes transcripts anew; do that with the C daemon, it is the one to be matched.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

import pytest

from iotests.harness.story import Story
from iotests.harness.tools import need

FOLDER = Path(__file__).parent / "stories"
NAMES = sorted(path.stem for path in FOLDER.glob("story_*.py"))


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("name", NAMES)
def test_story(name: str, tmp_path: Path, daemon_kind: str, regenerate: bool) -> None:
    if daemon_kind == "real":
        need("qemu-storage-daemon")
    module = importlib.import_module(f"iotests.stories.{name}")
    need(*getattr(module, "NEEDS", ()))
    story = Story(daemon_kind, tmp_path)
    try:
        module.story(story)
    finally:
        story.end()
    kept = FOLDER / f"{name}.out"
    if regenerate:
        kept.write_text("\n".join(story.lines) + "\n")
    expected = kept.read_text().splitlines()
    difference = difflib.unified_diff(expected, story.lines, "expected", "told", lineterm="")
    assert not (lines := list(difference)), "\n".join(lines)


def test_every_transcript_has_its_story() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.out")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_stories_say_what_they_are_about(name: str) -> None:
    module = importlib.import_module(f"iotests.stories.{name}")
    assert module.__doc__
    assert callable(module.story)
