# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A daemon embedded in this process: what it owns, and that nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from qsd.aio.loop import run
from qsd.daemon import StorageDaemon
from qsd.errors import COMMAND_NOT_FOUND, QmpError
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_export import BlockExportOptions, NbdServerOptions
from qsd.qapi.schema.block_options import BlockdevOptions
from qsd.qapi.schema.control import MonitorOptions
from qsd.qapi.schema.qom import ObjectOptions

if TYPE_CHECKING:
    from pathlib import Path


def blockdev(**options: Any) -> BlockdevOptions:
    return from_json(
        BlockdevOptions, {name.replace("_", "-"): value for name, value in options.items()}
    )


def server(path: Path) -> NbdServerOptions:
    return from_json(NbdServerOptions, {"addr": {"type": "unix", "path": str(path)}})


def export(name: str, node: str) -> BlockExportOptions:
    return from_json(BlockExportOptions, {"type": "nbd", "id": name, "node-name": node})


def open_descriptors() -> set[str]:
    """Return what is open, without the descriptor that uvloop keeps in reserve."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one of the listing itself
        if target != "/dev/null":
            found.add(f"{name} {target}")
    return found


class Client:
    """A QMP client on the same loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.events: list[str] = []

    @classmethod
    async def connect(cls, path: Path) -> Client:
        client = cls(*await asyncio.open_unix_connection(str(path)))
        assert "QMP" in await client.next()
        return client

    async def next(self) -> Any:
        return json.loads(await self._reader.readline())

    async def command(self, name: str, **arguments: Any) -> Any:
        self.send(name, **arguments)
        while True:
            message = await self.next()
            if "event" not in message:
                return message
            self.events.append(message["event"])

    def send(self, name: str, **arguments: Any) -> None:
        self._writer.write(json.dumps({"execute": name, "arguments": arguments}).encode())

    async def rest(self) -> list[Any]:
        """Return all messages up to the end of the connection."""
        messages = [json.loads(line) async for line in self._reader]
        self.close()
        return messages

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        await self._writer.wait_closed()


class TestSettings:
    def test_only_who_started_us_may_name_descriptors(self) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                node: dict[str, Any] = {
                    "driver": "nbd",
                    "node-name": "n",
                    "server": {"type": "fd", "str": "x"},
                }
                with pytest.raises(QmpError, match=r"^Unable to parse FD number x$"):
                    await daemon.add_blockdev(from_json(BlockdevOptions, node))
                with pytest.raises(QmpError, match="only QEMU supports file descriptor passing"):
                    await daemon.qmp("blockdev-add", node)

        run(scenario())

    def test_typed_calls(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                await daemon.add_object(
                    from_json(ObjectOptions, {"qom-type": "secret", "id": "s", "data": "x"})
                )
                await daemon.add_blockdev(blockdev(driver="null-co", node_name="disk", size=4096))
                await daemon.start_nbd_server(server(tmp_path / "nbd.sock"))
                await daemon.add_export(export("e", "disk"))
                (shown,) = await daemon.qmp("query-block-exports")
                assert shown["node-name"] == "disk"

        run(scenario())
        assert list(tmp_path.iterdir()) == []

    def test_a_refused_setting_changes_nothing(self) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                with pytest.raises(QmpError, match="Cannot find device"):
                    await daemon.add_blockdev(blockdev(driver="raw", node_name="r", file="none"))
                assert await daemon.qmp("query-named-block-nodes") == []

        run(scenario())

    def test_a_monitor_needs_its_chardev(self) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                with pytest.raises(QmpError) as caught:
                    await daemon.add_monitor(MonitorOptions(chardev="none"))
                assert caught.value.desc == 'chardev "none" not found'

        run(scenario())


class TestQmp:
    def test_results_are_json(self) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                arguments = {"driver": "null-co", "node-name": "a"}
                assert await daemon.qmp("blockdev-add", arguments) == {}
                (node,) = await daemon.qmp("query-named-block-nodes", {"flat": True})
                assert node["node-name"] == "a"
                json.dumps(node)

        run(scenario())

    @pytest.mark.parametrize(
        ("command", "arguments", "error_class", "desc"),
        [
            ("nope", {}, COMMAND_NOT_FOUND, "The command nope has not been found"),
            ("blockdev-del", {}, "GenericError", "Parameter 'node-name' is missing"),
            (
                "blockdev-del",
                {"node-name": "x"},
                "GenericError",
                "Failed to find node with node-name='x'",
            ),
        ],
    )
    def test_errors(
        self, command: str, arguments: dict[str, Any], error_class: str, desc: str
    ) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                with pytest.raises(QmpError) as caught:
                    await daemon.qmp(command, arguments)
                assert (caught.value.error_class, caught.value.desc) == (error_class, desc)

        run(scenario())

    def test_commands_of_clients_wait_for_the_start(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                async with daemon.starting():
                    path = tmp_path / "q.sock"
                    await daemon.add_chardev(f"socket,id=q,path={path},server=on,wait=off")
                    await daemon.add_monitor(MonitorOptions(chardev="q"))
                    client = await Client.connect(path)
                    client.send("qmp_capabilities")
                    client.send("query-named-block-nodes", flat=True)
                    await asyncio.sleep(0)
                    await daemon.add_blockdev(blockdev(driver="null-co", node_name="a"))
                assert await client.next() == {"return": {}}
                nodes = await client.next()
                assert [node["node-name"] for node in nodes["return"]] == ["a"]
                client.close()

        run(scenario())


class TestTwoDaemons:
    def test_they_do_not_notice_each_other(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as one, StorageDaemon() as other:
                for number, daemon in enumerate((one, other)):
                    await daemon.qmp("blockdev-add", {"driver": "null-co", "node-name": "a"})
                    await daemon.qmp(
                        "object-add", {"qom-type": "secret", "id": "a", "data": str(number)}
                    )
                    await daemon.start_nbd_server(server(tmp_path / f"nbd{number}.sock"))
                    await daemon.add_export(export("e", "a"))
                await one.qmp("block-export-del", {"id": "e"})
                await one.qmp("blockdev-del", {"node-name": "a"})
                await one.close()
                assert [x["id"] for x in await other.qmp("query-block-exports")] == ["e"]
                assert len(await other.qmp("query-named-block-nodes")) == 1
                assert not (tmp_path / "nbd0.sock").exists()
                assert (tmp_path / "nbd1.sock").exists()

        run(scenario())


class TestEnd:
    def test_it_can_be_asked_for(self) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                asyncio.get_running_loop().call_soon(daemon.request_shutdown)
                await daemon.wait_shutdown()

        run(scenario())

    def test_closing_twice_is_closing_once(self) -> None:
        async def scenario() -> None:
            daemon = StorageDaemon()
            await daemon.close()
            await daemon.close()

        run(scenario())

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(bytes(1 << 20))

        async def scenario() -> None:
            threads = threading.active_count()
            descriptors = open_descriptors()
            async with StorageDaemon() as daemon:
                node = {"driver": "file", "node-name": "f", "filename": str(tmp_path / "disk")}
                await daemon.qmp("blockdev-add", node)
                await daemon.qmp("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f"})
                await daemon.start_nbd_server(server(tmp_path / "nbd.sock"))
                await daemon.add_export(export("e", "r"))
                path = tmp_path / "q.sock"
                await daemon.add_chardev(f"socket,id=q,path={path},server=on,wait=off")
                await daemon.add_monitor(MonitorOptions(chardev="q"))
                client = await Client.connect(path)
                # A client of the export that never says a word.
                with socket.socket(socket.AF_UNIX) as silent:
                    silent.connect(str(tmp_path / "nbd.sock"))
                    await client.command("qmp_capabilities")
                    await daemon.close()
                client.close()
                await client.closed()
            assert threading.active_count() == threads
            assert {task for task in asyncio.all_tasks() if not task.done()} == {
                asyncio.current_task()
            }
            assert open_descriptors() == descriptors

        run(scenario())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]

    def test_file_locks_are_released(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(bytes(4096))

        async def scenario() -> None:
            node = {"driver": "file", "node-name": "f", "filename": str(tmp_path / "disk")}
            for _ in range(2):
                async with StorageDaemon() as daemon:
                    await daemon.qmp("blockdev-add", node)
                    await daemon.start_nbd_server(server(tmp_path / "nbd.sock"))
                    options = {"type": "nbd", "id": "e", "node-name": "f", "writable": True}
                    await daemon.qmp("block-export-add", options)

        run(scenario())

    def test_clients_hear_of_the_end(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with StorageDaemon() as daemon:
                path = tmp_path / "q.sock"
                await daemon.add_chardev(f"socket,id=q,path={path},server=on,wait=off")
                await daemon.add_monitor(MonitorOptions(chardev="q"))
                await daemon.add_blockdev(blockdev(driver="null-co", node_name="a"))
                await daemon.start_nbd_server(server(tmp_path / "nbd.sock"))
                await daemon.add_export(export("e", "a"))
                client = await Client.connect(path)
                await client.command("qmp_capabilities")
                client.send("quit")
                client.send("query-version")
                await daemon.wait_shutdown()
                await daemon.close()
                # In this order, and nothing is executed after "quit".
                event, reply = await client.rest()
                assert reply == {"return": {}}
                assert (event["event"], event["data"]) == ("BLOCK_EXPORT_DELETED", {"id": "e"})

        run(scenario())


class TestDefects:
    def test_they_are_reported_and_survived(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bug in a command costs its client an error, not the daemon its life."""
        reports: list[str] = []

        def broken(*args: object) -> None:
            raise ZeroDivisionError("nobody expected this")

        monkeypatch.setattr("qsd.commands.control.version_info", broken)

        async def scenario() -> None:
            async with StorageDaemon(report=reports.append) as daemon:
                ours, theirs = socket.socketpair()
                with ours:
                    await daemon.add_chardev(f"socket,id=q,fd={theirs.detach()}")
                    monkeypatch.setattr("qsd.daemon.version_info", lambda: "1")
                    await daemon.add_monitor(MonitorOptions(chardev="q"))
                    ours.setblocking(False)
                    reader, writer = await asyncio.open_connection(sock=ours)
                    client = Client(reader, writer)
                    await client.next()
                    await client.command("qmp_capabilities")
                    failed = await client.command("query-version")
                    assert failed["error"]["class"] == "GenericError"
                    assert "return" in await client.command("query-jobs")
                    client.close()

        run(scenario())
        (report,) = reports
        assert report.startswith("internal error in command 'query-version':\n")
        assert "nobody expected this" in report
