# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""docs/compatibility.md says what is there and what is not; this holds it to the code."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from qsd.aio.loop import run
from qsd.catalog import CREATORS, DRIVERS, EXPORTS
from qsd.chardev.registry import BACKENDS
from qsd.commands import HANDLERS
from qsd.commands.transaction import ACTIONS
from qsd.daemon import StorageDaemon
from qsd.errors import QmpError
from qsd.objects.types import user_creatable_names
from qsd.qapi.model import EnumType
from qsd.qapi.schema import command_names, event_names, find_event, find_type
from qsd.usage import OPTIONS
from tests.house.tree import PACKAGE, ROOT, python_files

if TYPE_CHECKING:
    from collections.abc import Collection

#: Answered by the session itself.
SESSION = {"qmp_capabilities"}
#: There is a handler, which refuses after its checks.
CHECKS_ONLY = {"x-blockdev-amend"}
#: In the original's schema, but its daemon refuses them, and so do we.
REFUSED_DRIVERS = {"blkreplay"}
#: Jobs that only the emulator runs.
FOREIGN_JOBS = {"snapshot-load", "snapshot-save", "snapshot-delete"}


class Row:
    """One line of a table: its state, and its remarks."""

    def __init__(self, state: str, remarks: str) -> None:
        self.state = state
        self.remarks = remarks


@cache
def tables() -> dict[str, dict[str, Row]]:
    """Return the document's tables by heading."""
    found: dict[str, dict[str, Row]] = {}
    rows: dict[str, Row] = {}
    for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.strip("# "), {})
        elif match := re.fullmatch(r"\| `([^`]+)` \| (yes|later|no) \| (.*)\|", line):
            assert match[1] not in rows, f"{match[1]} is listed twice"
            rows[match[1]] = Row(match[2], match[3].strip())
    return found


def values(enum: str) -> Collection[str]:
    found = find_type(enum)
    assert isinstance(found, EnumType)
    return found.values


def states(heading: str, names: Collection[str]) -> dict[str, str]:
    """Return the states of a table, which must list just these names, sorted."""
    rows = tables()[heading]
    assert list(rows) == sorted(names)
    return {name: row.state for name, row in rows.items()}


def expected(names: Collection[str], yes: Collection[str], no: Collection[str]) -> dict[str, str]:
    return {name: "yes" if name in yes else "no" if name in no else "later" for name in names}


def test_options() -> None:
    names = [f"--{name}" for name in OPTIONS.long]
    assert states("Command line", names) == expected(names, names, ())


def test_commands() -> None:
    names = list(command_names())
    there = {*HANDLERS, *SESSION} - CHECKS_ONLY
    assert states("Commands", names) == expected(names, there, ())


def test_actions() -> None:
    names = values("TransactionActionKind")
    assert states("Actions of `transaction`", names) == expected(names, ACTIONS, ())


def test_drivers() -> None:
    names = values("BlockdevDriver")
    assert states("Block drivers", names) == expected(names, DRIVERS, REFUSED_DRIVERS)
    for name, row in tables()["Block drivers"].items():
        assert ("creates images" in row.remarks) == (name in CREATORS), name


def test_exports() -> None:
    names = values("BlockExportType")
    assert states("Exports", names) == expected(names, EXPORTS, ())


def test_jobs() -> None:
    """A job is there when a command starts it."""
    names = values("JobType")
    starters = {
        "commit": "block-commit",
        "stream": "block-stream",
        "mirror": "blockdev-mirror",
        "backup": "blockdev-backup",
        "create": "blockdev-create",
        "amend": "x-blockdev-amend",
    }
    there = {
        job
        for job, command in starters.items()
        if command in HANDLERS and command not in CHECKS_ONLY
    }
    assert states("Jobs", names) == expected(names, there, FOREIGN_JOBS)


def test_chardevs() -> None:
    names = values("ChardevBackendKind")
    refused = set(names) - set(BACKENDS)
    assert states("Character devices", names) == expected(names, BACKENDS, refused)


def test_objects() -> None:
    """What the original cannot make, we cannot; of the rest some are for later."""
    names = values("ObjectType")
    found = states("Objects", names)
    creatable = set(user_creatable_names())
    assert {name for name, state in found.items() if state == "no"} == set(names) - creatable

    async def refused(kind: str) -> bool:
        async with StorageDaemon() as daemon:
            try:
                await daemon.qmp("object-add", {"qom-type": kind, "id": "x", "dir": str(ROOT)})
            except QmpError as exc:
                return "is not supported yet" in exc.desc
            return False

    for kind in ("tls-creds-anon", "tls-creds-psk", "tls-creds-x509"):
        assert (found[kind] == "later") == run(refused(kind)), kind


def test_events() -> None:
    """An event is there when somebody emits it."""
    names = list(event_names())
    found = states("Events", names)
    outside = [path for path in python_files("qsd") if PACKAGE / "qapi" not in path.parents]
    source = "\n".join(path.read_text() for path in outside)
    for name in names:
        event = find_event(name)
        assert event is not None
        if found[name] == "yes":
            assert re.search(rf"\b{event.__name__}\(", source), f"nobody emits {name}"


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
    assert f'"{text}"' in " ".join((ROOT / "docs" / "compatibility.md").read_text().split())


@pytest.mark.parametrize("name", SAMPLES)
def test_refused_commands(name: str) -> None:
    if tables()["Commands"][name].state == "later":
        refusal = run(_refusal(name, **SAMPLES[name]))
        check(name, refusal, "The command 'NAME' is not available in this release")


@pytest.mark.parametrize("name", EXPORT_SAMPLES)
def test_refused_exports(name: str) -> None:
    if tables()["Exports"][name].state == "later":
        arguments = {"type": name, "id": "x", "node-name": "disk", **EXPORT_SAMPLES[name]}
        refusal = run(_refusal("block-export-add", **arguments))
        check(name, refusal, "Block export type 'NAME' is not supported yet")


def test_refused_actions() -> None:
    name = "blockdev-snapshot"
    if tables()["Actions of `transaction`"][name].state == "later":
        refusal = run(_refusal("transaction", actions=[{"type": name, "data": SAMPLES[name]}]))
        check(name, refusal, "The action 'NAME' is not available in this release")


def test_refused_drivers() -> None:
    name = "compress"
    if tables()["Block drivers"][name].state == "later":
        arguments = {"driver": name, "node-name": "x", "file": "disk"}
        check(name, run(_refusal("blockdev-add", **arguments)), "Unknown driver 'NAME'")


def test_every_quoted_text_is_in_the_code() -> None:
    """Error texts that the document quotes exist, up to the names in them."""
    document = " ".join((ROOT / "docs" / "compatibility.md").read_text().split())
    source = "\n".join(path.read_text() for path in python_files("qsd"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for quoted in re.findall(r'"([^"]{12,}?)"', document):
        words = re.split(r"\s*'?(?:NAME|METHOD|FORMAT)'?\s*", quoted)
        for part in words:
            assert part in source, quoted
