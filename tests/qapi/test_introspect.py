# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The declarations against the schema of QEMU 7.2.22, which is in data/ as the daemon sent it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qsd.qapi.introspect import query_qmp_schema

REAL = json.loads((Path(__file__).parent / "data" / "qmp-schema-7.2.22.json").read_text())
OURS = query_qmp_schema()


def test_names_and_their_order() -> None:
    assert [entry["name"] for entry in OURS] == [entry["name"] for entry in REAL]


@pytest.mark.parametrize(
    ("ours", "real"), list(zip(OURS, REAL, strict=False)), ids=[entry["name"] for entry in REAL]
)
def test_entry(ours: dict[str, Any], real: dict[str, Any]) -> None:
    assert ours == real


def test_reply_fits_its_own_schema() -> None:
    from qsd.qapi.convert import from_json, to_json
    from qsd.qapi.schema import find_command

    declared = find_command("query-qmp-schema")
    assert declared is not None
    without_defaults = json.loads(json.dumps(OURS).replace(', "default": null', ""))
    assert to_json(from_json(declared.returns, without_defaults)) == without_defaults
