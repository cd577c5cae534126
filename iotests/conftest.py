# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``--daemon real`` runs the black-box tests against the C daemon instead of ours."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--daemon", default="ours", help='daemon under test: "ours", "real", or a command line'
    )
    parser.addoption(
        "--regenerate", action="store_true", help="write the transcripts of stories anew"
    )
    parser.addoption(
        "--kill-rounds",
        type=int,
        default=15,
        help="rounds of the kill test, shared out among its variants (acceptance: 100)",
    )
    parser.addoption(
        "--soak-rounds",
        type=int,
        default=2000,
        help="how often the soak tests do what must leave nothing behind (acceptance: 10000)",
    )


@pytest.fixture
def daemon_kind(request: pytest.FixtureRequest) -> str:
    kind = request.config.getoption("--daemon")
    assert isinstance(kind, str)
    return kind


@pytest.fixture
def kill_rounds(request: pytest.FixtureRequest) -> int:
    rounds = request.config.getoption("--kill-rounds")
    assert isinstance(rounds, int)
    return rounds


@pytest.fixture
def soak_rounds(request: pytest.FixtureRequest) -> int:
    rounds = request.config.getoption("--soak-rounds")
    assert isinstance(rounds, int)
    return rounds


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    wanted = request.config.getoption("--regenerate")
    assert isinstance(wanted, bool)
    return wanted
