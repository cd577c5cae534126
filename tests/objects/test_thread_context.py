# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The parked thread and its CPUs."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.thread_context import ThreadContext, cpus_of_nodes, parse_cpu_list
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.qom_properties import ThreadContextProperties

OURS = sorted(os.sched_getaffinity(0))
ONE = OURS[:1]


def make(tree: ObjectTree, **options: Any) -> ThreadContext:
    made = run(tree.create("thread-context", "tc", ThreadContextProperties(**options)))
    assert isinstance(made, ThreadContext)
    return made


def test_life() -> None:
    tree = ObjectTree()
    before = threading.active_count()
    context = make(tree)
    assert context.get_json("cpu-affinity") == OURS
    assert os.path.exists(f"/proc/self/task/{context.get_json('thread-id')}")
    run(tree.delete("tc"))
    run(context.finalize())
    assert threading.active_count() == before


def test_affinity() -> None:
    tree = ObjectTree()
    context = make(tree, cpu_affinity=[*ONE, *ONE])
    assert context.cpus() == ONE
    assert sorted(os.sched_getaffinity(0)) == OURS
    context.set_json("cpu-affinity", OURS)
    assert context.cpus() == OURS
    run(tree.close())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_affinity": []}, "CPU list is empty"),
        ({"cpu_affinity": [], "node_affinity": []}, "CPU list is empty"),
        ({"node_affinity": []}, "Node list is empty"),
        ({"node_affinity": [9999]}, "The nodes select no CPUs"),
        ({"cpu_affinity": ONE, "node_affinity": []}, "Mixing CPU and node affinity not supported"),
        ({"cpu_affinity": [9999]}, "Setting CPU affinity failed: Invalid argument"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    before = threading.active_count()
    with pytest.raises(QmpError) as caught:
        make(ObjectTree(), **options)
    assert caught.value.desc == message
    assert threading.active_count() == before


def test_nodes_are_write_only() -> None:
    tree = ObjectTree()
    context = make(tree)
    message = r"^Property 'thread-context.node-affinity' is not readable$"
    with pytest.raises(QmpError, match=message):
        context.get_json("node-affinity")
    run(tree.close())


def test_nodes() -> None:
    if not os.path.exists("/sys/devices/system/node/node0/cpulist"):
        pytest.skip("the kernel does not list nodes")
    assert set(ONE) <= set(cpus_of_nodes(range(64)))
    tree = ObjectTree()
    context = make(tree, cpu_affinity=ONE)
    context.set_nodes(list(range(64)))  # a running thread may be told either way
    assert context.cpus() == OURS
    run(tree.close())


def test_no_such_node() -> None:
    assert cpus_of_nodes([9999]) == []


@pytest.mark.parametrize(
    ("text", "cpus"), [("", []), ("\n", []), ("0\n", [0]), ("0-2,8,10-11\n", [0, 1, 2, 8, 10, 11])]
)
def test_lists(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus
