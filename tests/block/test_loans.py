# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.block import loans
from qsd.block.loans import Loans


class Stream:
    """A borrower whose receiver has taken so many bytes."""

    def __init__(self) -> None:
        self.taken = 0

    def has_delivered(self, position: int) -> bool:
        return self.taken >= position


def test_loans_are_out_until_all_are_returned() -> None:
    book, one, two = Loans(), Stream(), Stream()
    assert not book.are_out()
    book.note(one, 100)
    book.note(one, 200)
    book.note(two, 50)
    one.taken, two.taken = 199, 50
    assert book.are_out()
    one.taken = 200
    assert not book.are_out()


def test_waiting() -> None:
    async def main() -> None:
        book, stream = Loans(), Stream()
        book.note(stream, 1)
        task = TaskOwner("test").spawn(book.wait(), "wait")
        await asyncio.sleep(0.005)
        assert book.suspended
        assert not task.done()
        stream.taken = 1
        await task
        assert book.suspended  # the caller has something to do first
        assert not book.are_out()

    run(main())


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loans, "_PATIENCE", 0.01)

    async def main() -> None:
        book = Loans()
        book.note(Stream(), 1)
        await book.wait()
        assert not book.are_out()

    run(main())
