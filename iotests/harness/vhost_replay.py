# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sessions of a vhost-user-blk front end: made at random, played at a back end, answers noted.

A session is played in lockstep, and requests that are in flight together touch different parts of
the disk, so two back ends in the same state must give the same transcript.  What a back end does
about a broken ring is its own choice: it hangs up, falls silent or dies.  All of that is noted as
one word, and it ends the session.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import vhost_frontend as vf

#: Bytes of the disk, and of the part of it that one request of a batch may touch.
DISK = 2 << 20
AREA = 64 << 10
_AREAS = DISK // AREA
_MEMORY = 4 << 20
#: Bytes at the beginning of memory that rings lie in; a region does not end there.
_RINGS = 256 << 10
#: Bytes of memory for a request, and what lies in them.
_SLOT = 128 << 10
_STATUS, _TABLE, _PAYLOAD = 64, 1024, 16384
_SLOTS = 12
_RING_SIZES = [16, 64, 128, 256]
#: Seconds; a back end that does nothing for so long has given up on a ring.
_PATIENCE = 30.0
_HOSTILE_PATIENCE = 0.15
_KINDS = [vf.IN, vf.OUT, vf.FLUSH, vf.GET_ID, vf.DISCARD, vf.WRITE_ZEROES, 99]
_WEIGHTS = [30, 30, 5, 3, 6, 6, 1]
_DAMAGES = [
    *("outside", "loop", "link beyond", "head beyond", "nested table", "odd table", "no status"),
    *("only status", "write before read", "table with a link"),
]


class Request(NamedTuple):
    """One request.

    Attributes:
        kind: Its type.
        sector: Where.
        data: What is written.
        read: Bytes to be read.
        pieces: Lengths of the payload's descriptors.
        gap: Bytes between pieces.
        indirect: Whether its descriptors lie in a table.
        split_header: Bytes of the header in its first descriptor; 0 for all.
        damage: What is wrong with its chain.
    """

    kind: int
    sector: int
    data: bytes
    read: int
    pieces: list[int]
    gap: int
    indirect: bool
    split_header: int
    damage: str = ""


class Step(NamedTuple):
    """Something that a front end does: a name and what belongs to it."""

    name: str
    queue: int = 0
    value: int = 0
    requests: tuple[Request, ...] = ()


class Session(NamedTuple):
    """What one front end does.

    Attributes:
        features: What it accepts.
        cuts: Offsets that its memory is cut in regions at.
        sizes: Sizes of its rings.
        steps: What it does then.
    """

    features: int
    cuts: list[int]
    sizes: list[int]
    steps: list[Step]


class Maker:
    """Makes sessions at random."""

    def __init__(self, chance: random.Random, queues: int) -> None:
        self._chance = chance
        self._queues = queues

    def session(self) -> Session:
        """Return the next session."""
        chance = self._chance
        features = vf.F_VERSION_1 | vf.F_PROTOCOL
        features |= chance.choice([0, vf.F_INDIRECT]) | chance.choice([0, vf.F_EVENT_IDX])
        # The original takes a table for endless if a piece of it lies in two regions.
        unit = _SLOT if features & vf.F_INDIRECT else _SLOT // 8
        units = range(_RINGS // unit, _MEMORY // unit)
        cuts = sorted(unit * cut for cut in chance.sample(units, chance.choice([0, 0, 1, 2, 5])))
        sizes = [chance.choice(_RING_SIZES) for _ in range(chance.randint(1, self._queues))]
        steps = [
            self._step(sizes, bool(features & vf.F_INDIRECT)) for _ in range(chance.randint(1, 12))
        ]
        if chance.random() < 0.25:
            queue = chance.randrange(len(sizes))
            request = self._request(0, bool(features & vf.F_INDIRECT))
            # Nothing that changes the disk: how much of it is done is nobody's business.
            damaged = request._replace(kind=vf.IN, damage=chance.choice(_DAMAGES))
            steps.append(Step("damaged", queue, 0, (damaged,)))
        return Session(features, cuts, sizes, steps)

    def _step(self, sizes: list[int], indirect: bool) -> Step:
        chance = self._chance
        queue = chance.randrange(len(sizes))
        names = ["batch", "stop", "call", "memory", "length", "features", "resent"]
        name = chance.choices(names, [20, 3, 1, 2, 1, 1, 1])[0]
        if name != "batch":
            return Step(name, queue, chance.randrange(3))
        areas = chance.sample(range(_AREAS), _SLOTS)
        room, requests = sizes[queue], []
        for area in areas[: chance.choice([1, 1, 2, 4, _SLOTS])]:
            request = self._request(area, indirect)
            room -= 1 if request.indirect else len(request.pieces) + 3
            if room < 0:
                break
            requests.append(request)
        return Step(name, queue, chance.randrange(2), tuple(requests))

    def _request(self, area: int, indirect: bool) -> Request:
        chance = self._chance
        kind = chance.choices(_KINDS, _WEIGHTS)[0]
        first = chance.choice([0, 0, 8, chance.randrange(128)])
        sector = area * AREA // 512 + first
        # Beyond the end of the disk, or across it.
        sector = chance.choices(
            [sector, DISK // 512, DISK // 512 - 1, 1 << 54, 1 << 63], [60, 1, 1, 1, 1]
        )[0]
        length = min(512 * chance.choice([1, 1, 8, 8, 9, 64, 128]), AREA - 512 * first)
        data, read = b"", 0
        if kind == vf.IN:
            read = length
        elif kind == vf.OUT:
            data = chance.randbytes(16) * (length // 16)
        elif kind == vf.GET_ID:
            read = chance.choice([20, 20, 32])
        elif kind in (vf.DISCARD, vf.WRITE_ZEROES):
            flags = chance.choices([0, 1, 2], [8, 4, 1])[0]
            data = struct.pack("<QII", sector, length // 512, flags)
            sector = 0
        elif kind == 99:
            read = chance.choice([0, 512])
        total = read or len(data)
        pieces = self._pieces(total, whole=kind not in (vf.IN, vf.OUT))
        gap = chance.choice([0, 512, 16])
        split = chance.choices([0, 8, 4, 15], [20, 1, 1, 1])[0]
        return Request(
            *(kind, sector, data, read, pieces, gap),
            indirect=indirect and chance.random() < 0.6,
            split_header=split,
        )

    def _pieces(self, total: int, *, whole: bool) -> list[int]:
        chance = self._chance
        count = chance.choice([1, 1, 1, 2, 3, 7])
        if not total or count == 1 or (whole and chance.random() < 0.7):
            return [total] if total else []
        unit = chance.choice([1, 16, 512]) if total > 512 else 1
        count = min(count, total // unit)
        cuts = sorted(unit * cut for cut in chance.sample(range(1, total // unit + 1), count - 1))
        ends = [0, *(cut for cut in cuts if cut < total), total]
        return [end - start for start, end in pairwise(ends)]


class Broken(Exception):
    """The back end has given up on this front end."""


def play(path: Path, session: Session) -> list[str]:
    """Play a session at the back end on a unix socket; return what it answered, line by line."""
    transcript: list[str] = []
    with contextlib.closing(_Player(path, session)) as player:
        try:
            player.begin()
            player.settle()
            for step in session.steps:
                answer = player.step(step)
                player.settle()
                transcript.append(f"{step.name} {step.queue}: {answer}")
        except (Broken, vf.Gone, TimeoutError, BrokenPipeError):
            transcript.append("broken")
    return transcript


class _Player:
    def __init__(self, path: Path, session: Session) -> None:
        self._session = session
        self._frontend = vf.Frontend(str(path), _MEMORY)
        self._next = [0] * len(session.sizes)

    def close(self) -> None:
        self._frontend.close()

    def begin(self) -> None:
        frontend = self._frontend
        frontend.negotiate(want=self._session.features)
        # Of the features below only these: the others say what the device does, not how.
        frontend.acked = self._session.features
        frontend.send(vf.SET_FEATURES, struct.pack("<Q", frontend.acked))
        self._share_memory()
        for size in self._session.sizes:
            frontend.add_queue(size)

    def settle(self) -> None:
        """Wait until all messages are acted on: kicks go another way, and may overtake them."""
        self._frontend.ask_number(vf.GET_FEATURES)

    def _share_memory(self) -> None:
        frontend = self._frontend
        ends = [0, *self._session.cuts, _MEMORY]
        regions = [
            struct.pack("<QQQQ", vf.GUEST_BASE + start, end - start, vf.USER_BASE + start, start)
            for start, end in pairwise(ends)
        ]
        body = struct.pack("<II", len(regions), 0) + b"".join(regions)
        frontend.send(vf.SET_MEM_TABLE, body, [frontend.memfd] * len(regions))

    def step(self, step: Step) -> str:
        """Do something; return what came of it."""
        frontend = self._frontend
        queue = frontend.queues[step.queue]
        if step.name in ("batch", "damaged"):
            return self._batch(queue, step)
        if step.name == "length":
            return frontend.config(0, 8).hex()
        if step.name == "features":
            return f"{frontend.ask_number(vf.GET_FEATURES):#x}"
        if step.name == "memory":
            # Rings that run, run on in the same memory.
            self._share_memory()
        elif step.name == "resent":
            frontend.send(vf.SET_VRING_ENABLE, struct.pack("<II", step.queue, 1))
        elif step.name == "call":
            os.close(queue.call)
            queue.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            frontend.send(vf.SET_VRING_CALL, struct.pack("<Q", step.queue), [queue.call])
        elif step.name == "stop":
            index, base = struct.unpack(
                "<II", frontend.ask(vf.GET_VRING_BASE, struct.pack("<II", step.queue, 0))
            )
            assert base == queue.avail_idx
            frontend.start_queue(queue, base)
            return f"{index} {base}"
        return ""

    def _batch(self, queue: vf.Queue, step: Step) -> str:
        """Do requests together; return their outcomes in order."""
        heads, index = [], 0
        for slot, request in enumerate(step.requests):
            heads.append(index)
            index = self._write(queue, index, slot, request)
        if step.name == "damaged":
            beyond = step.requests[0].damage == "head beyond"
            queue.offer(queue.size if beyond else 0)
            self._wait(queue, 1, _HOSTILE_PATIENCE)
            raise Broken
        for head in heads if step.value else ():
            queue.offer(head)
        if not step.value:
            queue.offer(*heads)
        done = self._wait(queue, len(heads), _PATIENCE)
        return ", ".join(
            self._outcome(slot, request, done[head])
            for slot, (head, request) in enumerate(zip(heads, step.requests, strict=True))
        )

    def _parts(self, slot: int, request: Request) -> list[tuple[int, int, int]]:
        """Put a request into memory; return (place, length, flags) of its descriptors."""
        mem = self._frontend.mem
        at = self._frontend.data + slot * _SLOT
        struct.pack_into("<IIQ", mem, at, request.kind, 0, request.sector)
        split = request.split_header or 16
        parts = [(at, split, 0)]
        if split < 16:
            parts.append((at + split, 16 - split, 0))
        flags = vf.D_WRITE if request.read else 0
        place, done = at + _PAYLOAD, 0
        for length in request.pieces:
            part = request.data[done : done + length] if request.data else b"\xaa" * length
            mem[place : place + length] = part
            parts.append((place, length, flags))
            place += length + request.gap
            done += length
        mem[at + _STATUS] = 0xEE
        parts.append((at + _STATUS, 1, vf.D_WRITE))
        return parts

    def _write(self, queue: vf.Queue, index: int, slot: int, request: Request) -> int:
        """Write the descriptors of a request; return the next one that is free."""
        frontend = self._frontend
        parts = _damage(self._parts(slot, request), request.damage)
        table = frontend.data + slot * _SLOT + _TABLE
        first = 0 if request.indirect else index
        for number, (place, length, flags) in enumerate(parts, first):
            more = vf.D_NEXT if number + 1 < first + len(parts) else 0
            entry = vf.GUEST_BASE + place, length, flags | more, number + 1
            if request.damage == "loop" and not more:
                entry = *entry[:2], flags | vf.D_NEXT, first
            elif request.damage == "link beyond" and not more:
                entry = *entry[:2], flags | vf.D_NEXT, 0x7FFF
            if request.indirect:
                struct.pack_into("<QIHH", frontend.mem, table + 16 * number, *entry)
            else:
                queue.put_desc(number, *entry)
        if not request.indirect:
            return index + len(parts)
        length = 16 * len(parts) + (request.damage == "odd table")
        flags = vf.D_INDIRECT | (vf.D_NEXT if request.damage == "table with a link" else 0)
        queue.put_desc(index, vf.GUEST_BASE + table, length, flags, index + 1)
        return index + 1

    def _wait(self, queue: vf.Queue, count: int, patience: float) -> dict[int, int]:
        """Wait for so many chains; return how much was written, by head."""
        sock = self._frontend.sock
        done = _take(queue)
        while len(done) < count:
            waiting: list[Any] = [queue.call, sock]
            ready, _, _ = select.select(waiting, [], [], patience)
            if not ready or queue.call not in ready:
                raise Broken
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(queue.call)
            done += _take(queue)
        return dict(done)

    def _outcome(self, slot: int, request: Request, written: int) -> str:
        """Return status, bytes written and a digest of what was read.

        Of requests that failed, and of GET_ID, the original says that all was written, which it
        was not.
        """
        mem = self._frontend.mem
        at = self._frontend.data + slot * _SLOT
        status = mem[at + _STATUS]
        if status:
            return str(status)
        text = f"{status}/{'' if request.kind == vf.GET_ID else written}"
        if request.read:
            place, data = at + _PAYLOAD, b""
            for length in request.pieces:
                data += mem[place : place + length]
                place += length + request.gap
            text += f"/{zlib.crc32(data):x}"
        return text


def _take(queue: vf.Queue) -> list[tuple[int, int]]:
    """Take what is finished, until nothing came while the next call was asked for."""
    done: list[tuple[int, int]] = []
    while new := queue.take_used():
        done += new
    return done


def _damage(parts: list[tuple[int, int, int]], damage: str) -> list[tuple[int, int, int]]:
    if damage == "outside":
        place, length, flags = parts[-1]
        return [*parts[:-1], (place + (1 << 40), length, flags)]
    if damage == "nested table":
        place, length, flags = parts[0]
        return [(place, length, flags | vf.D_INDIRECT), *parts[1:]]
    if damage == "no status":
        return [part for part in parts if not part[2]]
    if damage == "only status":
        return parts[-1:]
    if damage == "write before read":
        return [parts[-1], *parts[:-1]]
    return parts
