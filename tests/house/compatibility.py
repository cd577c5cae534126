# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What docs/compatibility.md has to say, taken from the code.

``python -m tests.house.compatibility`` puts the states into the document; remarks stay as they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qsd.catalog import CREATORS, DRIVERS, EXPORTS
from qsd.chardev.registry import BACKENDS
from qsd.commands import HANDLERS
from qsd.commands.transaction import ACTIONS
from qsd.objects.types import user_creatable_names
from qsd.qapi.model import EnumType
from qsd.qapi.schema import command_names, event_names, find_event, find_type
from qsd.usage import OPTIONS
from tests.house.tree import PACKAGE, ROOT, python_files

if TYPE_CHECKING:
    from collections.abc import Collection

DOCUMENT = ROOT / "docs" / "compatibility.md"

#: The remark on drivers that make images.
CREATES = "creates images"
#: Answered by the session itself.
SESSION = {"qmp_capabilities"}
#: In the original's schema, but its daemon refuses them, and so do we.
REFUSED_DRIVERS = {"blkreplay"}
#: Jobs that only the emulator runs, and what it emits.
FOREIGN_JOBS = {"snapshot-load", "snapshot-save", "snapshot-delete"}
FOREIGN_EVENTS = {"VSERPORT_CHANGE"}
#: The commands that start jobs.
STARTERS = {
    "commit": "block-commit",
    "stream": "block-stream",
    "mirror": "blockdev-mirror",
    "backup": "blockdev-backup",
    "create": "blockdev-create",
    "amend": "x-blockdev-amend",
}


def values(enum: str) -> Collection[str]:
    """Return the values of an enumeration."""
    found = find_type(enum)
    assert isinstance(found, EnumType)
    return found.values


def _states(names: Collection[str], yes: Collection[str], no: Collection[str]) -> dict[str, str]:
    return {
        name: "yes" if name in yes else "no" if name in no else "later" for name in sorted(names)
    }


def _jobs() -> set[str]:
    return {job for job, command in STARTERS.items() if command in HANDLERS}


def _emitted() -> set[str]:
    """Return the events that somebody emits who can be reached."""
    outside = [path for path in python_files("qsd") if PACKAGE / "qapi" not in path.parents]
    source = "\n".join(path.read_text() for path in outside)
    found: set[str] = set()
    for name in event_names():
        event = find_event(name)
        assert event is not None
        if re.search(rf"\b{event.__name__}\(", source):
            found.add(name)
    return found


def expected() -> dict[str, dict[str, str]]:
    """Return by heading the states of all that the schema names, sorted."""
    options = [f"--{name}" for name in OPTIONS.long]
    backends, objects = values("ChardevBackendKind"), set(values("ObjectType"))
    commands = {*HANDLERS, *SESSION}
    creatable = set(user_creatable_names())
    return {
        "Command line": _states(options, options, ()),
        "Commands": _states(list(command_names()), commands, ()),
        "Actions of `transaction`": _states(values("TransactionActionKind"), ACTIONS, ()),
        "Events": _states(list(event_names()), _emitted(), FOREIGN_EVENTS),
        "Block drivers": _states(values("BlockdevDriver"), DRIVERS, REFUSED_DRIVERS),
        "Exports": _states(values("BlockExportType"), set(EXPORTS), ()),
        "Jobs": _states(values("JobType"), _jobs(), FOREIGN_JOBS),
        "Objects": _states(objects, creatable, objects - creatable),
        "Character devices": _states(backends, BACKENDS, set(backends) - set(BACKENDS)),
    }


class Row:
    """One line of a table: what it is about, its state, and its remarks."""

    def __init__(self, name: str, state: str, remarks: str) -> None:
        self.name = name
        self.state = state
        self.remarks = remarks


def row(line: str) -> Row | None:
    """Return what a line of the document says if it belongs to a table of states."""
    match = re.fullmatch(r"\| `([^`]+)` \| (yes|later|no) \| (.*)\|", line)
    return Row(match[1], match[2], match[3].strip()) if match else None


def tables() -> dict[str, list[Row]]:
    """Return the document's tables by heading."""
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.strip("# "), [])
        elif there := row(line):
            rows.append(there)
    return found


def update() -> None:
    """Put the states into the document."""
    states = expected()
    heading = ""
    lines: list[str] = []
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif there := row(line):
            state = states[heading].get(there.name, there.state)
            remarks = there.remarks
            if heading == "Block drivers" and there.name in CREATORS:
                if not remarks.startswith(CREATES):
                    remarks = f"{CREATES}; {remarks}" if remarks else CREATES
            line = f"| `{there.name}` | {state} | {remarks} |"
        lines.append(line)
    DOCUMENT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    update()
