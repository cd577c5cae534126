# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Documents agree with the code and with each other."""

from __future__ import annotations

import re

import pytest

from qsd.exports import nbd_late, nbd_server, nbd_transmission
from qsd.net import descriptors
from qsd.qapi import json_machine
from qsd.qmp import server
from qsd.wire.nbd import messages
from tests.house.tree import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Characters; wider text does not fit beside anything.
WIDTH = 112


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(path: object) -> None:
    """`docs/x.md`, `qsd/x`, `scripts/x` ... in a document are files or folders."""
    text = (ROOT / str(path)).read_text()
    folders = "docs|examples|scripts|tests|iotests|bench|qsd"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_not_too_wide(path: object) -> None:
    for number, line in enumerate((ROOT / str(path)).read_text().splitlines(), start=1):
        assert len(line) <= WIDTH or line.startswith("|"), f"line {number}"


def test_limits_are_as_documented() -> None:
    text = " ".join((ROOT / "docs" / "security.md").read_text().split())
    kib, mib = 1 << 10, 1 << 20
    for claim in (
        f"says otherwise | {nbd_server.DEFAULT_MAX_CONNECTIONS} |",
        f"for the handshake | {nbd_server.HANDSHAKE_LIMIT:.0f} s |",
        f"of one option | {messages.MAX_OPTION_DATA // kib} KiB |",
        f"name or description | {messages.MAX_STRING} bytes |",
        f"of one request | {messages.MAX_REQUEST // mib} MiB |",
        f"{nbd_late.MAX_IN_FLIGHT}, and {nbd_late.MAX_IN_FLIGHT_BYTES // mib} MiB",
        f"does not read | {nbd_transmission.MAX_PENDING // mib} MiB,",
        f"`cache.direct=on` | {nbd_transmission.MAX_DIRECT_PENDING // mib} MiB |",
        f"leave to the daemon | {descriptors.RESERVE};",
        f"nest {json_machine.MAX_NESTING} levels deep",
        f"have {json_machine.MAX_TOKENS // mib} Mi tokens",
        f"or {json_machine.MAX_TEXT // mib} MiB of text",
        f"loses events beyond {server.MAX_UNREAD_EVENTS // mib} MiB",
    ):
        assert claim in text
