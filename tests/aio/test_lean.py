# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Most tests run a program of their own: in this process the modules were imported long ago."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from qsd.aio import lean

HEAVY = ("ssl", "inspect", "linecache", "logging", "subprocess", "traceback")


def run(program: str, *options: str) -> str:
    """Run a program after the lean import and return what it prints."""
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_heavy_modules_stay_out() -> None:
    out = run(
        f"""
        import sys
        from qsd.aio.lean import import_event_loop
        import_event_loop()
        print("asyncio" in sys.modules, "uvloop" in sys.modules)
        print([name for name in {HEAVY} if name in sys.modules])
        """
    )
    assert out == "True True\n[]\n"


def test_who_imports_them_gets_the_real_ones() -> None:
    out = run(
        """
        from qsd.aio.lean import import_event_loop
        import_event_loop()
        import inspect, logging, ssl, subprocess, traceback
        print(ssl.create_default_context().verify_mode.name)
        print(inspect.signature(lambda x: x))
        print(subprocess.run(["echo", "hello"], stdout=subprocess.PIPE).stdout)
        print(logging.getLogger("asyncio").name, traceback.format_exception_only(ValueError("x")))
        """
    )
    assert out.splitlines() == [
        "CERT_REQUIRED",
        "(x)",
        "b'hello\\n'",
        "asyncio ['ValueError: x\\n']",
    ]


def test_the_loop_uses_the_real_ones_when_it_needs_them() -> None:
    out = run(
        """
        from qsd.aio.lean import import_event_loop
        import_event_loop()
        import asyncio, os, signal
        from qsd.aio.loop import run

        async def main():
            loop = asyncio.get_running_loop()
            arrived = asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, arrived.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await arrived.wait()
            # Reported by the loop through logging and traceback.
            loop.call_soon(lambda: 1 / 0)
            child = await asyncio.create_subprocess_exec(
                "echo", "from a child", stdout=asyncio.subprocess.PIPE
            )
            print((await child.communicate())[0])
            print(await loop.run_in_executor(None, int, "7"))
            print(repr(asyncio.current_task())[:5])

        run(main())
        """
    )
    assert "b'from a child\\n'\n7\n<Task" in out
    assert "ZeroDivisionError: division by zero" in out


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ("import asyncio", ()),
        ("pass", ("-X", "dev")),
        ("import os; os.environ['PYTHONASYNCIODEBUG'] = '1'", ()),
    ],
)
def test_it_keeps_out_of_the_way(before: str, options: tuple[str, ...]) -> None:
    out = run(
        f"""
        {before}
        from qsd.aio.lean import import_event_loop
        import_event_loop()
        import asyncio, asyncio.sslproto
        print(type(asyncio.sslproto.ssl).__name__)
        """,
        *options,
    )
    assert out == "module\n"


@pytest.mark.parametrize("name", HEAVY)
def test_constants_are_those_of_the_standard_library(name: str) -> None:
    module = importlib.import_module(name)
    known: dict[str, Any] = lean._known()[name]
    for attribute, value in known.items():
        real = getattr(module, attribute)
        if isinstance(value, int):
            assert value == int(real)
        elif inspect.isclass(value) and inspect.isclass(real) and issubclass(real, Exception):
            assert issubclass(value, Exception)


def _plain() -> None: ...


async def _async() -> None: ...


class _Class:
    async def method(self) -> None: ...

    def plain(self) -> None: ...


@pytest.mark.parametrize(
    "candidate",
    [
        _plain,
        _async,
        _Class().method,
        _Class().plain,
        _Class.method,
        _Class,
        functools.partial(_async),
        functools.partial(functools.partial(_plain)),
        print,
        3,
        None,
    ],
)
def test_questions_are_answered_alike(candidate: object) -> None:
    assert lean._is_coroutine_function(candidate) == inspect.iscoroutinefunction(candidate)
    assert lean._is_generator(candidate) == inspect.isgenerator(candidate)


def test_generators() -> None:
    assert lean._is_generator(number for number in range(3))
