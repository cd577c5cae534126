# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One storage daemon: everything it owns, how it is built, how it ends.

Embedded use, in a test for instance::

    async with StorageDaemon() as daemon:
        await daemon.qmp("blockdev-add", {"driver": "null-co", "node-name": "disk"})
        await daemon.add_export(BlockExportOptions(type="nbd", id="e", node_name="disk", ...))

Any number of daemons live in one process, even on one loop: nothing is shared but immutable tables.

**Start.**  Monitors greet their clients at once, but no command is executed inside
:meth:`StorageDaemon.starting`, as in the original: commands see all settings or none.

**End.**  :meth:`StorageDaemon.close` stops commands first.  Then it goes from the outside in, so
that whoever is closed still finds what it uses: exports (no more clients), jobs (cancelled), nodes
(flushed and closed, users before what they use), monitors, character devices, objects, threads.
Events of these steps still reach the monitors' clients, and the reply to ``quit`` follows them, as
in the original.  Afterwards no descriptor, task, thread, file lock or socket file of the daemon is
left.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

from qsd.aio.tasks import TaskOwner
from qsd.aio.workers import WorkerPool
from qsd.chardev.registry import ChardevRegistry
from qsd.commands import HANDLERS
from qsd.commands.control import version_info
from qsd.errors import QmpError, describe
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import to_json
from qsd.qmp.dispatch import Dispatcher
from qsd.qmp.events import EventFanout
from qsd.qmp.server import Monitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from qsd.commands.context import Context
    from qsd.qapi.schema.block_export import BlockExportOptions, NbdServerOptions
    from qsd.qapi.schema.block_options import BlockdevOptions
    from qsd.qapi.schema.control import MonitorOptions
    from qsd.qapi.schema.qom import ObjectOptions
    from qsd.util.trace import Tracer

#: Seconds that the end of the daemon waits for a command that is being executed.
MAX_COMMAND_WAIT: Final = 5
#: Seconds; how long a command waits for jobs that are about to end.
_JOB_END: Final = 1.0


class StorageDaemon:
    """Owns the graph, objects, character devices, jobs, exports and monitors.

    Make it inside a running loop, and use it on that loop only.

    Args:
        report: Prints a message for whoever runs the daemon; the default drops messages.
        in_background: Whether the process goes to the background, where it has no terminal.
    """

    def __init__(
        self, *, report: Callable[[str], None] | None = None, in_background: bool = False
    ) -> None:
        self._report = report or _drop
        self._workers = WorkerPool()
        self._tasks = TaskOwner("daemon", self._task_failed)
        self._events = EventFanout()
        self._objects = ObjectTree(events=self._events, workers=self._workers)
        self._chardevs = ChardevRegistry(
            self._objects, report=self._report, in_background=in_background
        )
        self._dispatcher = Dispatcher(self._find_handler, self._internal_error)
        self._monitors: list[Monitor] = []
        self._tracer: Tracer | None = None
        self._trace_file: TextIO | None = None
        self._ending = asyncio.Event()
        self._closed = False

    @cached_property
    def context(self) -> Context:
        """What the commands use; its members are the registries.

        It is made when it is first asked for: a client is greeted without it, a tenth of the start
        sooner (measured).
        """
        from qsd.block.graph import Graph
        from qsd.catalog import find_creator, find_driver, find_export
        from qsd.commands.context import Context
        from qsd.exports.base import ExportRegistry
        from qsd.jobs.job import JobRegistry

        graph = Graph(self._workers, self._tasks, self._events, self._objects, find_driver)
        return Context(
            graph=graph,
            jobs=JobRegistry(self._events, self._tasks),
            exports=ExportRegistry(
                graph,
                self._objects,
                self._events,
                self._tasks,
                find_export,
                report=self._report,
            ),
            objects=self._objects,
            chardevs=self._chardevs,
            events=self._events,
            workers=self._workers,
            tasks=self._tasks,
            find_creator=find_creator,
            shutdown=self.request_shutdown,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Settings; each raises QmpError and changes nothing where it is refused

    async def add_blockdev(self, options: BlockdevOptions) -> None:
        """Open a node, as ``blockdev-add`` and ``--blockdev`` do."""
        await self._configure("blockdev-add", options)

    async def add_object(self, options: ObjectOptions) -> None:
        """Make an object, as ``object-add`` and ``--object`` do."""
        await self._handler("object-add")(options)

    async def add_chardev(self, text: str) -> None:
        """Make a character device, as ``--chardev`` does with this text.

        Raises:
            HelpRequest: The text asks for help.
        """
        from qsd.chardev.options import parse_chardev
        from qsd.util.opts import HelpRequest

        option = parse_chardev(text, lambda warning: self._report(f"warning: {warning}"))
        if option.backend is None:
            raise HelpRequest(option.help_text or "", option.help_status)
        await self._chardevs.add_from_command_line(option.id, option.backend, mux=option.mux)

    async def add_export(self, options: BlockExportOptions) -> None:
        """Export a node, as ``block-export-add`` and ``--export`` do."""
        await self._configure("block-export-add", options)

    async def start_nbd_server(self, options: NbdServerOptions) -> None:
        """Listen for NBD clients, as ``--nbd-server`` does."""
        from qsd.exports.nbd_server import start_nbd_server

        await start_nbd_server(
            self.context.exports,
            options.addr,
            tls_creds=options.tls_creds,
            tls_authz=options.tls_authz,
            max_connections=options.max_connections,
        )

    async def add_monitor(self, options: MonitorOptions) -> None:
        """Serve QMP on a character device, as ``--monitor`` does."""
        chardev = self._chardevs.for_monitor(options.chardev)
        if options.mode == "readline":
            raise QmpError("Only QMP is supported")
        self._monitors.append(
            Monitor(
                chardev,
                self._dispatcher,
                self._events,
                self._tasks,
                to_json(version_info()),
                pretty=bool(options.pretty),
            )
        )

    @staticmethod
    def object_help(kind: str | None) -> list[str]:
        """Return the lines that ``--object help`` and ``--object TYPE,help`` print."""
        from qsd.objects.help import object_help

        return object_help(kind)

    @property
    def tracer(self) -> Tracer:
        """The trace points; made when they are first looked at."""
        if self._tracer is None:
            from qsd.qapi.schema import command_names
            from qsd.util.trace import Tracer, command_points

            names = [name for command in command_names() for name in command_points(command)]
            self._tracer = Tracer(names, _print_trace)
        return self._tracer

    def trace_to(self, path: str) -> None:
        """Append the lines of trace points to a file.

        Raises:
            OSError: It cannot be opened.
        """
        file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by close()
        if self._trace_file is not None:
            self._trace_file.close()
        self._trace_file = file
        self.tracer.write = lambda line: print(line, file=file)

    # QMP without a monitor

    async def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and return what its reply would hold under ``return``.

        Args:
            command: The command's name.
            arguments: Its arguments as JSON values.

        Raises:
            QmpError: With class and description of the error reply.
        """
        return await self._dispatcher.call(command, dict(arguments or {}))

    def _find_handler(self, command: str) -> Callable[[Any], Awaitable[object]] | None:
        place = HANDLERS.get(command)
        if place is None:
            return None
        module, _, function = place.partition(":")
        handler = partial(getattr(import_module(f"qsd.commands.{module}"), function), self.context)
        if self._tracer is not None and self._tracer.enabled:
            handler = partial(self._run_traced, self._tracer, command, handler)
        if self.context.jobs.is_any_ending:
            return partial(self._run_after_jobs, handler)
        return handler

    async def _run_after_jobs(
        self, handler: Callable[[Any], Awaitable[object]], arguments: Any
    ) -> object:
        """Run a command when jobs that are about to end have ended.

        In the C daemon the last steps of a job cannot be interrupted, so that whoever learned of
        the first of them may count on the others.  But a job whose end hangs does not hold up
        everything.
        """
        await self.context.jobs.wait_endings(_JOB_END)
        return await handler(arguments)

    @staticmethod
    async def _run_traced(
        tracer: Tracer, command: str, handler: Callable[[Any], Awaitable[object]], arguments: Any
    ) -> object:
        """Run a command between its two trace points."""
        from qsd.qapi.json_text import dumps
        from qsd.util.trace import command_points

        enter, leave = command_points(command)
        tracer.emit(enter, dumps(to_json(arguments)))
        try:
            result = await handler(arguments)
        except (QmpError, OSError) as exc:
            tracer.emit(leave, f"{describe(exc)} 0")
            raise
        tracer.emit(leave, f"{dumps({} if result is None else to_json(result))} 1")
        return result

    async def _configure(self, command: str, options: Any) -> None:
        """Run a command for whoever started this process, who may name its descriptors."""
        graph = self.context.graph
        graph.by_monitor = False
        try:
            await self._handler(command)(options)
        finally:
            graph.by_monitor = True

    def _handler(self, command: str) -> Callable[[Any], Awaitable[object]]:
        handler = self._find_handler(command)
        if handler is None:
            raise QmpError(f"The command '{command}' is not available in this release")
        return handler

    # Life cycle

    def starting(self) -> asyncio.Lock:
        """Return a context in which settings are applied while commands of clients wait."""
        return self._dispatcher.turn

    def request_shutdown(self) -> None:
        """Ask the daemon to end.  Returns at once; idempotent."""
        self._dispatcher.stopped = True
        self._ending.set()

    async def wait_shutdown(self) -> None:
        """Wait until somebody asks the daemon to end."""
        await self._ending.wait()

    async def close(self) -> None:
        """End everything in order.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.request_shutdown()
        await self._finish_command()
        # Nodes may need exports: those that show the very files which the nodes opened.
        graph, exports = self.context.graph, self.context.exports
        in_circle = any(node.driver.is_served() for node in graph.nodes.values())
        await exports.close(keep_files=in_circle)
        await self.context.jobs.close()
        for node in reversed(list(graph.nodes.values())):
            if node.monitor_owned:
                await graph.release(node)
        await exports.close_files()
        await self._dispatcher.release_replies()
        for monitor in self._monitors:
            monitor.close()
        self._events.close()
        await self._chardevs.close()
        await self._objects.close()
        await self._tasks.close()
        await self._workers.close()
        if self._trace_file is not None:
            self._trace_file.close()

    async def _finish_command(self) -> None:
        """Wait for the command that is being executed, but not for ever."""
        try:
            async with asyncio.timeout(MAX_COMMAND_WAIT), self._dispatcher.turn:
                pass
        except TimeoutError:
            pass  # it is cancelled with all other tasks

    def _task_failed(self, name: str, exc: BaseException) -> None:
        self._internal_error(f"task '{name}'", exc)

    def _internal_error(self, what: str, exc: BaseException) -> None:
        """Report a defect of ours with all there is to know about it."""
        import traceback

        text = "".join(traceback.format_exception(exc)).rstrip()
        self._report(f"internal error in {what}:\n{text}")


def _drop(text: str) -> None:
    """Report to nobody."""


def _print_trace(line: str) -> None:
    """Write the line of a trace point on standard error."""
    print(line, file=sys.stderr)  # noqa: T201 - this is what the user asked for
