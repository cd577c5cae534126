# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Votes."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend, BackendListener
from qsd.block.mapping import FUA, ST_DATA, Status
from qsd.errors import QmpError
from qsd.qapi.convert import to_json
from tests.filters.support import data, driver_of, edges, filter_rig, read, refuse


async def add(rig: Any, names: str = "abc", threshold: int = 2, /, **options: Any) -> Any:
    for index, name in enumerate(names):
        memory = await rig.memory(name, 1 << 16)
        memory.data[:4096] = bytes([9 if index == 2 else 1]) * 4096
    return await rig.add(
        driver="quorum", node_name="q", children=list(names), **{"vote-threshold": threshold},
        **options,
    )  # fmt: skip


def events(rig: Any) -> list[dict[str, Any]]:
    return [{"event": event.NAME, **to_json(event)} for event in rig.events.events]


def break_(rig: Any, name: str, code: int) -> None:
    driver = driver_of(rig, name)
    driver.fast = False
    driver.fail = lambda operation, offset: code


def test_the_majority_is_right() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            assert await read(node, 1024, 513) == bytes([1]) * 513
            assert events(rig) == [
                {
                    "event": "QUORUM_REPORT_BAD", "type": "read", "node-name": "c",
                    "sector-num": 2, "sectors-count": 2,
                }
            ]  # fmt: skip
            assert driver_of(rig, "c").data[1024] == 9

    run(main())


def test_rewriting() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, **{"rewrite-corrupted": True})
            assert await read(node, 0, 512) == bytes([1]) * 512
            assert driver_of(rig, "c").data[:513] == bytes([1]) * 512 + bytes([9])

    run(main())


def test_of_equals_the_last_one_wins() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "abcd", 1)
            driver_of(rig, "a").data[:512] = bytes(512)
            driver_of(rig, "b").data[:512] = bytes(512)
            driver_of(rig, "c").data[:512] = driver_of(rig, "d").data[:512] = bytes([7]) * 512
            assert await read(node, 0, 512) == bytes([7]) * 512
            assert [event["node-name"] for event in events(rig)] == ["b", "a"]

    run(main())


def test_no_majority() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "abc", 3)
            with pytest.raises(OSError) as info:
                await read(node, 0, 512)
            assert info.value.errno == errno.EIO
            assert events(rig) == [
                {"event": "QUORUM_FAILURE", "reference": "q", "sector-num": 0, "sectors-count": 1}
            ]

    run(main())


def test_failing_children() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "ab", 1)
            break_(rig, "a", errno.ENOSPC)
            await node.write(0, data(5, 512))
            assert await read(node, 0, 512) == bytes([5]) * 512
            await node.flush()
            kinds = [(event["type"], event["error"]) for event in events(rig)]
            text = "No space left on device"
            assert kinds == [(kind, text) for kind in ("write", "read", "flush")]
            break_(rig, "b", errno.EIO)
            with pytest.raises(OSError):
                await node.write(0, data(5, 512))
            assert events(rig)[-1]["event"] == "QUORUM_FAILURE"
            for name in "ab":
                driver_of(rig, name).fail = lambda operation, offset: 0

    run(main())


@pytest.mark.parametrize("request_", ["write", "zero", "flush"])
def test_of_errors_that_are_as_many_the_last_is_told(request_: str) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "abc", 2)
            break_(rig, "a", errno.EIO)
            break_(rig, "b", errno.ENOSPC)
            requests = {
                "write": lambda: node.write(0, data(5, 512)),
                "zero": lambda: node.zero(0, 512),
                "flush": node.flush,
            }
            with pytest.raises(OSError) as info:
                await requests[request_]()
            assert info.value.errno == errno.ENOSPC
            told = events(rig)
            bad = ["QUORUM_REPORT_BAD"] * 2
            failure = [] if request_ == "flush" else ["QUORUM_FAILURE"]
            assert [event["event"] for event in told] == bad + failure
            assert {event["sectors-count"] for event in told} == {0 if request_ == "flush" else 1}
            for name in "ab":
                driver_of(rig, name).fail = lambda operation, offset: 0

    run(main())


@pytest.mark.parametrize("request_", ["write", "zero"])
def test_a_change_to_be_durable_is_a_change_and_a_flush_of_all(request_: str) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "abc", 2)
            driver = driver_of(rig, "a")
            driver.fast = False
            driver.fail = lambda operation, offset: errno.EIO if operation == "flush" else 0
            if request_ == "write":
                await node.write(0, data(5, 512), FUA)
            else:
                await node.zero(0, 512, FUA)
            (told,) = events(rig)
            assert (told["type"], told["sectors-count"]) == ("flush", 0)
            driver.fail = lambda operation, offset: 0

    run(main())


def test_what_has_no_status_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(offset: int, length: int, want_zero: bool) -> Status:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "abc", 2)
            monkeypatch.setattr(driver_of(rig, "b"), "block_status", lost)
            for name in "abc":
                driver_of(rig, name).data[:] = bytes(1 << 16)
            status = await node.driver.block_status(0, 8192, True)
            assert (status.length, status.flags & ST_DATA) == (4096, ST_DATA)
            assert [(event["node-name"], event["type"]) for event in events(rig)] == [("b", "read")]

    run(main())


def test_first_in_first_out() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, **{"read-pattern": "fifo"})
            break_(rig, "a", errno.ENOSPC)
            driver_of(rig, "b").data[0] = 7
            assert (await read(node, 0, 512))[0] == 7
            assert [event["node-name"] for event in events(rig)] == ["a"]
            driver_of(rig, "a").fail = lambda operation, offset: 0

    run(main())


def test_blkverify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Exit(BaseException):
        pass

    def leave(code: int) -> None:
        raise Exit

    monkeypatch.setattr("os._exit", leave)

    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "ab", blkverify=True)
            assert await read(node, 0, 512) == bytes([1]) * 512
            driver_of(rig, "b").data[100] = 3
            with pytest.raises(Exit):
                await read(node, 0, 512)

    run(main())
    assert "contents mismatch at offset 100" in capsys.readouterr().err


def test_children_come_and_go() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            driver = node.driver
            child = rig.graph.nodes["c"]
            await driver.remove_child(node.children["children.2"])
            await driver.add_child(child)
            assert list(node.children) == ["children.0", "children.1", "children.2"]
            with pytest.raises(QmpError, match="The node c already has a parent"):
                await driver.add_child(child)
            await driver.remove_child(node.children["children.0"])
            await driver.add_child(rig.graph.nodes["a"])
            assert list(node.children) == ["children.1", "children.2", "children.3"]
            await driver.remove_child(node.children["children.1"])
            with pytest.raises(QmpError, match="cannot be lower than the vote threshold 2"):
                await driver.remove_child(node.children["children.2"])

    run(main())


def test_children_come_and_go_while_nothing_is_on_its_way() -> None:
    class Watcher(BackendListener):
        def __init__(self) -> None:
            self.begun = 0

        def drained_begin(self) -> None:
            self.begun += 1

        def drained_end(self) -> None:
            pass

    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "abc", 1)
            watcher = Watcher()
            user = Backend(rig.graph, "", "a user", watcher)
            user.attach(node, 0, perms.ALL)
            child = rig.graph.nodes["c"]
            await node.driver.remove_child(node.children["children.2"])
            assert watcher.begun == 1
            await node.driver.add_child(child)
            assert watcher.begun == 2
            await user.detach()

    run(main())


def test_permissions() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, "ab", **{"rewrite-corrupted": True})
            shared = perms.CONSISTENT_READ | perms.WRITE_UNCHANGED
            assert edges(node)["children.0"] == (perms.WRITE, shared)

    run(main())


def test_refusals() -> None:
    blkverify = (
        "blkverify=on can only be set if there are exactly two files and vote-threshold is 2"
    )
    wrong: list[tuple[str, str, int, dict[str, Any]]] = [
        ("Number of provided children must be 1 or more", "", 1, {}),
        ("Parameter 'vote-threshold' expects a value >= 1", "a", 0, {}),
        ("threshold may not exceed children count", "a", 2, {}),
        # Numbers are cut to 32 bits.
        ("Parameter 'vote-threshold' expects a value >= 1", "a", 1 << 31, {}),
        ("threshold may not exceed children count", "a", (1 << 32) + 2, {}),
        (blkverify, "ab", 1, {"blkverify": True}),
        (
            "rewrite-corrupted=on cannot be used with blkverify=on", "ab", 2,
            {"blkverify": True, "rewrite-corrupted": True},
        ),
        ("Could not refresh total sector count: Input/output error", "ax", 1, {}),
    ]  # fmt: skip

    async def main() -> None:
        async with filter_rig() as rig:
            for name in "ab":
                await rig.memory(name)
            await rig.memory("x", 512)
            for text, names, threshold, options in wrong:
                await refuse(
                    rig, text, driver="quorum", node_name="q", children=list(names),
                    **{"vote-threshold": threshold}, **options,
                )  # fmt: skip

    run(main())
