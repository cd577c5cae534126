# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""numpy is there or it is not, and neither is an error."""

from __future__ import annotations

import sys

import pytest

from qsd.crypto.buffers import load_numpy


def test_there() -> None:
    numpy = pytest.importorskip("numpy")
    assert load_numpy() is numpy


def test_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert load_numpy() is None
