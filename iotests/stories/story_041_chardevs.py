# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Character devices added, fed, read and removed over QMP."""

from __future__ import annotations

from iotests.harness.story import Story


def add(h: Story, name: str, kind: str, **data: object) -> None:
    backend = {"type": kind, "data": {key.replace("_", "-"): value for key, value in data.items()}}
    h.qmp("chardev-add", id=name, backend=backend)


def story(h: Story) -> None:
    h.start()
    h.heading("A ring buffer")
    add(h, "ring", "ringbuf", size=16)
    h.qmp("ringbuf-write", device="ring", data="hello, ")
    h.qmp("ringbuf-write", device="ring", data="d29ybGQ=", format="base64")
    h.qmp("ringbuf-read", device="ring", size=5)
    h.qmp("ringbuf-read", device="ring", size=100, format="base64")
    h.qmp("ringbuf-write", device="ring", data="0123456789abcdefghij")
    h.qmp("ringbuf-read", device="ring", size=100)
    h.qmp("ringbuf-read", device="missing", size=1)
    add(h, "odd", "ringbuf", size=15)

    h.heading("Others")
    add(h, "null", "null")
    add(h, "file", "file", out="log.txt")
    h.qmp("ringbuf-write", device="null", data="x")
    h.qmp("chardev-send-break", id="null")
    address = {"type": "unix", "data": {"path": "char.sock"}}
    add(h, "sock", "socket", addr=address, server=True, wait=False)
    add(h, "sock", "null")
    add(h, "7", "null")
    add(h, "bad", "socket", addr=address, server=False)
    add(h, "bad", "file", out="missing-folder/log.txt")
    add(h, "bad", "nonsense")
    for item in sorted(h.daemon.ok("query-chardev"), key=lambda item: str(item["label"])):
        h.show(item)

    h.heading("Changed and removed")
    h.qmp("chardev-change", id="null", backend={"type": "ringbuf", "data": {}})
    h.qmp("ringbuf-write", device="null", data="x")
    for name in ("ring", "null", "file", "sock", "missing"):
        h.qmp("chardev-remove", id=name)
    h.qmp("chardev-remove", id="qmp")
    h.say("socket exists:", (h.folder / "char.sock").exists())
    h.quit()
