# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Importing a daemon without what it may never need of the standard library.

Measured: of the time from spawn to greeting, a third went to modules that are imported for the sake
of features which nobody has asked for yet: ``ssl`` (the largest), ``inspect``, ``linecache``,
``logging``, ``subprocess``, ``traceback``, half of ``asyncio``, with all that these import; and
``typing``, which our modules need for words that are never looked at.

Inside the context :class:`LeanImports`, stand-ins are imported in place of those modules.  A
stand-in has the few attributes that importing the others looks at; every other attribute, and every
use of those few, brings in the real module and is answered by it.  Afterwards the places are free
again: whoever imports one of the modules gets the real one, and ``asyncio`` looks up in its real
parts what it lacks.

Two things are lost.  uvloop binds the classes of ``ssl`` for good, so *its* TLS transports do not
work in this process; ours run on ``ssl.MemoryBIO`` and do not notice.  And what was imported inside
keeps the stand-ins of ``typing`` in its bases and aliases: ``Protocol`` is a plain class there.
``typing.get_args`` of a ``Literal`` works.

This is for the daemon's own process, where nothing else was imported before, and for our own
modules.  A program that embeds a daemon imports it as usual.

Every module that is imported before the context does its work must do without ``typing``, so here
annotations of constants are missing where they would need it.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import GeneratorType, GenericAlias, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Self

#: A flag of code objects (Python reference, "Code objects").
_CO_COROUTINE = 0x80

#: Words of ``typing`` that our modules, asyncio and uvloop use while they are imported: in
#: annotations, aliases and as bases.
_WORDS = (
    "Any",
    "ClassVar",
    "Final",
    "Generic",
    "Literal",
    "Optional",
    "ParamSpec",
    "Protocol",
    "Self",
    "TextIO",
    "Tuple",
    "Type",
    "TypeAlias",
    "TypeVar",
)

#: Parts of asyncio that are for its own loops, or not used by most starts.  An attribute that
#: asyncio lacks is looked for in this order.
_LATE_PARTS = (
    "queues",
    "taskgroups",
    "threads",
    "streams",
    "subprocess",
    "base_events",
    "unix_events",
)


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


class _Word:
    """Stands for a word of ``typing``: it may be called, subscribed and derived from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what describes a type variable, or make an instance of a class derived from this."""

    __class_getitem__: Any = classmethod(GenericAlias)


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


def _same(decorated: Any) -> Any:
    """Do what a decorator for type checkers does at run time."""
    return decorated


def _cast(kind: Any, value: Any) -> Any:
    """Do what ``typing.cast`` does."""
    return value


def _known_typing() -> dict[str, Any]:
    """Return what the stand-in for ``typing`` knows."""
    known: dict[str, Any] = {word: type(word, (_Word,), {}) for word in _WORDS}
    return known | {
        "TYPE_CHECKING": False,
        "cast": _cast,
        "dataclass_transform": lambda **kwargs: _same,
        "final": _same,
        "overload": _same,
    }


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
        **{f"asyncio.{part}": {"__all__": ()} for part in _LATE_PARTS},
        # Transports of asyncio's own loop.
        "asyncio.sslproto": {},
        # uvloop keeps the executor for functions that are run in it; we have threads of our own.
        "concurrent.futures.thread": {
            "ThreadPoolExecutor": _Late("concurrent.futures.thread", "ThreadPoolExecutor")
        },
        "inspect": {
            "isgenerator": _is_generator,
            "iscoroutinefunction": _is_coroutine_function,
        },
        "linecache": {},
        "logging": {"DEBUG": 10, "getLogger": _LateLogger, "StreamHandler": object},
        # Patterns of ours are compiled when they are first used.
        "re": {},
        # Needed by sendfile() of the socket module.
        "selectors": {},
        "ssl": ssl,
        "subprocess": {
            "PIPE": -1,
            "STDOUT": -2,
            "DEVNULL": -3,
            "SubprocessError": type("SubprocessError", (Exception,), {}),
        },
        "traceback": {name: _Late("traceback", name) for name in traceback},
        "typing": _known_typing(),
    }


class LeanImports:
    """Context in which stand-ins are imported in place of real modules that are not there yet.

    Args:
        names: Which ones; default, all.
    """

    __slots__ = ("_known", "_made")

    def __init__(self, *names: str) -> None:
        known = _known()
        self._known: Mapping[str, dict[str, Any]] = {name: known[name] for name in names or known}
        self._made: list[_StandIn] = []

    def __enter__(self) -> Self:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.meta_path.remove(self)
        for stand_in in self._made:
            name = stand_in.__name__
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
            package, _, part = name.rpartition(".")
            if package and (space := sys.modules[package].__dict__).get(part) is stand_in:
                del space[part]
        _complete()

    # What the import system asks of finders and loaders

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Offer a stand-in, unless it was there already and has made way for the real module."""
        if name not in self._known or any(made.__name__ == name for made in self._made):
            return None
        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make a stand-in."""
        stand_in = _StandIn(spec.name)
        stand_in.__dict__.update(self._known[spec.name])
        self._made.append(stand_in)
        return stand_in

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to be done."""


def _complete() -> None:
    """Let packages answer for what their parts were to give them."""
    futures = sys.modules.get("concurrent.futures")
    if futures is not None and isinstance(futures.__dict__.get("ThreadPoolExecutor"), _Late):
        del futures.__dict__["ThreadPoolExecutor"]
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and "streams" not in asyncio.__dict__:
        asyncio.__dict__.setdefault("__getattr__", _attribute_of_asyncio)


def _attribute_of_asyncio(name: str) -> Any:
    """Return what asyncio has of its late parts, and those parts themselves."""
    if name in _LATE_PARTS:
        return import_module(f"asyncio.{name}")
    if not name.startswith("__"):
        for part in _LATE_PARTS:
            module = import_module(f"asyncio.{part}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'asyncio' has no attribute {name!r}")


def is_safe() -> bool:
    """Tell whether stand-ins serve this process: nobody debugs it, and uvloop is there.

    The loop of asyncio itself needs most of what they leave out.
    """
    return not (
        "asyncio" in sys.modules
        or sys.flags.dev_mode
        or os.environ.get("PYTHONASYNCIODEBUG")
        or PathFinder.find_spec("uvloop") is None
    )


def import_event_loop() -> None:
    """Import asyncio and uvloop, without their heaviest imports where that is safe.

    Where the loop is there already, debugging is on, or uvloop is missing, it is imported in full.
    """
    if is_safe():
        with LeanImports():
            import_module("qsd.aio.loop")
            import_module("uvloop")
