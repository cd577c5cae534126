# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Most tests run a program of their own: in this process the modules were imported long ago."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import lean

HEAVY = (
    "asyncio.base_events",
    "asyncio.queues",
    "asyncio.sslproto",
    "asyncio.streams",
    "asyncio.unix_events",
    "concurrent.futures.thread",
    "inspect",
    # Python 3.13 imports this for the tracebacks of programs that are given with -c.
    *(("linecache",) if sys.version_info < (3, 13) else ()),
    "logging",
    "re",
    "selectors",
    "ssl",
    "subprocess",
    "traceback",
    "typing",
)


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


def test_asyncio_finds_what_it_lacks_when_it_is_asked() -> None:
    out = run(
        """
        from qsd.aio.lean import import_event_loop
        import_event_loop()
        import asyncio, concurrent.futures
        print(hasattr(asyncio, "nothing_of_this_name"))
        print(asyncio.Queue.__module__, asyncio.subprocess.PIPE, asyncio.TaskGroup.__name__)
        print(type(asyncio.get_event_loop_policy()).__name__)
        print(concurrent.futures.ThreadPoolExecutor.__mro__[1].__name__)
        print(asyncio.BaseEventLoop is asyncio.base_events.BaseEventLoop)
        """,
        "-Wignore",
    )
    assert out.splitlines() == [
        "False",
        "asyncio.queues -1 TaskGroup",
        "_UnixDefaultEventLoopPolicy",
        "Executor",
        "True",
    ]


def test_words_of_typing_serve_annotations_aliases_and_bases() -> None:
    out = run(
        """
        import sys
        from qsd.aio.lean import LeanImports
        with LeanImports("typing"):
            from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar, cast, overload
            T = TypeVar("T", bound=int)
            class P(Protocol[T]):
                x: Final[Any] = 1
                @overload
                def y(self): ...
            Word = Literal["a", "b"]
            print(TYPE_CHECKING, P.x, cast("list[Any]", 2), Word.__args__)
        print("typing" in sys.modules)
        from typing import get_args
        print(get_args(Word))
        """
    )
    assert out.splitlines() == ["False 1 2 ('a', 'b')", "False", "('a', 'b')"]


def test_the_real_typing_answers_for_words_that_are_not_known() -> None:
    out = run(
        """
        from qsd.aio.lean import LeanImports
        with LeanImports("typing"):
            from typing import get_type_hints
            import typing
        print(get_type_hints is typing.get_type_hints, hasattr(typing, "__file__"))
        """
    )
    assert out == "True True\n"


def test_a_start_up_to_the_greeting_needs_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(60)
        program = f"""
            import sys
            from qsd.__main__ import main
            sys.argv = ["qsd", "--chardev", "socket,id=m,path={path}", "--monitor", "m"]
            print(main(), [name for name in {HEAVY} if name in sys.modules])
            """
        with ThreadPoolExecutor() as threads:
            future = threads.submit(run, program)
            client, _ = listener.accept()
            with client:
                assert b'"QMP"' in client.recv(4096)
                # SO_PEERCRED: struct ucred begins with the process id.
                peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                os.kill(int.from_bytes(peer[:4], sys.byteorder), signal.SIGTERM)
                assert future.result() == "0 []\n"


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


@pytest.mark.parametrize("name", lean._known())
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
