# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Formulas on words, turned into lists of array operations that need no new memory.

A bitsliced cipher is one long formula without branches.  Computed with arrays as it is written,
each of its two thousand operations makes a new array, which costs more than the operation.  Here
the formula is computed once with words that only note down what is done to them (:func:`trace`).
From the notes it is known when each intermediate result is needed for the last time, so a few
registers are enough for all, and :meth:`Program.run` does nothing but operations from registers
into registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.crypto.buffers import load_numpy
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qsd.crypto.buffers import Readable, Writable

#: Bytes of a block, which is four words.
BLOCK: Final = 16
#: Bytes of a word.
WORD: Final = 4
#: Lanes that are worked on together: registers of 32 KiB, all of which the second cache holds.
LANES: Final = 8192


class _Step(NamedTuple):
    """One operation: result = left operation right."""

    operation: str
    result: int
    left: int
    right: int
    is_constant: bool  # whether `right` is a number, not the name of a word


class TracedWord:
    """A word that notes down what is done to it; the name tells it from others."""

    __slots__ = ("_notes", "name")

    def __init__(self, notes: list[_Step], name: int) -> None:
        self._notes = notes
        self.name = name

    def _note(self, operation: str, other: TracedWord | int) -> TracedWord:
        constant = isinstance(other, int)
        right = other if isinstance(other, int) else other.name
        # Words that come in have the names before those of results.
        name = self._notes[-1].result + 1 if self._notes else _INPUTS
        self._notes.append(_Step(operation, name, self.name, right, constant))
        return TracedWord(self._notes, name)

    def __xor__(self, other: TracedWord | int) -> TracedWord:
        return self._note("bitwise_xor", other)

    def __and__(self, other: TracedWord | int) -> TracedWord:
        return self._note("bitwise_and", other)

    def __or__(self, other: TracedWord | int) -> TracedWord:
        return self._note("bitwise_or", other)

    def __lshift__(self, count: int) -> TracedWord:
        return self._note("left_shift", count)

    def __rshift__(self, count: int) -> TracedWord:
        return self._note("right_shift", count)


#: Words of a block.
_INPUTS: Final = 4


class Program:
    """A formula for arrays, from four words to four words."""

    __slots__ = ("_bound", "_bound_count", "_np", "_outputs", "_registers", "_steps")

    def __init__(self, steps: list[_Step], outputs: Sequence[int], numpy: Any) -> None:
        self._np = numpy
        self._steps, self._outputs, count = _allocate(steps, outputs)
        self._registers = numpy.zeros((count, LANES), "<u4")
        # The operations bound to registers, for this many lanes.
        self._bound: list[tuple[Callable[[Any, Any, Any], Any], Any, Any, Any]] = []
        self._bound_count = 0

    def run(self, source: Any, target: Any) -> None:
        """Compute; arrays of at most LANES blocks, four words each.  They may be the same."""
        copy = self._np.copyto
        count = len(source)
        if count != self._bound_count:
            self._bind(count)
        copy(self._registers[:_INPUTS, :count], source.T)
        for operation, left, right, result in self._bound:
            operation(left, right, result)
        for index, register in enumerate(self._outputs):
            copy(target[:, index], self._registers[register, :count])

    def _bind(self, count: int) -> None:
        np = self._np
        registers = [register[:count] for register in self._registers]
        word = np.uint32
        self._bound = [
            (
                getattr(np, step.operation),
                registers[step.left],
                word(step.right) if step.is_constant else registers[step.right],
                registers[step.result],
            )
            for step in self._steps
        ]
        self._bound_count = count


def pieces(data: Readable, out: Writable) -> Iterator[tuple[Any, Any]]:
    """Cut whole blocks and the room for results into pairs of arrays, blocks of four words each."""
    np = load_numpy()
    count = len(data) // BLOCK
    source = np.frombuffer(data, "<u4").reshape(count, BLOCK // WORD)
    target = np.frombuffer(out, np.uint8)[: count * BLOCK].view("<u4").reshape(source.shape)
    for start in range(0, count, LANES):
        yield source[start : start + LANES], target[start : start + LANES]


def trace(formula: Callable[[Any], Sequence[Any]], numpy: Any) -> Program:
    """Make a program of a formula.

    Args:
        formula: Takes a tuple of four words and returns four, by operators and numbers only.
        numpy: The module.
    """
    notes: list[_Step] = []
    outputs = formula(tuple(TracedWord(notes, name) for name in range(_INPUTS)))
    return Program(notes, [output.name for output in outputs], numpy)


def _allocate(steps: list[_Step], outputs: Sequence[int]) -> tuple[list[_Step], list[int], int]:
    """Give each result a register; return the steps in terms of them, outputs, their number."""
    last_use = {name: len(steps) for name in outputs}
    for index in reversed(range(len(steps))):
        step = steps[index]
        last_use.setdefault(step.left, index)
        if not step.is_constant:
            last_use.setdefault(step.right, index)
    place = {name: name for name in range(_INPUTS)}
    free: list[int] = []
    count = _INPUTS
    allocated = []
    for index, step in enumerate(steps):
        left = place[step.left]
        right = step.right if step.is_constant else place[step.right]
        # An operation may write over what it reads.
        read = {step.left} if step.is_constant else {step.left, step.right}
        free.extend(place.pop(name) for name in read if last_use[name] == index)
        if free:
            result = free.pop()
        else:
            result, count = count, count + 1
        place[step.result] = result
        allocated.append(_Step(step.operation, result, left, right, step.is_constant))
    return allocated, [place[name] for name in outputs], count
