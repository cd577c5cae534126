# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Importing the event loop without what a daemon may never need of it.

Measured: of the time from spawn to greeting, a fifth went to six modules that asyncio and uvloop
import for the sake of features which nobody has asked for yet: ``ssl`` (the largest), ``inspect``,
``linecache``, ``logging``, ``subprocess`` and ``traceback``, with all that these import.

While :func:`import_event_loop` imports the loop, stand-ins take the places of those modules in
``sys.modules``.  A stand-in has the few attributes that are looked at by the import; every other
attribute, and every use of those few, brings in the real module and is answered by it.  Afterwards
the places are free again: whoever imports one of the modules gets the real one.

One thing is lost: uvloop binds the classes of ``ssl`` for good, so *its* TLS transports do not work
in this process.  Ours run on ``ssl.MemoryBIO`` and do not notice.

This is for the daemon's own process, where nothing else was imported before.  A program that embeds
a daemon imports the loop as usual.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import GeneratorType, ModuleType
from typing import Any, Final

#: A flag of code objects (Python reference, "Code objects").
_CO_COROUTINE: Final = 0x80


class _Late:
    """Stands for a function or class of a module; any use of it imports the module."""

    __slots__ = ("_attribute", "_module")

    def __init__(self, module: str, attribute: str) -> None:
        self._module = module
        self._attribute = attribute

    def _real(self) -> Any:
        return getattr(import_module(self._module), self._attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)


class _LateLogger:
    """Stands for a logger, which is made when it has something to say."""

    def __init__(self, name: str) -> None:
        self._name = name

    def addHandler(self, handler: object) -> None:  # noqa: N802 - the name of logging's method
        """Drop a handler for messages that no handler takes; logging has one of its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("logging").getLogger(self._name), name)


class _StandIn(ModuleType):
    """Stands for a module; what it does not know it asks the real one for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        value = getattr(import_module(self.__name__), name)
        self.__dict__[name] = value
        return value


def _is_generator(candidate: object) -> bool:
    """Do what ``inspect.isgenerator`` does."""
    return isinstance(candidate, GeneratorType)


def _is_coroutine_function(candidate: Any) -> bool:
    """Do what ``inspect.iscoroutinefunction`` does; setting up a signal handler asks for it."""
    while inner := getattr(candidate, "func", None) or getattr(candidate, "__func__", None):
        candidate = inner
    code = getattr(candidate, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def _known() -> dict[str, dict[str, Any]]:
    """Return what each stand-in knows; constants have the values of the standard library."""
    errors = (
        "SSLError",
        "SSLWantReadError",
        "SSLSyscallError",
        "SSLZeroReturnError",
        "CertificateError",
    )
    ssl: dict[str, Any] = {name: type(name, (OSError,), {}) for name in errors}
    ssl |= {name: type(name, (), {}) for name in ("SSLContext", "MemoryBIO")}
    ssl["create_default_context"] = _Late("ssl", "create_default_context")
    ssl |= {"SSL_ERROR_WANT_READ": 2, "SSL_ERROR_WANT_WRITE": 3, "SSL_ERROR_SYSCALL": 5}
    traceback = ("extract_stack", "format_list", "walk_stack", "StackSummary")
    return {
        "ssl": ssl,
        "inspect": {
            "isgenerator": _is_generator,
            "iscoroutinefunction": _is_coroutine_function,
        },
        "linecache": {},
        # Transports of asyncio's own loop, and a way to connect that uvloop has not.
        "asyncio.sslproto": {},
        "asyncio.staggered": {},
        "logging": {"DEBUG": 10, "getLogger": _LateLogger, "StreamHandler": object},
        "subprocess": {
            "PIPE": -1,
            "STDOUT": -2,
            "DEVNULL": -3,
            "SubprocessError": type("SubprocessError", (Exception,), {}),
        },
        "traceback": {name: _Late("traceback", name) for name in traceback},
    }


def import_event_loop() -> None:
    """Import asyncio and uvloop, without their heaviest imports where that is safe.

    Where the loop is there already, debugging is on, or uvloop is missing, it is imported in full.
    """
    if "asyncio" in sys.modules or sys.flags.dev_mode or os.environ.get("PYTHONASYNCIODEBUG"):
        return
    from importlib.util import find_spec

    if find_spec("uvloop") is None:
        return
    stand_ins: list[_StandIn] = []
    for name, known in _known().items():
        if name not in sys.modules:
            stand_in = _StandIn(name)
            stand_in.__dict__.update(known)
            sys.modules[name] = stand_in
            stand_ins.append(stand_in)
    try:
        import_module("qsd.aio.loop")
        import_module("uvloop")
    finally:
        for stand_in in stand_ins:
            if sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]
