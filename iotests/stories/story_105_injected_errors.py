# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Errors injected at each of blkdebug's events: what they hit, and that the image survives.

When tables are written back is each daemon's own affair, so what counts is whether an operation
fails at all, from its first request to the flush behind it.
"""

from __future__ import annotations

import subprocess

from iotests.harness.nbd import FLUSH, READ, TRIM, WRITE, Client
from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
K = 1024

#: By operation: options of the image, commands that fill it, and the events that it meets.
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "allocate": (
        "",
        (),
        "l1_update l2_update l2_alloc_write write_aio refblock_load refblock_update_part "
        "refblock_alloc cluster_alloc flush_to_os flush_to_disk pwritev pwritev_done cow_read "
        "reftable_update vmstate_save empty_image_prepare",
    ),
    "allocate a part": ("", (), "cluster_alloc_space write_aio cow_read cow_write"),
    "copy from below": ("-b base -F raw", (), "read_backing_aio cow_read cow_write write_aio"),
    "copy what is shared": (
        "",
        ("write -q 0 1M", "snapshot"),
        "l2_load l2_alloc_cow_read l2_alloc_write cow_read cow_write cluster_free cluster_alloc",
    ),
    "overwrite": ("", ("write -q 0 1M",), "l2_load write_aio pwritev refblock_alloc cluster_alloc"),
    "read": ("", ("write -q 0 1M",), "l2_load read_aio read_backing_aio read_compressed write_aio"),
    "read what is compressed": ("", ("write -q -c 0 64k",), "read_compressed read_aio l2_load"),
    "write compressed": (
        "",
        (),
        "write_compressed l2_update_compressed cluster_alloc_bytes cluster_alloc write_aio",
    ),
    "discard": ("", ("write -q 0 1M",), "l2_load l2_update flush_to_os pwritev_zero cow_write"),
    "many": (
        "-o cluster_size=512,refcount_bits=64",
        (),
        "reftable_grow refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks "
        "refblock_alloc_write_table refblock_alloc_switch_table",
    ),
    "grow": (
        "-o cluster_size=512",
        (),
        "l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l1_shrink_write_table",
    ),
    "shrink": (
        "-o cluster_size=512",
        ("write -q 0 1M",),
        "l1_shrink_write_table l1_grow_write_table",
    ),
    "copy on read": ("-b base -F raw", (), "cor_write"),
}


def make(h: Story, options: str, commands: tuple[str, ...]) -> None:
    words = ["-q", "-f", "qcow2", *options.split(), "disk.qcow2", "4M"]
    subprocess.run(["qemu-img", "create", *words], cwd=h.folder, check=True)
    for command in commands:
        if command == "snapshot":
            done = ["qemu-img", "snapshot", "-c", "s", "disk.qcow2"]
        else:
            done = ["qemu-io", "-f", "qcow2", "-c", command, "disk.qcow2"]
        subprocess.run(done, cwd=h.folder, check=True)


def add(h: Story, event: str, operation: str) -> str:
    """Open the image over blkdebug; return the node to work on."""
    rule = {"event": event, "errno": 28, "once": True}
    debug = {"driver": "blkdebug", "discard": "unmap", "inject-error": [rule]}
    file = {"driver": "file", "filename": "disk.qcow2", "discard": "unmap"}
    image = {"driver": "qcow2", "node-name": "disk", "discard": "unmap"}
    ok = h.daemon.ok
    if operation == "copy on read":
        ok("blockdev-add", **image, file=file)
        ok("blockdev-add", **debug, image="disk", node_name="debug")
        ok("blockdev-add", driver="copy-on-read", node_name="top", file="debug")
        return "top"
    ok("blockdev-add", **image, file={**debug, "image": file})
    if operation == "write compressed":
        ok("blockdev-add", driver="compress", node_name="top", file="disk")
        return "top"
    return "disk"


def requests(h: Story, operation: str) -> bool:
    """Do it by NBD; return whether all went well."""
    client = Client(h.folder / "nbd.sock", "x")
    try:
        if operation in ("read", "read what is compressed", "copy on read"):
            client.call(READ, 0, 4 * K)
            return True
        if operation == "discard":
            client.call(TRIM, 0, 64 * K)
        elif operation in ("allocate a part", "copy from below", "copy what is shared"):
            client.call(WRITE, 4 * K, data=b"w" * 4 * K)
        else:
            client.call(WRITE, 0, data=b"w" * (3072 * K if operation == "many" else 64 * K))
        client.call(FLUSH)
    except OSError:
        # What comes next goes well, and carries out what was left.
        client.call(FLUSH)
        return False
    else:
        return True
    finally:
        client.close()


def perform(h: Story, operation: str, event: str) -> str:
    node = add(h, event, operation)
    if operation in ("grow", "shrink"):
        size = 64 << 20 if operation == "grow" else 256 << 10
        reply = h.daemon.qmp("block_resize", node_name=node, size=size)
        word = reply["error"]["desc"] if "error" in reply else "passes"
    else:
        export = {"type": "nbd", "id": "x", "name": "x", "node_name": node, "writable": True}
        h.daemon.ok("block-export-add", **export)
        word = "passes" if requests(h, operation) else "fails"
        h.daemon.ok("block-export-del", id="x", mode="hard")
        h.daemon.event("BLOCK_EXPORT_DELETED", id="x")
    for name in (node, "debug", "disk") if node == "top" else (node,):
        h.daemon.qmp("blockdev-del", node_name=name)
    return word


def story(h: Story) -> None:
    (h.folder / "base").write_bytes(b"below" * (4096 * K // 5) + b"!!!!")
    h.start("--nbd-server", "addr.type=unix,addr.path=nbd.sock")
    for operation, (options, commands, events) in CASES.items():
        h.heading(operation)
        for event in events.split():
            make(h, options, commands)
            h.say(event, "->", perform(h, operation, event))
            done = subprocess.run(["qemu-img", "check", "-q", "disk.qcow2"], cwd=h.folder)
            if done.returncode not in (0, 3):
                h.say("the image is damaged:", done.returncode)
