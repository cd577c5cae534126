# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import subprocess
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.errors import QmpError
from qsd.qapi.convert import from_json, from_json_loose, from_keyval, to_json
from qsd.qapi.model import (
    NULL,
    AlternateType,
    ArrayType,
    BuiltinType,
    EnumType,
    Struct,
    StructType,
    Type,
    Union,
    branch_type,
    members,
)
from qsd.qapi.schema import command_names, find_command, find_type
from qsd.qapi.schema.block_export import BlockExportOptions
from qsd.qapi.schema.block_options import (
    BlockdevDriver,
    BlockdevOptions,
    BlockdevOptionsQcow2,
    BlockdevOptionsRaw,
)
from qsd.qapi.schema.block_protocols import BlockdevOptionsNull
from qsd.qapi.schema.sockets import SocketAddressLegacy, UnixSocketAddressWrapper
from qsd.qapi.schema.transaction import TransactionAction
from tests.qapi.cases_json import ACCEPTED, REFUSED
from tests.support.tools import real_daemon


def arguments_of(command: str) -> type[Struct]:
    declared = find_command(command)
    assert declared is not None
    return declared.arguments


def json_cases() -> list[Any]:
    return [pytest.param(*case, id=f"{case[0]} {json.dumps(case[1])}"[:80]) for case in REFUSED]


@pytest.mark.parametrize(("command", "arguments", "message"), json_cases())
def test_refused_arguments(command: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        from_json(arguments_of(command), arguments)
    assert caught.value.desc == message
    assert caught.value.error_class == "GenericError"


@pytest.mark.parametrize(("command", "arguments"), ACCEPTED)
def test_accepted_arguments(command: str, arguments: dict[str, Any]) -> None:
    from_json(arguments_of(command), arguments)


@pytest.mark.interop
@pytest.mark.slow
def test_the_real_daemon_refuses_with_the_same_words() -> None:
    requests: list[dict[str, Any]] = [{"execute": "qmp_capabilities"}]
    requests += [{"execute": name, "arguments": given_} for name, given_, _ in REFUSED]
    requests.append({"execute": "quit"})
    done = subprocess.run(
        [real_daemon(), "--chardev", "stdio,id=m", "--monitor", "m"],
        input="\n".join(map(json.dumps, requests)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    answers = [reply["error"]["desc"] for reply in replies if "error" in reply]
    assert answers == [message for _, _, message in REFUSED]


# -- typed results ------------------------------------------------------------------------------


def test_union_with_nested_definition() -> None:
    made = from_json(
        BlockdevOptions,
        {"driver": "raw", "node-name": "r", "file": {"driver": "null-co", "size": 512}},
    )
    inner = BlockdevOptions(driver="null-co", branch=BlockdevOptionsNull(size=512))
    assert made == BlockdevOptions(
        driver="raw", node_name="r", branch=BlockdevOptionsRaw(file=inner)
    )


def test_null_differs_from_absent() -> None:
    made = from_json(BlockdevOptions, {"driver": "qcow2", "file": "f", "backing": None})
    assert isinstance(made.branch, BlockdevOptionsQcow2)
    assert made.branch.backing is NULL
    assert to_json(made) == {"driver": "qcow2", "file": "f", "backing": None}
    made = from_json(BlockdevOptions, {"driver": "qcow2", "file": "f"})
    assert isinstance(made.branch, BlockdevOptionsQcow2)
    assert made.branch.backing is None
    assert to_json(made) == {"driver": "qcow2", "file": "f"}


def test_simple_union_has_a_wrapper_as_branch() -> None:
    made = from_json(SocketAddressLegacy, {"type": "unix", "data": {"path": "/s"}})
    assert isinstance(made.branch, UnixSocketAddressWrapper)
    assert made.branch.data.path == "/s"
    assert from_json(TransactionAction, {"type": "abort", "data": {}}).type == "abort"


def test_negative_number_for_an_unsigned_member_is_its_twos_complement() -> None:
    made = from_json(BlockdevOptions, {"driver": "null-co", "latency-ns": -1})
    assert isinstance(made.branch, BlockdevOptionsNull)
    assert made.branch.latency_ns == 2**64 - 1


def test_other_kinds_of_types() -> None:
    assert from_json(str, "x") == "x"
    assert from_json(int, 5) == 5
    assert from_json(BlockdevDriver, "raw") == "raw"
    assert from_json(find_type("BlockdevRef"), "n") == "n"
    with pytest.raises(QmpError, match="does not accept value 'x'"):
        from_json(BlockdevDriver, "x")
    with pytest.raises(TypeError):
        from_json(object(), "x")


def test_input_is_left_alone() -> None:
    value = {"driver": "raw", "file": {"driver": "null-co", "size": 1}}
    before = json.dumps(value)
    from_json(BlockdevOptions, value)
    from_json_loose(BlockdevOptions, value)
    assert json.dumps(value) == before


def test_to_json_takes_containers() -> None:
    null = BlockdevOptionsNull(size=1)
    assert to_json([null, {"a": null}, (1, "x", None, NULL)]) == [
        {"size": 1},
        {"a": {"size": 1}},
        [1, "x", None, None],
    ]


def test_order_of_members_is_that_of_the_declaration() -> None:
    made = from_json(
        BlockdevOptions, {"size": 1, "read-only": True, "node-name": "n", "driver": "null-co"}
    )
    assert list(to_json(made)) == ["driver", "node-name", "read-only", "size"]


# -- the command line ---------------------------------------------------------------------------


def test_keyval_scalars() -> None:
    made = from_keyval(
        BlockExportOptions,
        {
            "type": "vhost-user-blk",
            "id": "e",
            "node-name": "n",
            "writable": "on",
            "addr": {"type": "unix", "path": "/s"},
            "logical-block-size": "4k",
            "num-queues": "0x2",
        },
    )
    assert to_json(made) == {
        "type": "vhost-user-blk",
        "id": "e",
        "node-name": "n",
        "writable": True,
        "addr": {"type": "unix", "path": "/s"},
        "logical-block-size": 4096,
        "num-queues": 2,
    }


# -- json: file names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "strict"),
    [
        ({"driver": "null-co", "size": "1M"}, {"driver": "null-co", "size": 1 << 20}),
        ({"driver": "null-co", "size": 512}, {"driver": "null-co", "size": 512}),
        ({"driver": "null-co", "read-zeroes": "on"}, {"driver": "null-co", "read-zeroes": True}),
        ({"driver": "null-co", "read-zeroes": True}, {"driver": "null-co", "read-zeroes": True}),
        (
            {"driver": "raw", "file.driver": "null-co", "file.size": "1k"},
            {"driver": "raw", "file": {"driver": "null-co", "size": 1024}},
        ),
        (
            {"driver": "raw", "file": {"driver": "null-co", "cache.direct": "on"}},
            {"driver": "raw", "file": {"driver": "null-co", "cache": {"direct": True}}},
        ),
        (
            {"driver": "nbd", "server": {"type": "inet", "host": "h", "port": 10809}},
            {"driver": "nbd", "server": {"type": "inet", "host": "h", "port": "10809"}},
        ),
        (
            {"driver": "quorum", "children.0": "a", "children.1": "b", "vote-threshold": "2"},
            {"driver": "quorum", "children": ["a", "b"], "vote-threshold": 2},
        ),
        (
            {"driver": "qcow2", "file": "f", "backing": None},
            {"driver": "qcow2", "file": "f", "backing": None},
        ),
        (
            {"driver": "blkdebug", "image": "i", "align": "4k", "max-transfer": "-1"},
            {"driver": "blkdebug", "image": "i", "align": 4096, "max-transfer": -1},
        ),
    ],
)
def test_loose_json(value: dict[str, Any], strict: dict[str, Any]) -> None:
    assert from_json_loose(BlockdevOptions, value) == from_json(BlockdevOptions, strict)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"driver": "null-co", "size": "x"},
            "Parameter 'size' expects a non-negative number below 2^64",
        ),
        (
            {"driver": "null-co", "latency-ns": -1},
            "Parameter 'latency-ns' expects a non-negative number below 2^64",
        ),
        (
            {"driver": "null-co", "size": 1.5},
            "Parameter 'size' expects a non-negative number below 2^64",
        ),
        (
            {"driver": "raw", "file": {"driver": "null-co", "read-only": "zz"}},
            "Parameter 'file.read-only' expects 'on' or 'off'",
        ),
        ({"file": "x", "file.driver": "y"}, "Parameters 'file.*' used inconsistently"),
    ],
)
def test_loose_json_refuses(value: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        from_json_loose(BlockdevOptions, value)
    assert caught.value.desc == message


# -- properties ---------------------------------------------------------------------------------

MAX_DEPTH = 3


def values_of(wanted: Type, depth: int = 0) -> st.SearchStrategy[Any]:
    """JSON values that a type accepts."""
    if isinstance(wanted, EnumType):
        return st.sampled_from(wanted.values)
    if isinstance(wanted, ArrayType):
        size = 0 if depth > MAX_DEPTH else 2
        return st.lists(values_of(wanted.element, depth + 1), max_size=size)
    if isinstance(wanted, AlternateType):
        cases = [case for case in wanted.cases if depth < MAX_DEPTH or case.kind != "struct"]
        return st.one_of([values_of(case, depth + 1) for case in cases])
    if isinstance(wanted, StructType):
        return objects_of(wanted.cls, depth)
    assert isinstance(wanted, BuiltinType)
    if wanted.bounds is not None:
        return st.integers(*wanted.bounds)
    return {
        "str": st.text(max_size=5),
        "bool": st.booleans(),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "null": st.none(),
        "any": st.integers(0, 9) | st.lists(st.text(max_size=2), max_size=2),
    }[wanted.name]


@st.composite
def objects_of(draw: st.DrawFn, cls: type[Struct], depth: int = 0) -> dict[str, Any]:
    """JSON objects that a struct accepts."""
    result: dict[str, Any] = {}
    for item in members(cls):
        if not item.optional or (depth <= MAX_DEPTH and draw(st.booleans())):
            result[item.name] = draw(values_of(item.type, depth + 1))
    if issubclass(cls, Union):
        branch = branch_type(cls, result[cls.TAG])
        if branch is not None:
            result.update(draw(objects_of(branch, depth)))
    return result


@pytest.mark.parametrize("command", command_names())
def test_arguments_survive_the_round_trip(command: str) -> None:
    declared = arguments_of(command)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(objects_of(declared))
    def check(arguments: dict[str, Any]) -> None:
        made = from_json(declared, arguments)
        assert to_json(made) == arguments
        assert from_json(declared, to_json(made)) == made

    check()


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["driver", "file", "node-name", "size", "children", "x"]), inner
            )
        ),
    ),
    st.sampled_from(["raw", "qcow2", "quorum", "null-co", "blkdebug"]),
)
def test_any_json_is_converted_or_refused(value: object, driver: str) -> None:
    arguments = {"driver": driver, "file": value, "children": value, "size": value}
    for reader in (from_json, from_keyval, from_json_loose):
        try:
            made = cast("Any", reader)(BlockdevOptions, arguments)
        except QmpError:
            continue
        assert made.driver == driver
