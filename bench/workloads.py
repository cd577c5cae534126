# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is measured.

A workload is a function ``run(side, folder, seconds) -> Figure`` where ``side`` is the command line
of a daemon.  Each starts its own daemon on files it finds or makes, so that both sides meet the
same state.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import bitmaps, clients, crypto, fuse, images, jobs, more_jobs, nbd_client, status, vhost
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered


class Workload(NamedTuple):
    """One row of the table.

    Attributes:
        name: What is measured.
        run: Measures once.
        unit: Of the rate.
        aim: Wanted ratio to the C daemon, 0 if there is none.
    """

    name: str
    run: Run
    unit: str
    aim: float


def serve(
    side: list[str], folder: Path, image: str, *, tcp: bool = False, extra: str = "", top: str = ""
) -> tuple[Daemon, str]:
    """Start a daemon that exports an image as "x" and return it with the URI."""
    fmt = "raw" if image.endswith(".raw") else "qcow2"
    server = (
        "addr.type=inet,addr.host=127.0.0.1,addr.port=10899"
        if tcp
        else "addr.type=unix,addr.path=nbd.sock"
    )
    (folder / "nbd.sock").unlink(missing_ok=True)
    daemon = Daemon(
        side,
        folder,
        "--blockdev",
        f"file,node-name=file,filename={image}{extra}",
        "--blockdev",
        f"{fmt},node-name=top,file=file{top}",
        "--nbd-server",
        server,
        "--export",
        "nbd,id=e,node-name=top,name=x,writable=on",
    )
    return daemon, "nbd://127.0.0.1:10899/x" if tcp else "nbd+unix:///x?socket=nbd.sock"


def fio_on(
    image: str,
    pattern: str,
    block: str,
    depth: int,
    *,
    tcp: bool = False,
    extra: str = "",
    top: str = "",
    cold: bool = False,
    **more: object,
) -> Run:
    """Make a workload of fio on a prepared image."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        path = images.ensure(folder, image)
        (clients.cool if cold else clients.warm)(path)
        daemon, uri = serve(side, folder, image, tcp=tcp, extra=extra, top=top)
        try:
            with daemon:
                return metered(
                    daemon,
                    lambda: clients.fio(
                        folder, uri, pattern, block, depth, seconds=seconds, **more
                    ),
                )
        finally:
            if "write" in pattern:
                # A daemon may split folios of the page cache when it writes: the next one should
                # meet them as reading ahead makes them.
                clients.cool(path)

    return run


def _direct(kind: str, pattern: str, aio: str = "io_uring", b: str = "4k") -> Run:
    """Make a workload that goes around the page cache."""
    depth = {"4k": 32, "64k": 16, "1M": 8}[b]
    how = f",cache.direct=on,aio={aio}"
    image = f"full.{kind}"
    return fio_on(image, pattern, b, depth, cold=True, extra=how, top=",cache.direct=on")


def fio_fresh(pattern: str, block: str, depth: int, total: str, kind: str = "plain") -> Run:
    """Make a workload of fio on a new image: empty, over a backing file, or with a snapshot."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        name = "fresh.qcow2"
        (folder / name).unlink(missing_ok=True)
        images.use_memory()
        if kind == "backing":
            base = images.ensure(folder, "full.qcow2")
            clients.warm(base)
            images.create(folder, name, "-b", base.name, "-F", "qcow2")
        elif kind == "snapshot":
            import shutil
            import subprocess

            shutil.copyfile(images.ensure(folder, "full.qcow2"), folder / name)
            subprocess.run(["qemu-img", "snapshot", "-c", "s", name], cwd=folder, check=True)
        else:
            images.create(folder, name)
        daemon, uri = serve(side, folder, name)
        try:
            with daemon:
                return metered(
                    daemon, lambda: clients.fio(folder, uri, pattern, block, depth, io_size=total)
                )
        finally:
            (folder / name).unlink(missing_ok=True)

    return run


def backing_read(side: list[str], folder: Path, seconds: float) -> Figure:
    """Read through an empty overlay."""
    base = images.ensure(folder, "full.qcow2")
    clients.warm(base)
    if not (folder / "overlay.qcow2").exists():
        images.create(folder, "overlay.qcow2", "-b", base.name, "-F", "qcow2")
    daemon, uri = serve(side, folder, "overlay.qcow2")
    with daemon:
        return metered(
            daemon, lambda: clients.fio(folder, uri, "randread", "4k", 32, seconds=seconds)
        )


def tool(image: str, *command: str) -> Run:
    """Make a workload of a whole command; {uri} stands for the export."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, image))
        (folder / "out.raw").unlink(missing_ok=True)
        daemon, uri = serve(side, folder, image)
        with daemon:
            words = [word.replace("{uri}", uri) for word in command]
            return metered(daemon, lambda: clients.timed(folder, *words))

    return run


def copy_in(*command: str) -> Run:
    """Make a workload that fills a fresh qcow2 image from full.raw."""

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, "full.raw"))
        (folder / "fresh.qcow2").unlink(missing_ok=True)
        images.create(folder, "fresh.qcow2")
        daemon, uri = serve(side, folder, "fresh.qcow2")
        try:
            with daemon:
                words = [word.replace("{uri}", uri) for word in command]
                return metered(daemon, lambda: clients.timed(folder, *words))
        finally:
            (folder / "fresh.qcow2").unlink(missing_ok=True)

    return run


def greeting(side: list[str], folder: Path, seconds: float) -> Figure:
    """Start up to the greeting, as 1/ms so that more is better; the median of several starts."""
    from bench.startup import greeting_time

    greeting_time(side, folder)  # the first one may have to compile
    starts = []
    end = time.perf_counter() + seconds
    while len(starts) < 3 or time.perf_counter() < end:
        starts.append(greeting_time(side, folder))
    return Figure(
        1 / statistics.median(start.elapsed for start in starts),
        1000 * statistics.median(start.processor for start in starts),
    )


def round_trips(side: list[str], folder: Path, seconds: float) -> Figure:
    """QMP commands one after the other."""
    with Daemon(side, folder) as daemon:

        def load() -> clients.Load:
            end = time.perf_counter() + seconds
            count = 0
            while time.perf_counter() < end:
                daemon.qmp("query-block-exports")
                count += 1
            return clients.Load(count / seconds, count)

        return metered(daemon, load)


def once(action: Callable[[], None]) -> clients.Load:
    """Do something one time."""
    before = time.perf_counter()
    action()
    return clients.Load(1 / (time.perf_counter() - before), 1)


def beside_large(side: list[str], folder: Path, seconds: float) -> Figure:
    """Latency of a client of small reads while another reads 1 MiB at a time, as 1/p99."""
    clients.warm(images.ensure(folder, "full.qcow2"))
    daemon, uri = serve(side, folder, "full.qcow2")
    with daemon:
        large = clients.start_fio(folder, uri, "read", "1M", 8, seconds=seconds + 0.5)
        small = clients.fio(folder, uri, "randread", "4k", 1, seconds=seconds)
        clients.finish_fio(large)
        return Figure(1e6 / small.p99_us)


def many_nodes(side: list[str], folder: Path, seconds: float) -> Figure:
    """Create 1000 null nodes and exports."""
    with Daemon(side, folder) as daemon:
        (folder / "many.sock").unlink(missing_ok=True)
        return metered(daemon, lambda: once(lambda: _make_many(daemon)))


def _make_many(daemon: Daemon) -> None:
    daemon.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "many.sock"}})
    for index in range(1000):
        daemon.qmp("blockdev-add", driver="null-co", node_name=f"n{index}")
        daemon.qmp("block-export-add", type="nbd", id=f"e{index}", node_name=f"n{index}")


def query_many(side: list[str], folder: Path, seconds: float) -> Figure:
    """Query 1000 nodes and exports."""
    with Daemon(side, folder) as daemon:
        (folder / "many.sock").unlink(missing_ok=True)
        _make_many(daemon)
        daemon.qmp("query-named-block-nodes", flat=True)

        def load() -> None:
            daemon.qmp("query-named-block-nodes", flat=True)
            daemon.qmp("query-block-exports")

        return metered(daemon, lambda: once(load))


def memory_many(side: list[str], folder: Path, seconds: float) -> Figure:
    """Resident memory with 1000 nodes and exports, as 1/MiB so that more is better."""
    with Daemon(side, folder) as daemon:
        (folder / "many.sock").unlink(missing_ok=True)
        _make_many(daemon)
        return Figure(2**20 / daemon.resident())


def memory_idle(side: list[str], folder: Path, seconds: float) -> Figure:
    """Resident memory at rest, as 1/MiB."""
    with Daemon(side, folder) as daemon:
        return Figure(2**20 / daemon.resident())


def memory_load(kind: str) -> Run:
    """Make a measurement of memory after a load, as 1/MiB.

    Args:
        kind: "own" for what the daemon has for itself, "resident" for all that is mapped: pages of
            the page cache count as resident, although the kernel may take them at any time.
    """

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, "full.qcow2"))
        daemon, uri = serve(side, folder, "full.qcow2")
        with daemon:
            clients.fio(folder, uri, "randrw", "64k", 32, seconds=seconds)
            return Figure(2**20 / (daemon.own_memory() if kind == "own" else daemon.resident()))

    return run


def table() -> list[Workload]:
    """Return all workloads in the order of the report."""
    rows = []
    for kind in ("raw", "qcow2"):
        image = f"full.{kind}"
        rows += [
            Workload(f"{kind} 4k random read QD1", fio_on(image, "randread", "4k", 1), "op/s", 1.3),
            Workload(
                f"{kind} 4k random read QD32", fio_on(image, "randread", "4k", 32), "op/s", 3.5
            ),
            Workload(
                f"{kind} 4k random write QD1", fio_on(image, "randwrite", "4k", 1), "op/s", 1.3
            ),
            Workload(
                f"{kind} 4k random write QD32", fio_on(image, "randwrite", "4k", 32), "op/s", 3
            ),
            Workload(
                f"{kind} 64k random read QD16", fio_on(image, "randread", "64k", 16), "op/s", 3
            ),
            Workload(f"{kind} 1M sequential read QD8", fio_on(image, "read", "1M", 8), "op/s", 2),
            Workload(f"{kind} 1M sequential write QD8", fio_on(image, "write", "1M", 8), "op/s", 2),
            Workload(
                f"{kind} 4k random read 8 clients",
                fio_on(image, "randread", "4k", 4, numjobs=8),
                "op/s",
                3,
            ),
        ]
    rows += [
        Workload(
            f"raw 4k random read QD32 direct {aio}", _direct("raw", "randread", aio), "op/s", 1
        )
        for aio in ("threads", "native", "io_uring")
    ]
    rows += [
        Workload("raw 4k random write QD32 direct", _direct("raw", "randwrite"), "op/s", 1),
        Workload("qcow2 4k random read QD32 direct", _direct("qcow2", "randread"), "op/s", 1),
        Workload("qcow2 4k random write QD32 direct", _direct("qcow2", "randwrite"), "op/s", 1),
        Workload("raw 64k random read QD16 direct", _direct("raw", "randread", b="64k"), "op/s", 1),
        Workload("raw 1M sequential read QD8 direct", _direct("raw", "read", b="1M"), "op/s", 1),
        Workload("raw 1M sequential write QD8 direct", _direct("raw", "write", b="1M"), "op/s", 1),
    ]
    to_raw = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw")
    # Into a file, this would measure how the disk is doing: the same run took 0.9 to 2.7 s.
    to_null = ("qemu-img", "convert", "-n", "-f", "raw", "--target-image-opts")
    null = "driver=null-co"
    return [
        *rows,
        *(
            Workload(
                f"{kind} 4k random read QD32 cold",
                fio_on(f"full.{kind}", "randread", "4k", 32, cold=True),
                "op/s",
                1,
            )
            for kind in ("raw", "qcow2")
        ),
        Workload(
            "raw 4k random read QD32 TCP",
            fio_on("full.raw", "randread", "4k", 32, tcp=True),
            "op/s",
            3,
        ),
        Workload(
            "raw 1M sequential read QD8 TCP",
            fio_on("full.raw", "read", "1M", 8, tcp=True),
            "op/s",
            1,
        ),
        Workload(
            "fresh qcow2 4k random write QD32", fio_fresh("randwrite", "4k", 32, "128M"), "op/s", 1
        ),
        Workload(
            "fresh qcow2 64k sequential write QD8", fio_fresh("write", "64k", 8, "1G"), "op/s", 1.5
        ),
        Workload(
            "fresh qcow2 1M sequential write QD8", fio_fresh("write", "1M", 8, "1G"), "op/s", 1.5
        ),
        Workload("backing 4k random read QD32", backing_read, "op/s", 1),
        Workload(
            "backing 4k random write QD32 (copy)",
            fio_fresh("randwrite", "4k", 32, "64M", "backing"),
            "op/s",
            1,
        ),
        Workload(
            "snapshot 4k random write QD32 (copy)",
            fio_fresh("randwrite", "4k", 32, "64M", "snapshot"),
            "op/s",
            1,
        ),
        Workload(
            "block status of a fragmented image",
            tool("fragmented.qcow2", "nbdinfo", "--map", "{uri}"),
            "run/s",
            1,
        ),
        Workload(
            "block status of a file with many holes",
            tool("sparse.raw", "nbdinfo", "--map", "{uri}"),
            "run/s",
            1,
        ),
        Workload(
            "extent by extent, a file with many holes",
            tool("sparse.raw", "qemu-img", "map", "-f", "raw", "--output=json", "{uri}"),
            "run/s",
            1,
        ),
        *(Workload(name, run, "run/s", 1) for name, run in status.rows()),
        Workload("p99 of 4k reads beside 1M reads", beside_large, "1/us", 1),
        Workload("nbdcopy out", tool("full.qcow2", "nbdcopy", "{uri}", "null:"), "run/s", 1),
        Workload("nbdcopy in", copy_in("nbdcopy", "full.raw", "{uri}"), "run/s", 1),
        Workload(
            "qemu-img convert out",
            tool("full.qcow2", *to_null, "{uri}", f"{null},size=1G"),
            "run/s",
            1,
        ),
        Workload(
            "qemu-img convert out, many holes",
            tool("sparse.raw", *to_null, "{uri}", f"{null},size=4G"),
            "run/s",
            1,
        ),
        Workload("qemu-img convert in", copy_in(*to_raw, "full.raw", "{uri}"), "run/s", 1),
        *(
            Workload(
                f"{kind} {source} to {target}",
                jobs.copy_job(kind, f"full.{source}", f"job.{target}"),
                "run/s",
                1,
            )
            for kind in ("backup", "mirror")
            for source, target in (
                ("raw", "qcow2"),
                ("qcow2", "raw"),
                ("qcow2", "qcow2"),
                ("raw", "raw"),
            )
        ),
        *(Workload(*row) for row in bitmaps.rows()),
        *(Workload(name, run, "op/s", aim) for name, run, aim in nbd_client.rows()),
        *(Workload(name, run, "op/s", aim) for name, run, aim in crypto.rows()),
        *(Workload(name, run, "op/s", aim) for name, run, aim in fuse.rows()),
        *(Workload(name, run, "op/s", aim) for name, run, aim in vhost.rows()),
        *(
            Workload(f"{name} {base}", jobs.chain_job(kind, base), "run/s", 1)
            for kind, name in (("stream", "stream from"), ("commit", "active commit into"))
            for base in ("raw", "qcow2")
        ),
        *(Workload(name, run, unit, 1) for name, run, unit in more_jobs.rows()),
        Workload("start to greeting", greeting, "1/ms", 0),
        Workload("QMP round trip", round_trips, "op/s", 1),
        Workload("create 1000 nodes and exports", many_nodes, "run/s", 0.5),
        Workload("query 1000 nodes and exports", query_many, "run/s", 0.5),
        Workload("memory with 1000 nodes and exports", memory_many, "1/MiB", 0),
        Workload("memory at rest", memory_idle, "1/MiB", 0),
        Workload("memory under load, resident", memory_load("resident"), "1/MiB", 0),
        Workload("memory under load, its own", memory_load("own"), "1/MiB", 0),
    ]
