# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What every test relies on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


#: Set by continuous integration: a test skipped there would hide that nothing was checked.
REQUIRE_TOOLS = "QSD_REQUIRE_TOOLS"
#: How the reason of a skip begins that no installation of tools would cure.
OF_THE_KERNEL = "this kernel "


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips into failures where the environment promises that every tool is there.

    Tests that need privileges keep their skips: a container may not be able to grant them.  So do
    those that the kernel has no means for.
    """
    report = yield
    if report.skipped and os.environ.get(REQUIRE_TOOLS) and not hasattr(report, "wasxfail"):
        reason = str(getattr(call.excinfo and call.excinfo.value, "msg", ""))
        if item.get_closest_marker("root") is None and not reason.startswith(OF_THE_KERNEL):
            report.outcome = "failed"
            report.longrepr = f"skipped, although {REQUIRE_TOOLS} is set: {call.excinfo}"
    return report


@pytest.fixture(autouse=True, scope="session")
def _first_loop() -> None:
    """Let uvloop open what it keeps for the life of the process (a pipe for signals)."""
    from qsd.aio.loop import new_event_loop

    new_event_loop().close()


@pytest.fixture(autouse=True)
def _no_leaked_descriptors() -> Iterator[None]:
    """Fail a test that leaves file descriptors behind."""
    before = _open_descriptors()
    yield
    leaked = _open_descriptors() - before
    if leaked:
        import gc

        gc.collect()
        leaked = _open_descriptors() - before
    assert not leaked, f"descriptors left open: {sorted(leaked)}"


def _open_descriptors() -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the descriptor of the listing itself
    return found
