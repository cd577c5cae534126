# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Certificates for tests, made when they are asked for."""

from __future__ import annotations

from pathlib import Path

from qsd.pki import make


def make_directories(place: Path) -> tuple[str, str]:
    """Return directories for a server at localhost and a client called alice."""
    make(str(place), ["localhost"], ["alice"], 2)
    return str(place / "server"), str(place / "client-alice")
