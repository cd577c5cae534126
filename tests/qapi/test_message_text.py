# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Messages with structs in them, written the fast way and the plain one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.qapi.message_text import _text_fast, _text_slow, message_text
from qsd.qapi.model import NULL, Struct
from qsd.qapi.schema.block_export import BlockExportInfo
from qsd.qapi.schema.block_info import (
    BlockDirtyInfo,
    ImageInfo,
    ImageInfoSpecific,
    ImageInfoSpecificRbd,
    ImageInfoSpecificRbdWrapper,
)

EXPORT = BlockExportInfo(id="e", type="nbd", node_name="n", shutting_down=False)


def image(**more: Any) -> ImageInfo:
    return ImageInfo(filename="f", format="raw", virtual_size=512, **more)


names = st.sampled_from(["id", "node-name", "size", "data", "filename", "unheard-of"])
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just(NULL)
structs = st.builds(
    BlockDirtyInfo,
    name=st.none() | st.text(max_size=4),
    count=st.integers(),
    granularity=st.integers(),
    recording=st.booleans(),
    busy=st.booleans(),
    persistent=st.booleans(),
    inconsistent=st.none() | st.booleans(),
) | st.builds(image, dirty_flag=st.none() | st.booleans(), format_specific=st.none())
results = st.recursive(
    scalars | structs | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(results, scalars)
def test_both_ways_agree(result: Any, request_id: Any) -> None:
    if request_id is NULL:
        request_id = None
    message = {"return": result, "id": request_id}
    assert message_text(message, pretty=False) == _text_slow(message, pretty=False)


def test_structs_are_written_fast_and_in_qemus_order() -> None:
    text = '{"return": {"node-name": "n", "shutting-down": false, "type": "nbd", "id": "e"}}'
    assert _text_fast({"return": EXPORT}) == text
    assert message_text({"return": EXPORT}, pretty=False) == text


def test_members_of_a_branch_stand_among_those_of_the_base() -> None:
    specific = ImageInfoSpecific(
        type="rbd", branch=ImageInfoSpecificRbdWrapper(data=ImageInfoSpecificRbd())
    )
    message = {"return": image(format_specific=specific)}
    assert _text_fast(message) == _text_slow(message, pretty=False)
    assert '{"type": "rbd", "data": {}}' in message_text(message, pretty=False)


@pytest.mark.parametrize("value", [0.5, "\x7f", "é"])
def test_what_needs_care_is_left_to_the_plain_way(value: object) -> None:
    message = {"return": [value, EXPORT]}
    assert _text_fast(message) is None
    assert message_text(message, pretty=False) == _text_slow(message, pretty=False)


def test_a_deep_id_is_echoed() -> None:
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    assert message_text({"return": EXPORT, "id": deep}, pretty=False).endswith(
        '"id": ' + "[" * 1001 + "]" * 1001 + "}"
    )


def test_pretty() -> None:
    text = message_text({"return": EXPORT}, pretty=True)
    assert '\n    "return": {\n        "node-name": "n",\n' in text


def test_a_value_that_is_none_of_json_is_refused() -> None:
    class Strange(Struct):
        """A struct of this test."""

        member: object

    with pytest.raises(TypeError, match="is no JSON value"):
        message_text({"return": Strange(member=object())}, pretty=False)
