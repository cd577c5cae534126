# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The command line: options, in order, to typed settings of a daemon.

The words are read twice, like the original does:

1. **Process options.**  ``--help`` and ``--version`` are answered at once, ``--daemonize`` and
   ``--pidfile`` are noted, and an option that does not exist ends the program before anything
   happens.
2. **Settings.**  After the fork of ``--daemonize``, every option is parsed, checked and applied
   before the next one is looked at.  So a mistake in the third option is reported after the first
   two took effect, and an option can refer only to what stands before it.

Then the pid file is written, the parent of a background daemon is released, and the daemon runs
until it is told to quit.

A complaint quotes the option as it was typed::

    qemu-storage-daemon: --blockdev foo: Parameter 'driver' does not accept value 'foo'
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError, describe
from qsd.process import PidFile, fork_daemon, set_process_name, use_all_descriptors
from qsd.usage import HELP, OPTIONS, PROGRAM, VERSION
from qsd.util.getopt import UsageError, iter_options
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from qsd.daemon import StorageDaemon
    from qsd.process import Daemonized


class ProcessOptions(NamedTuple):
    """What the first pass finds.

    Attributes:
        answer: The text that was asked for instead of a daemon, or None.
        daemonize: Whether to go to the background.
        pidfile: Where to write the process id, or None.
    """

    answer: str | None
    daemonize: bool
    pidfile: str | None


class Reporter:
    """Prints messages on standard error, each with the option it is about.

    Attributes:
        place: What stands between the program's name and the message: a space or a file's name at
            its start, a colon and a space at its end.
    """

    __slots__ = ("place",)

    def __init__(self) -> None:
        self.place = " "

    def at_option(self, words: str) -> None:
        """Blame an option, as the user typed it, for what comes."""
        self.place = f" {words}: "

    def at_nothing(self) -> None:
        """Blame no option."""
        self.place = " "

    def report(self, text: str) -> None:
        """Print one message; `text` may have more lines."""
        _print(2, f"{PROGRAM}:{self.place}{text}\n")

    def error(self, exc: QmpError) -> None:
        """Print an error and the hint that comes with it."""
        self.report(exc.desc if exc.hint is None else f"{exc.desc}\n{exc.hint}")


def _print(fd: int, text: str) -> None:
    """Write text, or nothing if nobody can take it: a daemon outlives its terminal."""
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass


# --------------------------------------------------------------------------------------------------
# First pass


def read_process_options(words: Sequence[str]) -> ProcessOptions:
    """Read the whole command line for what is needed before the first setting.

    Raises:
        UsageError: An option does not exist or is used in a wrong way.
    """
    daemonize = False
    pidfile: str | None = None
    for option in iter_options(OPTIONS, words):
        if option.name == "help":
            return ProcessOptions(HELP, daemonize, pidfile)
        if option.name == "version":
            return ProcessOptions(VERSION, daemonize, pidfile)
        if option.name == "daemonize":
            daemonize = True
        elif option.name == "pidfile":
            pidfile = option.value
    return ProcessOptions(None, daemonize, pidfile)


# --------------------------------------------------------------------------------------------------
# Second pass


def _structure(type_name: str, text: str, implied_key: str | None = None) -> Any:
    """Return the structure of the QMP schema that an option describes, as keyval text or as JSON.

    Raises:
        QmpError: It is malformed or does not fit the type.
    """
    from qsd.qapi.convert import from_json, from_keyval
    from qsd.qapi.keyval import parse_keyval
    from qsd.qapi.schema import find_type

    wanted = find_type(type_name)
    if text.startswith("{"):
        from qsd.qapi.json_text import loads

        return from_json(wanted, loads(text))
    return from_keyval(wanted, parse_keyval(text, implied_key))


async def _blockdev(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    await daemon.add_blockdev(_structure("BlockdevOptions", text, "driver"))


async def _chardev(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    await daemon.add_chardev(text)


async def _export(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    await daemon.add_export(_structure("BlockExportOptions", text, "type"))


async def _monitor(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    await daemon.add_monitor(_structure("MonitorOptions", text, "chardev"))


async def _nbd_server(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    await daemon.start_nbd_server(_structure("NbdServerOptions", text))


async def _object(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    """Make an object; this option is the only structured one with help."""
    if not text.startswith("{"):
        from qsd.qapi.keyval import parse_keyval_help
        from qsd.util.opts import HelpRequest

        tree, wants_help = parse_keyval_help(text, "qom-type")
        if wants_help:
            kind = tree.get("qom-type")
            lines = daemon.object_help(kind if isinstance(kind, str) else None)
            raise HelpRequest("".join(f"{line}\n" for line in lines))
    await daemon.add_object(_structure("ObjectOptions", text, "qom-type"))


async def _trace(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    """Switch trace points; the files of this option are quoted in messages by their own name."""
    from qsd.util.opts import HelpRequest, parse_opts
    from qsd.util.trace import SYNTAX, patterns_in

    opts = parse_opts(SYNTAX, text, lambda warning: reporter.report(f"warning: {warning}"))
    if opts.wants_help:
        raise HelpRequest(SYNTAX.help_text(), 1)
    pattern, events, file = (opts.values.get(key) for key in ("enable", "events", "file"))
    if pattern in ("help", "?"):
        raise HelpRequest("".join(f"{name}\n" for name in daemon.tracer.names))
    if isinstance(pattern, str):
        _switch(daemon, pattern, reporter)
    if isinstance(events, str):
        try:
            patterns = patterns_in(_read(events))
        except OSError as exc:
            reporter.place = f"{events}: "
            raise QmpError(describe(exc)) from exc
        place = reporter.place
        for number, line in patterns:
            reporter.place = f"{events}:{number}: "
            _switch(daemon, line, reporter)
        reporter.place = place
    if isinstance(file, str):
        try:
            daemon.trace_to(file)
        except OSError as exc:
            raise QmpError(f"Error opening logfile {file}: {describe(exc)}") from exc


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _switch(daemon: StorageDaemon, pattern: str, reporter: Reporter) -> None:
    if not daemon.tracer.switch(pattern):
        name = pattern.removeprefix("-")
        reporter.report(f"warning: trace event '{name}' does not exist")


async def _nothing(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    """Take an option of the first pass."""


async def _stray(daemon: StorageDaemon, text: str, reporter: Reporter) -> None:
    raise QmpError("Unexpected argument")


_APPLY: Final[dict[str, Callable[[StorageDaemon, str, Reporter], Awaitable[None]]]] = {
    "": _stray,
    "blockdev": _blockdev,
    "chardev": _chardev,
    "daemonize": _nothing,
    "export": _export,
    "monitor": _monitor,
    "nbd-server": _nbd_server,
    "object": _object,
    "pidfile": _nothing,
    "trace": _trace,
}


async def apply_settings(daemon: StorageDaemon, words: Sequence[str], reporter: Reporter) -> None:
    """Apply all settings of the command line in their order.

    Raises:
        QmpError: A setting was refused; `reporter` knows which.
        HelpRequest: An option asks for its help.
    """
    for option in iter_options(OPTIONS, words):
        reporter.at_option(option.words)
        await _APPLY[option.name](daemon, option.value, reporter)
    reporter.at_nothing()


# --------------------------------------------------------------------------------------------------
# Running


async def serve(
    words: Sequence[str], options: ProcessOptions, duty: Daemonized | None, reporter: Reporter
) -> int:
    """Be the daemon: apply the settings, serve until the end is asked for, end in order.

    Args:
        words: The command line.
        options: What the first pass found in it.
        duty: What a background daemon owes its parent.
        reporter: Takes complaints.

    Returns:
        The exit status.
    """
    import asyncio

    from qsd.daemon import StorageDaemon
    from qsd.util.opts import HelpRequest

    pidfile: PidFile | None = None
    daemon = StorageDaemon(report=reporter.report, in_background=options.daemonize)
    signals = _EndingSignals(daemon)
    try:
        async with daemon:
            async with daemon.starting():
                await apply_settings(daemon, words, reporter)
                if options.pidfile is not None:
                    pidfile = PidFile(options.pidfile)
                if duty is not None:
                    duty.finish()
                _import_rest()
                _settle_memory()
                signals.start_is_over()
            await daemon.wait_shutdown()
    except QmpError as exc:
        reporter.error(exc)
        return 1
    except HelpRequest as wanted:
        _print(1, wanted.text)
        return wanted.status
    except asyncio.CancelledError:
        if not signals.arrived:
            raise
    finally:
        if pidfile is not None:
            pidfile.remove()
    return 0


class _EndingSignals:
    """SIGINT, SIGTERM and SIGHUP end the daemon in order, with exit status 0.

    During the start an option may wait for something that never comes, say a chardev for its first
    client.  A signal then abandons the start.  (The original sits there until somebody kills it.)

    Attributes:
        arrived: Whether there was one.
    """

    def __init__(self, daemon: StorageDaemon) -> None:
        import asyncio
        import signal

        self.arrived = False
        self._daemon = daemon
        self._starting = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._arrive)

    def start_is_over(self) -> None:
        """From now on a signal lets whatever is being done come to its end."""
        self._starting = None

    def _arrive(self) -> None:
        self.arrived = True
        self._daemon.request_shutdown()
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None


def _settle_memory() -> None:
    """Keep the garbage collector away from what lives as long as the process does.

    It was off until now.  Collecting first would find some dozens of objects, and take as long as a
    twentieth of the start (measured).
    """
    import gc

    gc.freeze()
    gc.enable()


#: Modules that a start to the greeting uses.
_NEEDED: Final = (
    "qsd.aio.loop",
    "uvloop",
    "qsd.daemon",
    "qsd.util.opts",
    "qsd.chardev.options",
    "qsd.chardev.descriptor",
    "qsd.chardev.socket",
    "qsd.qapi.keyval",
)

#: Modules that commands use besides.
_NEEDED_LATER: Final = (
    "qsd.block.graph",
    "qsd.catalog",
    "qsd.commands.context",
    "qsd.exports.base",
    "qsd.jobs.job",
)


def _import_daemon() -> None:
    """Import what every start needs in one go, and without what it does not need."""
    from importlib import import_module

    from qsd.aio.lean import LeanImports, is_safe

    if is_safe():
        with LeanImports():
            for name in _NEEDED:
                import_module(name)


def _import_rest() -> None:
    """Import what the first command needs, while its client reads the greeting."""
    from importlib import import_module

    from qsd.aio.lean import LeanImports

    with LeanImports("typing"):
        for name in _NEEDED_LATER:
            import_module(name)


#: Seconds; how long one thread may keep the others from running Python code (measured).
_SWITCH_INTERVAL = 0.0002


def main(words: Sequence[str] | None = None) -> int:
    """Run the daemon.

    Args:
        words: The command line without the program's name; default, that of the process.

    Returns:
        The exit status.
    """
    if words is None:
        words = sys.argv[1:]
        if words[:1] == ["pki"] and os.path.basename(sys.argv[0]) != PROGRAM:
            # Not under the name that promises to be the original.
            from qsd import pki

            return pki.main(words[1:])
    reporter = Reporter()
    try:
        options = read_process_options(words)
    except UsageError as exc:
        reporter.report(str(exc))
        return 1
    if options.answer is not None:
        _print(1, options.answer)
        return 0
    set_process_name(PROGRAM)
    use_all_descriptors()
    try:
        duty = fork_daemon() if options.daemonize else None
    except QmpError as exc:
        reporter.error(exc)
        return 1
    if options.daemonize and duty is None:
        return 0

    import gc
    import signal

    gc.disable()  # nothing that is made during the start is garbage; serve() turns it on again
    # A worker thread that comes back from a device waits for the interpreter at most this long
    # while the loop is busy; with the default of 5 ms, queued O_DIRECT requests were 3 times
    # slower.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    # Until our own handlers are there, Ctrl-C ends the program without a traceback.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _import_daemon()
        from qsd.aio.loop import run

        return run(serve(words, options, duty, reporter))
    finally:
        signal.signal(signal.SIGINT, interrupt)
        gc.enable()
