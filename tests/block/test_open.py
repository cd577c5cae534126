# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.open import inherited_by
from qsd.errors import QmpError
from qsd.filters.blkdebug import BlkdebugDriver
from qsd.filters.blkverify import BlkverifyDriver
from qsd.filters.copy_before_write import CopyBeforeWriteDriver
from qsd.formats.raw import RawDriver
from tests.support.memory import MemoryDriver, Rig
from tests.support.toyformat import ToyFormat


def rig() -> Rig:
    return Rig(qcow2=ToyFormat)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("5a", "Invalid node-name: '5a'"),
        ("with space", "Invalid node-name: 'with space'"),
        ("", "Invalid node-name: ''"),
        ("#block1", "Invalid node-name: '#block1'"),
        ("a" * 32, "Node name too long"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    async def main() -> None:
        async with Rig() as r:
            with pytest.raises(QmpError) as caught:
                await r.memory(name)
            assert caught.value.desc == message

    run(main())


def test_errors_of_the_file_child_come_before_the_name() -> None:
    async def main() -> None:
        async with rig() as r:
            with pytest.raises(QmpError, match="Cannot find device='no' nor node-name='no'"):
                await r.add(driver="qcow2", node_name="5a", file="no")

    run(main())


def test_duplicate_names_leave_nothing_behind() -> None:
    async def main() -> None:
        async with rig() as r:
            await r.memory("n")
            with pytest.raises(QmpError, match="Duplicate nodes with node-name='n'"):
                await r.add(driver="qcow2", node_name="n", file={"driver": "null-co"})
            assert set(r.graph.nodes) == {"n"}

    run(main())


def test_a_failing_driver_closes_what_was_opened_for_it() -> None:
    opened: list[MemoryDriver] = []

    class Remembering(MemoryDriver):
        async def open(self, options: Any, opener: Any) -> None:
            await super().open(options, opener)
            opened.append(self)

    class Failing(ToyFormat):
        async def open(self, options: Any, opener: Any) -> None:
            raise QmpError("bad magic")

    async def main() -> None:
        async with Rig(null_co=Remembering, qcow2=Failing) as r:
            with pytest.raises(QmpError, match="bad magic"):
                await r.add(driver="qcow2", node_name="q", file={"driver": "null-co"})
            assert not r.graph.nodes
            assert [driver.closed for driver in opened] == [True]

    run(main())


def test_a_node_cannot_be_its_own_backing_file() -> None:
    async def main() -> None:
        async with rig() as r:
            await r.memory("f")
            with pytest.raises(
                QmpError, match=r"^Making 'q' a backing child of 'q' would create a cycle"
            ):
                await r.add(driver="qcow2", node_name="q", file="f", backing="q")
            assert set(r.graph.nodes) == {"f"}

    run(main())


def test_backing_errors_say_so() -> None:
    async def main() -> None:
        async with rig() as r:
            await r.memory("f")
            with pytest.raises(QmpError) as caught:
                await r.add(driver="qcow2", node_name="q", file="f", backing="nope")
            assert caught.value.desc == (
                "Could not open backing file: Cannot find device='nope' nor node-name='nope'"
            )

    run(main())


def test_an_empty_backing_file_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with rig() as r:
            await r.memory("f")
            node = await r.add(driver="qcow2", node_name="q", file="f", backing="")
            assert "backing" not in node.children

    run(main())
    assert capfd.readouterr().err == (
        'warning: Use of "backing": "" is deprecated; use "backing": null instead\n'
    )


@pytest.mark.parametrize("name", ["f", "5a"])
def test_generic_options_come_before_name_and_permissions(name: str) -> None:
    async def main() -> None:
        async with rig() as r:
            await r.memory("f")
            await r.add(driver="qcow2", node_name="q", file="f")
            for more, message in (
                ({"force_share": True}, "force-share=on can only be used with read-only images"),
                ({"detect_zeroes": "unmap"}, "setting detect-zeroes to unmap is not allowed"),
            ):
                with pytest.raises(QmpError, match=f"^{message}"):
                    await r.add(driver="qcow2", node_name=name, file="f", **more)
            assert set(r.graph.nodes) == {"f", "q"}

    run(main())


def test_unmapping_zeroes_needs_discard() -> None:
    async def main() -> None:
        async with Rig() as r:
            with pytest.raises(QmpError, match=r"setting detect-zeroes to unmap is not allowed"):
                await r.memory("n", detect_zeroes="unmap")

    run(main())


def test_children_inherit_and_backing_files_are_read_only() -> None:
    async def main() -> None:
        async with rig() as r:
            top = await r.add(
                driver="qcow2",
                node_name="q",
                cache={"direct": True, "no-flush": True},
                file={"driver": "null-co", "node-name": "f", "cache": {"direct": False}},
                backing={"driver": "null-co", "node-name": "b"},
            )
            file, backing = r.graph.nodes["f"], r.graph.nodes["b"]
            assert (file.cache_direct, file.cache_no_flush, file.read_only) == (False, True, False)
            assert file.discard_unmap
            assert (backing.cache_direct, backing.read_only) == (True, True)
            assert not backing.discard_unmap
            assert inherited_by(top, perms.ROLE_FILTERED).cache_direct

    run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"driver": "blkverify", "raw": "n", "test": "a"}, "Making 'a' a test child of 'a'"),
        ({"driver": "blkverify", "raw": "a", "test": "n"}, "Making 'a' a raw child of 'a'"),
        (
            {"driver": "copy-before-write", "file": "n", "target": "a"},
            "Making 'a' a target child of 'a'",
        ),
        ({"driver": "blkdebug", "image": "a"}, "Making 'a' a image child of 'a'"),
        (
            {"driver": "blkdebug", "image": {"driver": "raw", "file": "a"}},
            "Making 'a' a file child of ''",
        ),
        (
            {"driver": "qcow2", "file": {"driver": "null-co"}, "backing": "a"},
            "Making 'a' a backing child of 'a'",
        ),
    ],
)
def test_nothing_is_opened_below_itself(options: dict[str, Any], message: str) -> None:
    async def main() -> None:
        async with Rig(
            blkdebug=BlkdebugDriver,
            blkverify=BlkverifyDriver,
            copy_before_write=CopyBeforeWriteDriver,
            qcow2=ToyFormat,
            raw=RawDriver,
        ) as r:
            await r.memory("n")
            with pytest.raises(QmpError) as caught:
                await r.add(node_name="a", **options)
            assert caught.value.desc == f"{message} would create a cycle"
            assert set(r.graph.nodes) == {"n"}

    run(main())
