# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Random load over NBD, an account of what must survive, and the comparison after a kill.

Every sector that is written carries the number of the operation that wrote it.  A flush that was
answered makes durable what had been answered before the flush was sent.  After a SIGKILL a sector
may hold what the last answered flush made durable, or what any later operation on it wrote,
answered or not; anything else is lost or invented data.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

from iotests.harness.nbd import FLUSH, FUA, NO_HOLE, TRIM, WRITE, ZERO, Client, Gone

SECTOR = 512


def stamp(number: int) -> bytes:
    """Return the content of a sector written by an operation."""
    return number.to_bytes(8, "little") * (SECTOR // 8)


class Load:
    """Random operations in flight on one export; no two of them overlap.

    Attributes:
        history: By sector, (operation, content) it may hold, oldest first.  Several entries of one
            operation are alternatives (a discard may also do nothing).
        pace: Seconds from one operation to the next, for a guest that leaves a job some room.
        stopping: Set it to let `run` come to its end.
    """

    def __init__(
        self, path: Path, export: str, seed: int, depth: int = 16, client: Client | None = None
    ) -> None:
        self.client = client or Client(path, export)
        self.random = random.Random(seed)
        self.depth = depth
        self.pace = 0.0
        self.stopping = False
        self.sectors = self.client.size // SECTOR
        self.history: dict[int, list[tuple[int, bytes]]] = {}
        self._initial: dict[int, bytes] = {}
        self._number = 0
        self._pending: dict[int, _Pending] = {}
        self._answered: dict[int, int] = {}  # by sector: the last operation that was answered
        self._news = threading.Condition()
        self._replies = 0
        self._over = False

    def run(self, operations: int, before: dict[int, bytes] | None = None) -> None:
        """Send operations until their number is reached or the server is gone."""
        self._initial = before or {}
        try:
            for _ in range(operations):
                if self.stopping:
                    break
                while len(self._pending) >= self.depth:
                    self._reply()
                self._send()
                if self.pace:
                    time.sleep(self.pace)
            while self._pending:
                self._reply()
        except Gone:
            pass
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()

    def settle(self) -> None:
        """Flush with nothing in flight: from now on only the last writes may be found."""
        self.client.call(FLUSH)
        for sector, number in self._answered.items():
            self._settle(sector, number)

    def wait_for(self, replies: int) -> None:
        """Wait, in another thread than that of `run`, until so many more replies have come."""
        with self._news:
            goal = self._replies + replies
            assert self._news.wait_for(lambda: self._over or self._replies >= goal, 60)
            assert self._replies >= goal, "the load came to its end"

    def _entry(self, sector: int) -> list[tuple[int, bytes]]:
        entry = self.history.get(sector)
        if entry is None:
            entry = [(0, self._initial.get(sector, bytes(SECTOR)))]
            self.history[sector] = entry
            self._answered[sector] = 0
        return entry

    def _free_range(self) -> range | None:
        """Choose sectors that no operation in flight touches; small, large, aligned or not."""
        count = self.random.choice([1, 1, 3, 8, 16, 128, 300, 2000])
        start = self.random.randrange(self.sectors)
        if self.random.random() < 0.3:
            start -= start % 128
        chosen = range(start, min(start + count, self.sectors))
        for other in self._pending.values():
            if other.start < chosen.stop and chosen.start < other.stop:
                return None
        return chosen

    def _send(self) -> None:
        self._number += 1
        number = self._number
        kind = self.random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if kind == "flush":
            # What is answered now is durable once this flush is answered.
            self._pending[number] = _Pending(kind, 0, 0, dict(self._answered))
            self.client.send(FLUSH, number)
            return
        chosen = self._free_range()
        if chosen is None or not chosen:
            return
        self._expect(kind, number, chosen)
        self._pending[number] = _Pending(kind, chosen.start, chosen.stop, {})
        offset, length = chosen.start * SECTOR, len(chosen) * SECTOR
        if kind in ("write", "fua"):
            flags = FUA if kind == "fua" else 0
            self.client.send(WRITE, number, offset, data=stamp(number) * len(chosen), flags=flags)
        elif kind == "trim":
            self.client.send(TRIM, number, offset, length)
        else:
            self.client.send(ZERO, number, offset, length, flags=NO_HOLE if kind == "zero" else 0)

    def _expect(self, kind: str, number: int, chosen: range) -> None:
        data = stamp(number) if kind in ("write", "fua") else bytes(SECTOR)
        for sector in chosen:
            entry = self._entry(sector)
            last = entry[-1][0]
            kept = [content for seen, content in entry if seen == last] if kind == "trim" else []
            entry.append((number, data))
            entry.extend((number, content) for content in kept)

    def _reply(self) -> None:
        cookie, error, _ = self.client.receive()
        with self._news:
            self._replies += 1
            self._news.notify_all()
        if error:
            raise AssertionError(f"operation {cookie} failed with {error}")
        done = self._pending.pop(cookie)
        if done.kind == "flush":
            for sector, number in done.durable.items():
                self._settle(sector, number)
            return
        for sector in range(done.start, done.stop):
            self._answered[sector] = cookie
            if done.kind == "fua":
                self._settle(sector, cookie)

    def _settle(self, sector: int, number: int) -> None:
        """What came before operation `number` can no longer come back."""
        entry = self.history[sector]
        if entry[0][0] < number:
            self.history[sector] = [item for item in entry if item[0] >= number]

    def verify(self, image: bytes | memoryview) -> dict[int, bytes]:
        """Compare the image after the crash; return its content by sector for the next round."""
        found: dict[int, bytes] = {}
        for sector, entry in self.history.items():
            content = bytes(image[sector * SECTOR : (sector + 1) * SECTOR])
            if all(content != allowed for _, allowed in entry):
                held = int.from_bytes(content[:8], "little")
                names = [number for number, _ in entry]
                raise AssertionError(f"sector {sector} holds {held}, allowed are {names}")
            found[sector] = content
        for sector, content in self._initial.items():
            if sector not in found:
                if bytes(image[sector * SECTOR : (sector + 1) * SECTOR]) != content:
                    raise AssertionError(f"untouched sector {sector} changed")
                found[sector] = content
        return found


class Writer:
    """A load that runs in a thread of its own, for as long as the context lasts at most.

    Attributes:
        load: The load.
    """

    def __init__(self, load: Load, before: dict[int, bytes] | None = None) -> None:
        self.load = load
        self._before = before
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.load.run(1 << 40, self._before)
        except BaseException as exc:
            self._failure = exc

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def join(self) -> None:
        """Wait until the load has ended, because it was stopped or the server is gone."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Stop the load and make durable what it wrote."""
        self.load.stopping = True
        self.join()
        self.load.settle()

    def __exit__(self, *_: object) -> None:
        self.load.stopping = True
        self._thread.join()
        self.load.client.close()


class _Pending(NamedTuple):
    """An operation in flight; for a flush, what it makes durable."""

    kind: str
    start: int
    stop: int
    durable: dict[int, int]


_WEIGHTS = {"write": 60, "fua": 5, "zero": 8, "hole": 8, "trim": 8, "flush": 11}
