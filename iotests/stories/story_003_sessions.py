# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Monitors on sockets: several at once, clients that leave and come back, events for everyone."""

from __future__ import annotations

from iotests.harness.qmp import Monitor
from iotests.harness.story import Story


def story(h: Story) -> None:
    daemon = h.start(
        *("--chardev", "socket,id=second,path=second.sock,server=on,wait=off"),
        *("--monitor", "second"),
    )
    h.heading("A second monitor sees what the first one did, and its events")
    other = Monitor(h.folder / "second.sock")
    h.say("capabilities", other.greeting["QMP"]["capabilities"])
    h.qmp("blockdev-add", driver="null-co", node_name="disk", size=1 << 20)
    (node,) = other.call("query-named-block-nodes")["return"]
    h.say("the other sees", node["node-name"])
    h.create(driver="file", filename="made.raw", size=4096)
    seen = [other.next_event()["data"]["status"] for _ in range(5)]
    h.say("the other was told", seen)

    h.heading("A client that leaves is followed by another; its nodes stay")
    other.close()
    again = Monitor(h.folder / "second.sock")
    h.say(
        "the next one sees",
        [n["node-name"] for n in again.call("query-named-block-nodes")["return"]],
    )
    again.close()

    h.heading("The monitor says what character devices there are")
    value = daemon.ok("query-chardev")
    for item in sorted(value, key=lambda item: str(item["label"])):
        h.show(item, "label,frontend-open")
    h.quit()
