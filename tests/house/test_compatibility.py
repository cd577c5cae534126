# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""docs/compatibility.md says what is there and what is not; this holds it to the code."""

from __future__ import annotations

import re

import pytest

from qsd.aio.loop import run
from qsd.catalog import CREATORS
from qsd.daemon import StorageDaemon
from qsd.errors import QmpError
from tests.house.compatibility import CREATES, DOCUMENT, REFUSED_OBJECTS, expected, tables
from tests.house.tree import ROOT, python_files


def state(heading: str, name: str) -> str:
    (found,) = (row.state for row in tables()[heading] if row.name == name)
    return found


@pytest.mark.parametrize("heading", expected())
def test_states(heading: str) -> None:
    """If this fails: python -m tests.house.compatibility, and look at the remarks."""
    assert [row.name for row in tables()[heading]] == list(expected()[heading])
    assert {row.name: row.state for row in tables()[heading]} == expected()[heading]


def test_who_creates_images() -> None:
    for row in tables()["Block drivers"]:
        assert row.remarks.startswith(CREATES) == (row.name in CREATORS), row.name


@pytest.mark.parametrize("kind", sorted(REFUSED_OBJECTS))
def test_refused_objects(kind: str) -> None:
    arguments = {"qom-type": kind, "id": "x", "dir": str(ROOT)}
    text = "object type 'NAME' is not supported yet: there is no TLS"
    check(kind, run(_refusal("object-add", **arguments)), text)


async def _refusal(command: str, **arguments: object) -> str:
    async with StorageDaemon() as daemon:
        await daemon.qmp("blockdev-add", {"driver": "null-co", "node-name": "disk"})
        with pytest.raises(QmpError) as caught:
            await daemon.qmp(command, arguments)
    return caught.value.desc


#: Least arguments of some commands; they are checked before anything else.
SAMPLES: dict[str, dict[str, object]] = {
    "block-commit": {"device": "disk"},
    "block-dirty-bitmap-add": {"node": "disk", "name": "bitmap"},
    "block-stream": {"device": "disk"},
    "blockdev-backup": {"device": "disk", "target": "disk", "sync": "full"},
    "blockdev-mirror": {"device": "disk", "target": "disk", "sync": "full"},
    "blockdev-snapshot": {"node": "disk", "overlay": "disk"},
}
UNIX = {"type": "unix", "path": "x"}
EXPORT_SAMPLES: dict[str, dict[str, object]] = {
    "fuse": {"mountpoint": "x"},
    "vduse-blk": {"name": "x"},
    "vhost-user-blk": {"addr": UNIX},
}


def check(name: str, refusal: str, text: str) -> None:
    """The refusal has this text, and the document quotes it."""
    assert refusal == text.replace("NAME", name)
    assert f'"{text}"' in " ".join(DOCUMENT.read_text().split())


@pytest.mark.parametrize("name", SAMPLES)
def test_refused_commands(name: str) -> None:
    if state("Commands", name) == "later":
        refusal = run(_refusal(name, **SAMPLES[name]))
        check(name, refusal, "The command 'NAME' is not available in this release")


@pytest.mark.parametrize("name", EXPORT_SAMPLES)
def test_refused_exports(name: str) -> None:
    if state("Exports", name) == "later":
        arguments = {"type": name, "id": "x", "node-name": "disk", **EXPORT_SAMPLES[name]}
        refusal = run(_refusal("block-export-add", **arguments))
        check(name, refusal, "Block export type 'NAME' is not supported yet")


def test_refused_actions() -> None:
    name = "blockdev-snapshot"
    if state("Actions of `transaction`", name) == "later":
        refusal = run(_refusal("transaction", actions=[{"type": name, "data": SAMPLES[name]}]))
        check(name, refusal, "The action 'NAME' is not available in this release")


def test_refused_drivers() -> None:
    name = "bochs"
    if state("Block drivers", name) == "later":
        arguments = {"driver": name, "node-name": "x", "file": "disk"}
        check(name, run(_refusal("blockdev-add", **arguments)), "Unknown driver 'NAME'")


def test_every_quoted_text_is_in_the_code() -> None:
    """Error texts that the document quotes exist, up to the names in them."""
    document = " ".join(DOCUMENT.read_text().split())
    source = "\n".join(path.read_text() for path in python_files("qsd"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for quoted in re.findall(r'"([^"]{12,}?)"', document):
        words = re.split(r"\s*'?(?:NAME|METHOD|FORMAT)'?\s*", quoted)
        for part in words:
            assert part in source, quoted
