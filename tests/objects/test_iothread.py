# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Event loops as objects."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.objects.iothread import IOThread, MainLoop
from qsd.objects.tree import ObjectTree
from qsd.qapi.schema.qom_properties import IothreadProperties, MainLoopProperties

BAD = "bad thread-pool-min/thread-pool-max values"


def iothread(tree: ObjectTree, name: str = "io", **options: int) -> IOThread:
    made = run(tree.create("iothread", name, IothreadProperties(**options)))
    assert isinstance(made, IOThread)
    return made


def main_loop(tree: ObjectTree, name: str, **options: int) -> MainLoop:
    made = run(tree.create("main-loop", name, MainLoopProperties(**options)))
    assert isinstance(made, MainLoop)
    return made


def out_of_range(name: str) -> str:
    return f"{name} value must be in range [0, 9223372036854775807]"


def test_defaults() -> None:
    obj = iothread(ObjectTree())
    names = ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min",
             "thread-pool-max")  # fmt: skip
    assert [obj.get_json(name) for name in names] == [32768, 0, 0, 0, 0, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poll_max_ns": -1}, out_of_range("poll-max-ns")),
        ({"poll_grow": -1, "poll_max_ns": -1}, out_of_range("poll-grow")),
        ({"poll_shrink": -1, "poll_grow": -1, "aio_max_batch": -2}, out_of_range("poll-shrink")),
        ({"thread_pool_max": -1}, out_of_range("thread-pool-max")),
        ({"thread_pool_min": 65}, BAD),
        ({"thread_pool_max": 0}, BAD),
        ({"thread_pool_max": 99999999999}, BAD),
        ({"thread_pool_min": 5, "thread_pool_max": 4}, BAD),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QmpError) as caught:
        iothread(ObjectTree(), **options)
    assert caught.value.desc == message


def test_both_ends_of_the_pool_together() -> None:
    assert iothread(ObjectTree(), thread_pool_min=70, thread_pool_max=80).thread_pool_min == 70


def test_refused_value_stays() -> None:
    """The C daemon sets first and checks then."""
    obj = iothread(ObjectTree())
    for name, value in (("thread-pool-max", 0), ("aio-max-batch", 7)):
        with pytest.raises(QmpError) as caught:
            obj.set_json(name, value)
        assert caught.value.desc == BAD
        assert obj.get_json(name) == value
    obj.set_json("poll-grow", 99)  # polling has nothing to do with threads
    with pytest.raises(QmpError, match=r"^poll-grow value must be"):
        obj.set_json("poll-grow", -1)
    assert obj.poll_grow == 99


def test_iothreads_may_go() -> None:
    tree = ObjectTree()
    assert iothread(tree).can_be_deleted()
    run(tree.delete("io"))


def test_one_main_loop() -> None:
    tree = ObjectTree()
    main_loop(tree, "a", thread_pool_min=70, thread_pool_max=80)
    with pytest.raises(QmpError, match=r"^only one main-loop instance allowed$"):
        main_loop(tree, "b")
    with pytest.raises(QmpError, match=r"^attempt to add duplicate property 'a'"):
        main_loop(tree, "a")
    with pytest.raises(QmpError, match=r"^only one main-loop instance allowed$"):
        main_loop(tree, "b", thread_pool_min=70, thread_pool_max=80)
    # The loop is there already, so settings for it are checked one by one.
    with pytest.raises(QmpError, match=f"^{BAD}$"):
        main_loop(tree, "a", thread_pool_min=65)
    with pytest.raises(QmpError, match=r"^object 'a' is in use, can not be deleted$"):
        run(tree.delete("a"))


def test_failed_main_loop_does_not_count() -> None:
    tree = ObjectTree()
    with pytest.raises(QmpError, match=f"^{BAD}$"):
        main_loop(tree, "a", thread_pool_min=65)
    main_loop(tree, "a")
