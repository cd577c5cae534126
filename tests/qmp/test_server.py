# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Monitors and their clients, well-behaved and not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.chardev.registry import ChardevRegistry
from qsd.errors import QmpError
from qsd.qapi.schema.job import JobStatusChange
from qsd.qmp import server
from qsd.qmp.dispatch import Dispatcher
from qsd.qmp.events import EventFanout
from qsd.qmp.server import Monitor
from tests.chardev.support import backend, unix, until

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "test"}


class Client:
    """A QMP client of the simplest kind."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._sock.setblocking(False)
        self._input = b""

    async def send(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def line(self) -> Any:
        """Return the next message, None at the end of the connection."""
        loop = asyncio.get_running_loop()
        while b"\r\n" not in self._input:
            data = await asyncio.wait_for(loop.sock_recv(self._sock, 1 << 20), 5)
            if not data:
                return None
            self._input += data
        line, _, self._input = self._input.partition(b"\r\n")
        return json.loads(line)

    async def ready(self) -> Client:
        """Negotiate."""
        assert "QMP" in await self.line()
        assert await self.ask('{"execute":"qmp_capabilities"}') == {"return": {}}
        return self

    async def ask(self, text: str | bytes) -> Any:
        await self.send(text)
        return await self.line()

    def close(self) -> None:
        self._sock.close()


class Bench:
    """A dispatcher with monitors on sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = EventFanout()
        self.tasks = TaskOwner("bench")
        self.registry = ChardevRegistry()
        self.executed: list[str] = []
        self.going_on = asyncio.Event()
        self.dispatcher = Dispatcher(self._find, lambda what, exc: None)
        self.monitors: list[Monitor] = []

    def _find(self, name: str) -> Callable[[Any], Awaitable[object]] | None:
        async def note(args: Any) -> object:
            self.executed.append(name)
            if name == "query-jobs":
                return []
            if name == "quit":
                self.dispatcher.stopped = True
            if name == "job-cancel":
                await self.going_on.wait()
            return "x" * args.size if name == "ringbuf-read" else None

        return note

    async def monitor(self, name: str = "m", *, pretty: bool = False) -> Path:
        path = self.folder / name
        await self.registry.add(name, backend("socket", addr=unix(path), wait=False))
        device = self.registry.find(name)
        assert device is not None
        self.monitors.append(
            Monitor(device, self.dispatcher, self.events, self.tasks, VERSION, pretty=pretty)
        )
        return path


def with_bench(folder: Path, test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(folder)
        try:
            await test(bench)
        finally:
            for monitor in bench.monitors:
                monitor.close()
            bench.events.close()
            await bench.tasks.close()
            await bench.registry.close()

    run(main())


def test_greeting_requests_replies(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = Client(await bench.monitor())
        assert await client.line() == {"QMP": {"version": VERSION, "capabilities": ["oob"]}}
        await client.send(
            '{"execute":"qmp_capabilities"}{"execute":"query-jobs","id":1}\n'
            "@{'execute':'query-jobs','id':[2]}"
        )
        assert [await client.line() for _ in range(4)] == [
            {"return": {}},
            {"return": [], "id": 1},
            {"error": {"class": "GenericError", "desc": "JSON parse error, stray '@'"}},
            {"return": [], "id": [2]},
        ]
        client.close()

    with_bench(tmp_path, main)


def test_clients_come_and_go(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        path = await bench.monitor()
        for _ in range(3):
            client = await Client(path).ready()
            await client.send('{"execute":')  # half a request is forgotten
            client.close()

    with_bench(tmp_path, main)


def test_requests_of_a_client_that_left_are_executed(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        path = await bench.monitor()
        client = await Client(path).ready()
        await client.send(
            '{"execute":"job-cancel","arguments":{"id":"x"}}' + '{"execute":"query-jobs"}' * 3
        )
        await until(lambda: bench.executed)
        client.close()
        bench.going_on.set()
        (await Client(path).ready()).close()
        assert bench.executed == ["job-cancel", *["query-jobs"] * 3]

    with_bench(tmp_path, main)


def test_reply_is_not_given_to_the_next_client(tmp_path: Path) -> None:
    """A client whose connection breaks during a command must not leave its reply to the next."""

    async def main(bench: Bench) -> None:
        client = await Client(await bench.monitor()).ready()
        await client.send('{"execute":"job-cancel","arguments":{"id":"x"},"id":"old"}')
        await until(lambda: bench.executed)
        monitor = bench.monitors[0]
        monitor.chardev_closed()
        monitor.chardev_opened()
        bench.going_on.set()
        assert "QMP" in await client.line()
        assert await client.ask('{"execute":"qmp_capabilities","id":"new"}') == {
            "return": {},
            "id": "new",
        }
        client.close()

    with_bench(tmp_path, main)


def test_several_monitors_take_turns(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        first = await Client(await bench.monitor("a")).ready()
        second = await Client(await bench.monitor("b")).ready()
        await first.send('{"execute":"job-cancel","arguments":{"id":"x"}}')
        await until(lambda: bench.executed)
        await second.send('{"execute":"query-jobs"}')
        bench.events.emit(JobStatusChange(id="j", status="created"))
        for client in (first, second):
            assert (await client.line())["event"] == "JOB_STATUS_CHANGE"
        assert bench.executed == ["job-cancel"]
        bench.going_on.set()
        assert await first.line() == {"return": {}}
        assert await second.line() == {"return": []}
        first.close()
        second.close()

    with_bench(tmp_path, main)


def test_events_only_after_negotiation(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = Client(await bench.monitor())
        assert "QMP" in await client.line()
        bench.events.emit(JobStatusChange(id="early", status="created"))
        assert await client.ask('{"execute":"qmp_capabilities"}') == {"return": {}}
        bench.events.emit(JobStatusChange(id="late", status="created"))
        assert (await client.line())["data"] == {"id": "late", "status": "created"}
        client.close()
        bench.events.emit(JobStatusChange(id="nobody", status="created"))

    with_bench(tmp_path, main)


def test_client_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests are not read any more, its events are dropped beyond a bound."""
    monkeypatch.setattr(server, "MAX_UNREAD_EVENTS", 400_000)

    async def main(bench: Bench) -> None:
        path = await bench.monitor()
        client = await Client(path).ready()
        device = bench.monitors[0].chardev
        request = '{"execute":"ringbuf-read","arguments":{"device":"x","size":50000}}'
        await client.send(request * 100)
        for _ in range(100):
            await asyncio.sleep(0)
        executed = len(bench.executed)
        assert executed < 50
        assert device.pending <= 50_100
        for number in range(6_000):
            bench.events.emit(JobStatusChange(id=f"j{number}", status="created"))
        assert device.pending <= server.MAX_UNREAD_EVENTS + 1000
        assert bench.monitors[0].lost_events > 0
        replies = 0
        while replies < 100:
            message = await client.line()
            replies += "return" in message
        assert len(bench.executed) == 100
        client.close()

    with_bench(tmp_path, main)


def test_nothing_is_executed_after_quit(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = await Client(await bench.monitor()).ready()
        await client.send('{"execute":"quit","id":1}{"execute":"query-jobs"}')
        while not bench.executed:
            await asyncio.sleep(0)
        # The reply is the last that a client hears: the events of the shutdown come before it.
        bench.events.emit(JobStatusChange(id="j", status="null"))
        await bench.dispatcher.release_replies()
        assert (await client.line())["event"] == "JOB_STATUS_CHANGE"
        assert await client.line() == {"return": {}, "id": 1}
        await client.send('{"execute":"query-jobs"}')
        await bench.registry.close()
        with pytest.raises(ConnectionResetError):  # what it sent last was never read
            await client.line()
        assert bench.executed == ["quit"]
        client.close()

    with_bench(tmp_path, main)


def test_pretty(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = Client(await bench.monitor(pretty=True))
        data = await asyncio.get_running_loop().sock_recv(client._sock, 1000)
        assert data.startswith(b'{\r\n    "QMP": {\r\n        "version": {\r\n')
        client.close()

    with_bench(tmp_path, main)


def test_device_in_use(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.monitor()
        device = bench.monitors[0].chardev
        with pytest.raises(QmpError, match="Device 'm' is in use"):
            Monitor(device, bench.dispatcher, bench.events, bench.tasks, VERSION)
        with pytest.raises(QmpError, match="Chardev 'm' is busy"):
            await bench.registry.remove("m")
        bench.monitors[0].close()
        bench.monitors[0].close()
        await bench.registry.remove("m")

    with_bench(tmp_path, main)


def test_monitor_on_a_ring_buffer_offers_no_oob(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.registry.add("r", backend("ringbuf"))
        device: Any = bench.registry.find("r")
        bench.monitors.append(Monitor(device, bench.dispatcher, bench.events, bench.tasks, VERSION))
        assert json.loads(device.take(1000))["QMP"]["capabilities"] == []

    with_bench(tmp_path, main)


def test_public_client(tmp_path: Path) -> None:
    from qemu.qmp import EventListener, ExecuteError, QMPClient

    async def main(bench: Bench) -> None:
        path = await bench.monitor()
        client = QMPClient("test")
        await client.connect(str(path))
        assert await client.execute("query-jobs") == []
        with pytest.raises(ExecuteError) as caught:
            await client.execute("nope")
        assert caught.value.error_class == "CommandNotFound"
        with client.listener() as listener:
            assert isinstance(listener, EventListener)
            bench.events.emit(JobStatusChange(id="j", status="created"))
            event = await asyncio.wait_for(listener.get(), 5)
            assert event["data"] == {"id": "j", "status": "created"}
        await client.disconnect()

    with_bench(tmp_path, main)


HOSTILE = st.binary(max_size=50) | st.sampled_from(
    [b'{"execute":"query-jobs"}', b'{"execute":"qmp_capabilities"}', b"[" * 2000, b'"', b"}" * 9]
)


@given(st.lists(HOSTILE, max_size=20))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_hostile_bytes_do_not_keep_others_out(tmp_path: Path, chunks: list[bytes]) -> None:
    async def main(bench: Bench) -> None:
        path = await bench.monitor()
        client = Client(path)
        for chunk in chunks:
            await client.send(chunk)
        client.close()
        other = await Client(path).ready()
        assert await other.ask('{"execute":"query-jobs"}') == {"return": []}
        other.close()

    with_bench(tmp_path, main)
