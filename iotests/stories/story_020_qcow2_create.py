# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Images made by the daemon itself, with all their options, looked at by qemu-img."""

from __future__ import annotations

from iotests.harness.story import Story

NEEDS = ("qemu-img",)


def made(h: Story, name: str, **options: object) -> None:
    h.create(driver="file", filename=name, size=0)
    h.qmp("blockdev-add", driver="file", node_name="file", filename=name)
    h.create(driver="qcow2", file="file", **options)
    h.qmp("blockdev-del", node_name="file")
    h.run("qemu-img", "info", "-f", "qcow2", name, only="^(?!disk size)")
    h.run("qemu-img", "check", "-f", "qcow2", name, only="No errors|leaked|error")


def story(h: Story) -> None:
    h.start()
    h.heading("Nothing but a size")
    made(h, "plain.qcow2", size=10 << 20)
    h.heading("Version 2")
    made(h, "old.qcow2", size=1 << 30, version="v2")
    h.heading("Small clusters, wide refcounts, lazy")
    made(
        h,
        "small.qcow2",
        **{"size": 3 << 20, "cluster-size": 4096, "refcount-bits": 64, "lazy-refcounts": True},
    )
    h.heading("Extended L2 entries, zstd")
    made(
        h,
        "extended.qcow2",
        **{"size": 1 << 20, "extended-l2": True, "cluster-size": 1 << 20},
        **{"compression-type": "zstd"},
    )
    h.heading("Preallocated metadata")
    made(h, "prealloc.qcow2", size=1 << 20, preallocation="metadata")
    h.heading("With a backing file that need not exist")
    made(h, "overlay.qcow2", **{"size": 1 << 20, "backing-file": "base", "backing-fmt": "raw"})

    h.heading("What does not go together")
    h.create(driver="file", filename="bad.qcow2", size=0)
    h.qmp("blockdev-add", driver="file", node_name="bad", filename="bad.qcow2")
    h.create(driver="qcow2", file="bad", size=1000)
    h.create(driver="qcow2", file="bad", size=1 << 20, cluster_size=1000)
    h.create(driver="qcow2", file="bad", size=1 << 20, cluster_size=4 << 20)
    h.create(driver="qcow2", file="bad", size=1 << 20, refcount_bits=3)
    h.create(driver="qcow2", file="bad", size=1 << 20, version="v2", refcount_bits=8)
    h.create(driver="qcow2", file="bad", size=1 << 20, version="v2", lazy_refcounts=True)
    h.create(driver="qcow2", file="bad", size=1 << 20, backing_fmt="raw")
    h.create(driver="qcow2", file="bad", size=1 << 20, data_file_raw=True)
    h.create(driver="qcow2", file="missing", size=1 << 20)
    h.create(driver="qcow2", file="bad")
    h.create(driver="nonsense", file="bad")
    h.create(driver="null-co")
    h.quit()
