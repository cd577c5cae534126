# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Workloads of the vhost-user-blk export, with a front end of our own in the place of a guest.

The front end is lean, so that the daemon is what is measured: chains of descriptors are written
once, and a batch of requests costs it a few operations on whole arrays.  It sleeps when there is
nothing to do, as a guest's processor does, and it kicks only if the daemon asks for it.
"""

from __future__ import annotations

import os
import select
import struct
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import clients, images
from bench.daemon import Daemon
from bench.figures import Figure, Run, metered
from tests.support.vhost_frontend import D_NEXT, D_WRITE, GUEST_BASE, IN, OUT, Frontend, Queue

#: Bytes; a piece of guest memory that belongs together.
_PIECE: Final = 64 << 10
#: Bytes before the payload of a request: its header and its status.
_HEAD: Final = 4096
_STATUS: Final = 16
_IMAGE: Final = 1 << 30
#: Random places that are used one after the other.
_PLACES: Final = 1 << 16


class Load:
    """Requests of one kind, `depth` of them in flight on one queue.

    Attributes:
        operations: Finished so far.
    """

    def __init__(self, frontend: Frontend, queue: Queue, kind: int, block: int, depth: int) -> None:
        self.operations = 0
        self._frontend = frontend
        self._queue = queue
        pieces = -(-block // _PIECE)
        self._stride = pieces + 2  # descriptors of a chain
        self._slot = (_HEAD + block) // 8  # memory of a request in units of 8 bytes
        self._heads = np.arange(0, depth * self._stride, self._stride)
        for index, head in enumerate(self._heads.tolist()):
            self._write_chain(head, frontend.data + index * (_HEAD + block), kind, block)
        memory = np.frombuffer(frontend.mem, dtype=np.uint8)
        self._words = memory.view(np.uint64)
        self._halves = memory.view(np.uint16)
        ring = queue.avail // 2 + 2
        self._ring = self._halves[ring : ring + queue.size]
        used = memory[queue.used + 4 : queue.used + 4 + 8 * queue.size]
        self._used = used.view(np.uint32)[::2]
        self._count = np.arange(queue.size)

    def _write_chain(self, head: int, at: int, kind: int, block: int) -> None:
        struct.pack_into("<IIQ", self._frontend.mem, at, kind, 0, 0)
        write = D_WRITE if kind == IN else 0
        if not write:
            # Zeroes would leave an image that other rows copy faster than any other.
            self._frontend.mem[at + _HEAD : at + _HEAD + block] = b"\7" * block
        place = GUEST_BASE + at
        put = self._queue.put_desc
        put(head, place, 16, D_NEXT, head + 1)
        for start in range(0, block, _PIECE):
            head += 1
            length = min(_PIECE, block - start)
            put(head, place + _HEAD + start, length, D_NEXT | write, head + 1)
        put(head + 1, place + _STATUS, 1, D_WRITE)

    def run(self, sectors: Any, seconds: float) -> clients.Load:
        """Keep requests in flight until the time is over.

        Args:
            sectors: Where they go, one after the other, again and again.
            seconds: How long.

        Raises:
            RuntimeError: A request failed, or nothing happened.
        """
        queue, halves = self._queue, self._halves
        mask = queue.size - 1
        avail_idx, used_idx, flags = queue.avail // 2 + 1, queue.used // 2 + 1, queue.used // 2
        heads = self._heads
        offered = seen = place = 0
        before = now = time.perf_counter()
        while now - before < seconds:
            count = len(heads)
            if place + count > len(sectors):
                place = 0
            headers = (self._frontend.data + 8) // 8 + heads // self._stride * self._slot
            self._words[headers] = sectors[place : place + count]
            place += count
            self._ring[(offered + self._count[:count]) & mask] = heads
            offered += count
            halves[avail_idx] = offered & 0xFFFF
            if not halves[flags] & 1:
                os.eventfd_write(queue.kick, 1)
            while int(halves[used_idx]) == seen & 0xFFFF:
                self._sleep()
            count = (int(halves[used_idx]) - seen) & 0xFFFF
            heads = self._used[(seen + self._count[:count]) & mask].astype(np.int64)
            seen += count
            now = time.perf_counter()
        self.operations = seen
        self._check()
        return clients.Load(seen / (now - before), seen)

    def _sleep(self) -> None:
        if not select.select([self._queue.call], [], [], 10)[0]:
            raise RuntimeError("the daemon does not answer")
        try:
            os.eventfd_read(self._queue.call)
        except BlockingIOError:
            pass

    def _check(self) -> None:
        at = (self._frontend.data + _STATUS) // 8 + self._heads // self._stride * self._slot
        if (self._words[at] & np.uint64(0xFF)).any():
            raise RuntimeError("a request failed")


def _load_once(
    frontend: Frontend, pattern: str, block: int, depth: int, seconds: float
) -> clients.Load:
    kind = IN if pattern.endswith("read") else OUT
    places = np.arange(_PLACES, dtype=np.uint64) % np.uint64(_IMAGE // block)
    if pattern.startswith("rand"):
        np.random.default_rng(1).shuffle(places)
    load = Load(frontend, frontend.queues[0], kind, block, depth)
    return load.run(places * np.uint64(block // 512), seconds)


def load(image: str, pattern: str, block: int, depth: int, *, direct: bool = False) -> Run:
    """Make a workload on an image.

    Args:
        image: One of those of :mod:`bench.images`.
        pattern: "randread", "randwrite", "read" or "write", as fio calls them.
        block: Bytes of a request.
        depth: Requests in flight.
        direct: Whether the page cache is bypassed.
    """

    def run(side: list[str], folder: Path, seconds: float) -> Figure:
        clients.warm(images.ensure(folder, image))
        path = folder / "vhost.sock"
        path.unlink(missing_ok=True)
        how = ",cache.direct=on" if direct else ""
        with Daemon(
            side,
            folder,
            *("--blockdev", f"file,node-name=file,filename={image}{how}"),
            *("--blockdev", f"{image.rpartition('.')[2]},node-name=top,file=file{how}"),
            *(
                "--export",
                f"vhost-user-blk,id=v,node-name=top,writable=on,addr.type=unix,addr.path={path}",
            ),
        ) as daemon:
            memory = 2 * depth * (_HEAD + block) + (2 << 20)
            with Frontend(str(path), memory) as frontend:
                frontend.set_up(1, 256)
                return metered(daemon, lambda: _load_once(frontend, pattern, block, depth, seconds))

    return run


#: (name, image, pattern, block, depth, aim)
_ROWS: Final = [
    ("4k random read QD1", "full.raw", "randread", 4096, 1, 0),
    ("4k random read QD32", "full.raw", "randread", 4096, 32, 1.5),
    ("4k random write QD1", "full.raw", "randwrite", 4096, 1, 0),
    ("4k random write QD32", "full.raw", "randwrite", 4096, 32, 0),
    ("64k random read QD16", "full.raw", "randread", 65536, 16, 0),
    ("1M sequential read QD8", "full.raw", "read", 1 << 20, 8, 0),
    ("1M sequential write QD8", "full.raw", "write", 1 << 20, 8, 0),
    ("qcow2 4k random read QD32", "full.qcow2", "randread", 4096, 32, 0),
    ("qcow2 4k random write QD32", "full.qcow2", "randwrite", 4096, 32, 0),
]


def rows() -> list[tuple[str, Run, float]]:
    """Return (name, workload, aim) of all."""
    return [
        (f"vhost-user-blk {name}", load(image, pattern, block, depth), aim)
        for name, image, pattern, block, depth, aim in _ROWS
    ] + [
        (
            f"vhost-user-blk 4k random {verb} QD32 direct",
            load("full.raw", f"rand{verb}", 4096, 32, direct=True),
            0,
        )
        for verb in ("read", "write")
    ]
