# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Names of nodes; all expectations were seen in replies of the C daemon."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.filename import resolve_relative
from qsd.block.naming import (
    exact_filename,
    filename,
    full_backing_filename,
    full_options,
    is_backing_overridden,
)
from qsd.errors import QmpError
from tests.support.memory import MemoryDriver
from tests.support.named import disk, named_rig

NULL = {"driver": "null-co"}
SIZED = {"driver": "null-co", "size": 1048576}
SIZED_NAME = '{"driver": "null-co", "size": 1048576}'
Q = {"driver": "qcow2", "file": disk("q")}
Q_NAME = '{"driver": "qcow2", "file": {"driver": "file", "filename": "q"}}'


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (disk("f"), "f"),
        (disk("./f"), "./f"),
        ({**disk("f"), "locking": "off", "aio": "threads"}, "f"),
        (disk('we"ird:name'), 'we"ird:name'),
        (NULL, "null-co://"),
        ({**NULL, "latency-ns": 1000}, "null-co://"),
        (SIZED, "json:" + SIZED_NAME),
        ({**NULL, "read-zeroes": False}, 'json:{"read-zeroes": false, "driver": "null-co"}'),
        ({"driver": "raw", "file": NULL}, "null-co://"),
        ({"driver": "raw", "file": disk("f"), "detect-zeroes": "on"}, "f"),
        ({"driver": "raw", "file": SIZED}, 'json:{"driver": "raw", "file": ' + SIZED_NAME + "}"),
        (
            {"driver": "raw", "offset": 0, "file": disk("f")},
            'json:{"offset": 0, "driver": "raw", "file": {"driver": "file", "filename": "f"}}',
        ),
        (
            {"driver": "raw", "size": 512, "file": disk("ü")},
            'json:{"driver": "raw", "size": 512, "file": '
            '{"driver": "file", "filename": "\\u00FC"}}',
        ),
        (Q, "q"),
        ({**Q, "lazy-refcounts": True, "l2-cache-size": 65536}, "q"),
        ({**Q, "data-file": SIZED}, "q"),
        # Over a format the plain name would be taken for the wrong thing.
        ({"driver": "raw", "file": Q}, 'json:{"driver": "raw", "file": ' + Q_NAME + "}"),
        (
            {"driver": "throttle", "throttle-group": "tg", "file": Q},
            'json:{"throttle-group": "tg", "driver": "throttle", "file": ' + Q_NAME + "}",
        ),
        (
            {"driver": "copy-on-read", "file": disk("f")},
            'json:{"driver": "copy-on-read", "file": {"driver": "file", "filename": "f"}}',
        ),
        (
            {**Q, "backing": NULL},
            'json:{"backing": {"driver": "null-co"}, "driver": "qcow2", '
            '"file": {"driver": "file", "filename": "q"}}',
        ),
        ({**Q, "backing": None}, "q"),
    ],
)
def test_names(tree: dict[str, Any], name: str) -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="n", **tree)
            assert filename(node) == name
            assert exact_filename(node) == (None if name.startswith("json:") else name)

    run(main())


def test_nested_options_get_dotted_names() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            encrypt = {"format": "luks", "key-secret": "s"}
            node = await rig.add(node_name="n", **Q, encrypt=encrypt)
            assert full_options(node) == {
                "driver": "qcow2",
                "file": {"driver": "file", "filename": "q"},
                "encrypt.key-secret": "s",
            }

    run(main())


OVER_F = {"driver": "qcow2", "file": disk("over-f")}
OVER_F_NAME = '"driver": "qcow2", "file": {"driver": "file", "filename": "over-f"}}'


@pytest.mark.parametrize(
    ("backing", "name", "overridden"),
    [
        # What the image records anyway, opened by hand: the plain name is still good.
        ({"driver": "raw", "file": disk("f")}, "over-f", False),
        (
            {"driver": "raw", "file": disk("g")},
            'json:{"backing": {"driver": "raw", "file": {"driver": "file", "filename": "g"}}, '
            + OVER_F_NAME,
            True,
        ),
        (None, 'json:{"backing": null, ' + OVER_F_NAME, True),
    ],
    ids=["recorded", "other", "none"],
)
def test_names_with_a_recorded_backing_file(
    backing: dict[str, Any] | None, name: str, overridden: bool
) -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="n", **OVER_F, backing=backing)
            assert filename(node) == name
            assert is_backing_overridden(node) is overridden
            assert full_backing_filename(node) == "f"

    run(main())


@pytest.mark.parametrize(("path", "overridden"), [("f", False), ("sub/f", True)])
def test_a_backing_file_is_compared_with_the_record_as_it_is_written(
    path: str, overridden: bool
) -> None:
    async def main() -> None:
        async with named_rig() as rig:
            image = {"driver": "qcow2", "file": disk("sub/over-f")}
            node = await rig.add(**image, backing={"driver": "raw", "file": disk(path)})
            assert is_backing_overridden(node) is overridden

    run(main())


def test_a_recorded_backing_file_cannot_be_replaced_by_a_bare_file() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            with pytest.raises(QmpError) as caught:
                await rig.add(node_name="n", **OVER_F, backing=disk("g"))
            assert caught.value.desc == (
                "Could not open backing file: "
                "Can't specify 'file' and 'filename' options at the same time"
            )

    run(main())


def test_backing_file_opened_from_the_record() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="n", driver="qcow2", file=disk("sub/over-f"))
            assert node.children["backing"].node.implicit
            assert filename(node) == "sub/over-f"
            assert full_backing_filename(node) == "sub/f"
            assert "backing" not in full_options(node)

    run(main())


def test_relative_record_counts_from_the_file_whatever_is_in_between() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(
                node_name="n",
                driver="qcow2",
                file={"driver": "copy-on-read", "file": disk("sub/over-f")},
                backing=None,
            )
            assert full_backing_filename(node) == "sub/f"

    run(main())


def test_relative_record_in_an_image_without_a_place() -> None:
    async def main() -> None:
        async with named_rig(null_co=MemoryDriver) as rig:
            node = await rig.add(
                node_name="n", driver="qcow2", file={"driver": "null-co"}, backing=None
            )
            assert full_backing_filename(node) is None

    run(main())


def test_relative_record_in_an_image_over_nodes_without_a_place() -> None:
    class Quorum(MemoryDriver):
        name = "quorum"

    async def main() -> None:
        async with named_rig(null_co=Quorum) as rig:
            node = await rig.add(
                node_name="n", driver="qcow2", file={"driver": "null-co"}, backing=None
            )
            with pytest.raises(QmpError) as caught:
                resolve_relative(node, "f")
            assert caught.value.desc == "Cannot generate a base directory for quorum nodes"
            assert resolve_relative(node, "/f") == "/f"

    run(main())


def test_options_of_children_are_part_of_the_full_options() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="n", **{**Q, "data-file": disk("d")})
            assert full_options(node) == {
                "driver": "qcow2",
                "file": {"driver": "file", "filename": "q"},
                "data-file": {"driver": "file", "filename": "d"},
            }

    run(main())
