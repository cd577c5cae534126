# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""docs/compatibility.md says what is there and what is not; this holds it to the code."""

from __future__ import annotations

import os
import re
from importlib import import_module

import pytest

from qsd.aio.loop import run
from qsd.catalog import CREATORS
from qsd.commands import HANDLERS
from qsd.daemon import StorageDaemon
from qsd.errors import QmpError
from tests.house.compatibility import CREATES, DOCUMENT, SESSION, expected, tables
from tests.house.tree import python_files

#: Drivers that stand on one file and need to be told no more.
FORMATS = {"bochs", "cloop", "dmg", "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"}
#: Of those, what the original makes images of.
CREATES_ELSEWHERE = {"parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"}
#: What some objects need besides their names.
OBJECT_SAMPLES: dict[str, dict[str, object]] = {
    "authz-listfile": {"filename": "x"},
    "colo-compare": {"primary_in": "a", "secondary_in": "b", "outdev": "c", "iothread": "d"},
    "sev-guest": {"cbitpos": 1, "reduced-phys-bits": 1},
}


@pytest.mark.parametrize("heading", expected())
def test_states(heading: str) -> None:
    """If this fails: python -m tests.house.compatibility, and look at the remarks."""
    assert [row.name for row in tables()[heading]] == list(expected()[heading])
    assert {row.name: row.state for row in tables()[heading]} == expected()[heading]


def test_who_creates_images() -> None:
    for row in tables()["Block drivers"]:
        assert row.remarks.startswith(CREATES) == (row.name in CREATORS), row.name


def named(heading: str, state: str) -> list[str]:
    """Return what the document says is in this state."""
    return [row.name for row in tables()[heading] if row.state == state]


def check(name: str, refusal: str, text: str) -> None:
    """The refusal has this text, and the document quotes it."""
    assert refusal == text.replace("NAME", name)
    assert f'"{text}"' in " ".join(DOCUMENT.read_text().split())


async def _refusal(command: str, **arguments: object) -> str:
    async with StorageDaemon() as daemon:
        await daemon.qmp("blockdev-add", {"driver": "null-co", "node-name": "disk"})
        with pytest.raises(QmpError) as caught:
            await daemon.qmp(command, arguments)
    return caught.value.desc


@pytest.mark.parametrize("name", named("Commands", "yes"))
def test_commands_have_their_functions(name: str) -> None:
    if name not in SESSION:
        module, _, function = HANDLERS[name].partition(":")
        assert callable(getattr(import_module(f"qsd.commands.{module}"), function))


@pytest.mark.parametrize("name", named("Block drivers", "later"))
def test_refused_drivers(name: str) -> None:
    if name in FORMATS:
        arguments = {"driver": name, "node-name": "x", "file": "disk"}
        check(name, run(_refusal("blockdev-add", **arguments)), "Unknown driver 'NAME'")
    if name in CREATES_ELSEWHERE:
        options = {"driver": name, "file": "disk", "size": 1 << 20}
        text = "Block driver 'NAME' not found or not supported"
        check(name, run(_refusal("blockdev-create", **{"job-id": "j", "options": options})), text)


def test_an_export_that_the_kernel_lacks() -> None:
    if os.path.exists("/dev/vduse/control"):
        pytest.skip("this kernel has VDUSE")
    arguments = {"type": "vduse-blk", "id": "x", "node-name": "disk", "name": "x"}
    refusal = run(_refusal("block-export-add", **arguments))
    assert refusal == "failed to create vduse device"
    assert '"failed to create vduse device"' in " ".join(DOCUMENT.read_text().split())


@pytest.mark.parametrize("name", ["authz-listfile", "colo-compare", "rng-builtin", "sev-guest"])
def test_objects_that_the_original_refuses_too(name: str) -> None:
    assert name in named("Objects", "no")
    arguments = {**OBJECT_SAMPLES.get(name, {}), "qom-type": name, "id": "x"}
    check(name, run(_refusal("object-add", **arguments)), "invalid object type: NAME")


@pytest.mark.parametrize("name", ["console", "msmouse", "testdev"])
def test_devices_that_the_original_refuses_too(name: str) -> None:
    assert name in named("Character devices", "no")
    backend = {"type": name, "data": {}}
    refusal = run(_refusal("chardev-add", id="x", backend=backend))
    check(name, refusal.partition(": ")[2], "'NAME' is not a valid char driver name")


def test_every_quoted_text_is_in_the_code() -> None:
    """Error texts that the document quotes exist, up to the names in them."""
    document = " ".join(DOCUMENT.read_text().split())
    source = "\n".join(path.read_text() for path in python_files("qsd"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for quoted in re.findall(r'"([^"]{12,}?)"', document):
        words = re.split(r"\s*'?(?:NAME|METHOD|FORMAT)'?\s*", quoted)
        for part in words:
            assert part in source, quoted
