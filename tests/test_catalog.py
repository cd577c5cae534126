# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd import catalog
from qsd.qapi.model import EnumType
from qsd.qapi.schema import find_type


@pytest.mark.parametrize("name", sorted(catalog.DRIVERS))
def test_every_driver_can_be_imported(name: str) -> None:
    cls = catalog.find_driver(name)
    assert cls is not None
    assert cls.name == name


def test_only_known_names_are_provided() -> None:
    """Whatever the schema has beyond the table is refused by name when it is used."""
    known = find_type("BlockdevDriver")
    assert isinstance(known, EnumType)
    assert set(catalog.DRIVERS) <= set(known.values)


@pytest.mark.parametrize("name", ["", "bogus", "Qcow2", "protocols.file"])
def test_other_names_are_none(name: str) -> None:
    assert catalog.find_driver(name) is None
