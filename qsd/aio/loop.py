# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The event loop: uvloop where it is installed, plain asyncio otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop; nothing but this module knows which kind."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in a new loop, then cancel what is left over and close the loop."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
