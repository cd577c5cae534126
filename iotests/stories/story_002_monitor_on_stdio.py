# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A monitor on the standard streams, commands from a pipe, in JSON as people really write it."""

from __future__ import annotations

import json
from typing import Any

from iotests.harness.daemon import PATIENCE
from iotests.harness.story import Story


def tell(h: Story, *lines: str, options: tuple[str, ...] = ("--monitor", "m")) -> None:
    for line in lines:
        h.say("->", line)
    for reply in talk(h, "\n".join(lines), options):
        if "QMP" in reply:
            h.say("<- greeting, capabilities", reply["QMP"]["capabilities"])
        else:
            reply.pop("timestamp", None)
            h.say("<-", json.dumps(reply))


def talk(h: Story, text: str, options: tuple[str, ...]) -> list[dict[str, Any]]:
    """Send all at once; keep the pipe open, for its end would discard what is not answered yet."""
    process = h.spawn("--chardev", "stdio,id=m", *options)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(text.encode())
    process.stdin.flush()
    rest = process.stdout.read().decode().lstrip()
    h.say("exit", process.wait(PATIENCE))
    decoder = json.JSONDecoder()
    replies = []
    while rest:
        reply, end = decoder.raw_decode(rest)
        replies.append(reply)
        rest = rest[end:].lstrip()
    return replies


def story(h: Story) -> None:
    h.heading("Negotiation comes first")
    tell(
        h,
        '{"execute": "query-version"}',
        '{"execute": "qmp_capabilities", "arguments": {"enable": ["nonsense"]}}',
        '{"execute": "qmp_capabilities", "id": 1}',
        '{"execute": "qmp_capabilities", "id": 2}',
        '{"execute": "quit"}',
    )

    h.heading("Single quotes, ids of any type, no line breaks needed, words in any order")
    tell(
        h,
        "{'execute': 'qmp_capabilities'}{'execute': 'query-block', 'id': {'a': [1, null]}}",
        "{'id': 'x', 'arguments': {}, 'execute': 'query-jobs'}  {'execute':",
        "'query-block-exports'}",
        "{'execute': 'quit', 'id': 1.5}",
    )

    h.heading("What is wrong is said, and the session goes on")
    tell(
        h,
        '{"execute": "qmp_capabilities"}',
        "nonsense",
        "[1, 2]",
        '"text"',
        "{}",
        '{"execute": 1}',
        '{"execute": "nonsense"}',
        '{"execute": "query-block", "nonsense": 1}',
        '{"execute": "query-block", "arguments": []}',
        '{"execute": "query-block", "arguments": {"nonsense": 1}}',
        '{"execute": "blockdev-add", "arguments": {}}',
        '{"execute": "blockdev-add", "arguments": {"driver": 5}}',
        '{"execute": "blockdev-del", "arguments": {"node-name": "missing"}}',
        '{"execute": "block_resize", "arguments": {"node-name": "missing", "size": -1}}',
        '{"execute": "block_resize", "arguments": {"node-name": "missing", "size": 1e30}}',
        '{"execute": "query-block", "id": "still here"}',
        '{"execute": "quit"}',
    )

    h.heading("exec-oob must be enabled, and no command allows it")
    tell(
        h,
        '{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}',
        '{"exec-oob": "query-block", "id": 7}',
        '{"execute": "quit"}',
    )
