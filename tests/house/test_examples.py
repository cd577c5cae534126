# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Examples are short, run, and print what they are meant to; so do those of the documents."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.house.tree import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: Lines; whoever needs more shows more than one thing.
MAX_LINES = 60

EXAMPLES = ROOT / "examples"
FILES = sorted(path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"})
OURS = f"{sys.executable} -m qsd"

pytestmark = pytest.mark.slow


def finish(folder: Path, *command: str) -> str:
    """Run a command in `folder` with this package at hand; it must succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QSD": OURS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_every_example_is_run() -> None:
    """Whoever adds one adds its test below."""
    source = (ROOT / "tests" / "house" / "test_examples.py").read_text()
    assert [path.name for path in FILES if source.count(path.name) == 0] == []


def test_embed(tmp_path: Path) -> None:
    output = finish(tmp_path, sys.executable, str(EXAMPLES / "embed.py"), str(tmp_path))
    disk, file, uri = output.splitlines()
    assert disk == "disk: qcow2, 1073741824 bytes"
    assert file.startswith("file: file, ")
    assert uri == f"nbd+unix:///disk?socket={tmp_path}/nbd.sock"
    assert not (tmp_path / "nbd.sock").exists()


def test_qmp_client(tmp_path: Path) -> None:
    lines = finish(tmp_path, sys.executable, str(EXAMPLES / "qmp_client.py")).splitlines()
    assert lines[1:] == [
        "refused: Duplicate nodes with node-name='disk'",
        "node disk 1048576",
        "exit 0",
    ]


def test_pytest_fixture(tmp_path: Path) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    output = finish(tmp_path, sys.executable, *command, str(EXAMPLES / "pytest_fixture.py"))
    assert "1 passed" in output


@pytest.mark.interop
def test_convert_over_nbd(tmp_path: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed (scripts/test installs it where it may)")
    (tmp_path / "source.raw").write_bytes(bytes(range(256)) * 4096)
    finish(tmp_path, "qemu-img", "convert", "-O", "qcow2", "source.raw", "image.qcow2")
    finish(tmp_path, str(EXAMPLES / "convert_over_nbd.sh"), "image.qcow2", "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "source.raw").read_bytes()


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md"])
def test_python_in_documents(document: str, tmp_path: Path) -> None:
    """Python blocks run, as they stand, inside a coroutine."""
    found = blocks(document, "python")
    assert found
    for block in found:
        body = textwrap.indent(block, "    ")
        script = f"import asyncio\n\n\nasync def main():\n{body}\n\nasyncio.run(main())\n"
        (tmp_path / "block.py").write_text(script)
        finish(tmp_path, sys.executable, "block.py")
