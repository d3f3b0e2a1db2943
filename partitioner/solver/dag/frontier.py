"""The least load of one machine for any profit of what it holds, exactly, on graphs that a narrow frontier sweeps.

A dynamic programme over a linear order of units: the state is what the machine holds of the units that have nets to
come (a path decomposition), and the profit so far. It is the knapsack problem with charges at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from partitioner.solver.dag.units import Net, Units

Loads = npt.NDArray[Any]
"""Integers of 32 bits, or of 64 where nothing is rounded."""
MOST_BITS = 9
"""Units in the frontier, so that states stay few."""


@dataclass(frozen=True)
class Sweep:
    """An order of vertices: the units, then two for each net of more than two pins, whether it holds any and all.

    Attributes:
        order: of the vertices.
        arcs: for each vertex those to and from earlier ones: (holds, lacks, charge), -1 for one that must not be.
        closed: after each vertex, those that no later one asks for.
        states: the sum of states over steps.
    """

    order: tuple[int, ...]
    arcs: tuple[tuple[tuple[int, int, int], ...], ...]
    closed: tuple[tuple[int, ...], ...]
    states: int


def sweep(count: int, nets: Sequence[Net]) -> Sweep | None:
    """An order with a narrow frontier, chosen greedily; ``None`` where it is wider than ``MOST_BITS``."""
    arcs = _arcs(count, nets)
    size = count + 2 * sum(len(pins) > 2 for pins, _ in nets)
    near: list[set[int]] = [set() for _ in range(size)]
    for holds, lacks, _ in arcs:
        near[holds].add(lacks)
        near[lacks].add(holds)
    starts = range(0, count, max(1, count // 4))
    ordered = [found for start in starts if (found := _greedy(near, start))]
    if not ordered:
        return None
    order, closed, states = min(ordered, key=lambda found: found[2])
    place = {vertex: index for index, vertex in enumerate(order)}
    lists: list[list[tuple[int, int, int]]] = [[] for _ in range(size)]
    for arc in arcs:
        lists[max(arc[:2], key=place.__getitem__)].append(arc)
    return Sweep(tuple(order), tuple(tuple(lists[vertex]) for vertex in order), tuple(closed), states)


def _arcs(count: int, nets: Sequence[Net]) -> list[tuple[int, int, int]]:
    arcs, next_vertex = [], count
    for pins, charge in nets:
        if len(pins) == 2:
            arcs += [(pins[0], pins[1], charge), (pins[1], pins[0], charge)]
            continue
        some, every = next_vertex, next_vertex + 1
        next_vertex += 2
        arcs.append((some, every, charge))
        arcs += [arc for pin in pins for arc in ((pin, some, -1), (every, pin, -1))]
    return arcs


def _greedy(near: Sequence[set[int]], start: int) -> tuple[list[int], list[tuple[int, ...]], int] | None:
    """Next the vertex that widens the frontier least; the order, what closes after each, and the sum of states."""
    left = [set(others) for others in near]
    todo, front = set(range(len(near))), set[int]()
    order: list[int] = []
    closed: list[tuple[int, ...]] = []
    states, vertex = 0, start
    while True:
        order.append(vertex)
        todo.discard(vertex)
        front.add(vertex)
        for other in near[vertex]:
            left[other].discard(vertex)
        states += 1 << len(front)
        if len(front) > MOST_BITS:
            return None
        closing = tuple(sorted(other for other in front if not left[other]))
        closed.append(closing)
        front.difference_update(closing)
        if not todo:
            return order, closed, states
        pool = {other for held in front for other in left[held]} or todo
        vertex = min(pool, key=lambda other: (_widening(near, left, front, other), other))


def _widening(near: Sequence[set[int]], left: Sequence[set[int]], front: set[int], vertex: int) -> tuple[int, int]:
    closes = sum(left[other] == {vertex} for other in near[vertex] if other in front)
    return (bool(left[vertex] - front) - closes, -len(near[vertex] & front))


@dataclass
class Pricing:
    """A kind of machine's loads in grains, and the sweep that weighs them."""

    times: tuple[int | None, ...]
    path: Sweep
    grain: int
    bits: int = 32
    _history: list[tuple[int, list[int], npt.NDArray[Any]]] = field(default_factory=list)
    _capped: dict[int, tuple[list[int], npt.NDArray[np.intp]]] = field(default_factory=dict)
    _profits: Sequence[int] = ()

    @property
    def never(self) -> int:
        """More than the sum of all terms of a load; twice that is still an integer of ``bits``."""
        return 1 << (self.bits - 3)

    def exactly(self) -> Pricing:
        """The same without rounding."""
        return Pricing(self.times, self.path, 1, 64)

    def _integer(self, value: int) -> np.signedinteger[Any]:
        return np.int64(value) if self.bits == 64 else np.int32(value)

    def least_loads(self, profits: Sequence[int], cap: int) -> Loads:
        """For each profit up to ``cap`` (at the end: or more) the least load, in grains, each term rounded down."""
        self._history, self._capped, self._profits = [], {}, profits
        front: list[int] = []
        table: Loads = np.full(cap + 1, self.never, np.int64 if self.bits == 64 else np.int32)
        table[0] = 0
        for vertex, arcs, closed in zip(self.path.order, self.path.arcs, self.path.closed, strict=True):
            table = self._with(table, vertex, cap, front)
            front.insert(0, vertex)
            for holds, lacks, charge in arcs:
                self._charge(table, front, holds, lacks, charge)
            for gone in closed:
                axis = front.index(gone)
                front.pop(axis)
                without, within = table.take(0, axis), table.take(1, axis)
                self._history.append((gone, list(front), np.asarray(within < without)))
                table = np.minimum(without, within)
        return table

    def _with(self, table: Loads, vertex: int, cap: int, front: list[int]) -> Loads:
        """The table with ``vertex`` as its first axis."""
        profit, time = (self._profits[vertex], self.times[vertex]) if vertex < len(self.times) else (0, 0)
        if time is None:
            return np.stack([table, np.full_like(table, self.never)])
        within = table + self._integer(time // self.grain)
        profit = min(profit, cap)
        if profit:
            moved = np.full_like(table, self.never)
            moved[..., profit:] = within[..., : cap + 1 - profit]
            last = within[..., cap - profit :]
            self._capped[vertex] = (list(front), last.argmin(-1) + (cap - profit))
            moved[..., cap] = last.min(-1)
            within = moved
        return np.stack([table, within])

    def _charge(self, table: Loads, front: list[int], holds: int, lacks: int, charge: int) -> None:
        where: list[slice | int] = [slice(None)] * len(front)
        where[front.index(holds)], where[front.index(lacks)] = 1, 0
        if charge < 0:
            table[tuple(where)] = self.never
        else:
            table[tuple(where)] += self._integer(charge // self.grain)

    def content(self, profit: int) -> tuple[int, ...]:
        """The units behind the least load of ``profit``, after :meth:`least_loads`."""
        held: dict[int, int] = {}
        chosen = iter(reversed(self._history))
        at = profit
        for vertex, closed in zip(reversed(self.path.order), reversed(self.path.closed), strict=True):
            for _ in closed:
                gone, front, better = next(chosen)
                held[gone] = int(better[(*(held[other] for other in front), at)])
            if held[vertex] and vertex in self._capped:
                front, origins = self._capped[vertex]
                cap = self._history[0][2].shape[-1] - 1
                if at == cap:
                    at = int(origins[tuple(held[other] for other in front)])
                else:
                    at -= self._profits[vertex]
        return tuple(sorted(vertex for vertex, is_in in held.items() if is_in and vertex < len(self.times)))


def pricing(units: Units, kind: int, value: int) -> Pricing | None:
    """How to weigh machines of ``kind``; cheap nets of many units are left out where the frontier were too wide.

    ``value``: the largest load of interest. Loads without some nets are lower ones, so bounds from them hold.
    """
    nets: Sequence[Net] = units.nets if units.kinds[kind].charged else ()
    for share in (1 << 40, 10_000, 3000, 1000, 300, 100):
        kept = [net for net in nets if net[1] * share >= value or (len(net[0]) == 2 and net[1] * share * 10 >= value)]
        path = sweep(len(units), kept)
        if path:
            times = tuple(times[kind] for times in units.times)
            total = sum(time or 0 for time in times) + sum(charge for _, charge in kept) * 2
            return Pricing(times, path, max(1, -(-total // ((1 << 29) - 1))))
    return None
