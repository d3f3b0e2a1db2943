"""Placing a graph whose machines may hold any nodes: the least largest load, and what no placement can beat.

Cuts of linear orders come first (:mod:`.orders`), then simulated annealing (:mod:`.local_search`) and exact sharing
among few machines (:mod:`.neighbourhoods`) in turn; bounds are of :mod:`.bounds` and :mod:`.covers`, and CP-SAT has the
last word (:mod:`.exact`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from random import Random

from partitioner.solver.dag.bounds import counting_bound, misfits, separation_bound
from partitioner.solver.dag.combining import Column, combine
from partitioner.solver.dag.contiguous import place_contiguous
from partitioner.solver.dag.covers import cover_bounds
from partitioner.solver.dag.exact import allowance
from partitioner.solver.dag.local_search import anneal
from partitioner.solver.dag.neighbourhoods import Tried, share_anew
from partitioner.solver.dag.orders import cut_orders
from partitioner.solver.dag.parts import Found, Part, pack
from partitioner.solver.dag.problem import DagProblem, Placement
from partitioner.solver.dag.units import Units, loads_of, units_of
from partitioner.solver.running import Effort

Progress = Callable[[int, int], None]
"""Called with the best value and the best bound so far whenever one of them improves."""

_SHARE = 0.6
"""Of the time limit, in seconds of one core, what searches may count, so that a machine that others use keeps to it."""
_IN_ORDER = 0.1
"""Of the time limit besides, for the best placement along an order of machines."""
_MOVES_PER_S = 90_000
"""Of annealing. These are rates of one core of a virtual machine with two (CPU time of 2026)."""
_CELLS_PER_S = 120_000_000
"""Of dynamic programmes."""
_STEP_S = 0.015
"""One round of prices takes besides."""
_WORK_PER_S = 0.35
"""CP-SAT's deterministic seconds in one second."""
_PART_S = 0.02
"""A model of it takes besides."""
_WORK_OF_EIGHT_PER_S = 0.1
"""CP-SAT's deterministic seconds in one second for eight workers that take turns."""
_PARTS = (16, 16, 4, 8, 2)
"""Of the gap that annealing aims at, in turn: hardly any of it for a start far off, more of it for a good one."""
_EXACT_BITS = 44
"""Loads up to two to this go to CP-SAT as they are where the whole problem does."""
_LEAST_WALL_S = 10.0
"""On the clock, whatever the limit: the first solver to be loaded may take seconds."""


def place_free(
    problem: DagProblem,
    time_limit_s: float = 60.0,
    progress: Progress = lambda _incumbent, _bound: None,
    starts: Sequence[Sequence[int]] = (),
) -> Placement:
    """The best placement that ``time_limit_s`` allows for, machines being free to hold any nodes.

    Work is counted, so that the answer depends on the arguments alone where a machine does the counted work in time;
    past the limit (and 10 s) on the clock, the best so far is the answer.
    ``starts`` are placements to begin with, a machine for each node. Ctrl-C keeps the best so far.
    """
    units = units_of(problem)
    if reasons := list(misfits(units)):
        return Placement((), 0, 0, "infeasible", "; ".join(reasons))
    if not len(units):
        return Placement((), 0, 0, "optimal", "nothing to place")
    search = _Search(problem, units, time_limit_s, progress)
    try:
        if not search.begin(starts):
            return Placement((), 0, 0, *search.no_start)
        search.run()
    except KeyboardInterrupt:
        pass
    if not search.best:
        return Placement((), 0, search.bound, "unknown", "")
    proof = "; ".join(search.arguments)
    status = "optimal" if search.is_done else "feasible"
    return Placement(units.to_nodes(search.best), search.value, search.bound, status, proof)


@dataclass
class _Search:
    """The best placement and bound so far, and the seconds of counted work that are left."""

    problem: DagProblem
    units: Units
    limit_s: float
    progress: Progress
    best: tuple[int, ...] = ()
    value: int = 1 << 62
    bound: int = 0
    arguments: tuple[str, ...] = ()
    no_start: tuple[str, str] = ("unknown", "")
    contents: dict[Column, None] = field(default_factory=dict)
    dives: list[tuple[int, ...]] = field(default_factory=list)
    tried: Tried = field(default_factory=dict)
    parts: Iterator[int] = field(default_factory=lambda: cycle(_PARTS))
    spent_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    @property
    def is_done(self) -> bool:
        """Whether the value is proven to be the least."""
        return bool(self.best) and self.value == self.bound

    def effort(self, seconds: float, *, presolve: bool = True, workers: int = 1) -> Effort:
        """CP-SAT's share of the counted seconds."""
        rate = _WORK_PER_S if workers == 1 else _WORK_OF_EIGHT_PER_S
        return Effort(max(0.0, seconds) * rate, workers, presolve, self.end_s)

    @property
    def end_s(self) -> float:
        """When the clock, not the count, ends the search."""
        return self.began_s + max(self.limit_s, _LEAST_WALL_S)

    @property
    def is_late(self) -> bool:
        """Whether it does."""
        return time.monotonic() > self.end_s

    @property
    def work_s(self) -> float:
        """All counted seconds."""
        return _SHARE * self.limit_s

    @property
    def left_s(self) -> float:
        """Of the counted seconds."""
        return self.work_s - self.spent_s

    def offer(self, machines: Sequence[int]) -> bool:
        """Take a placement if it is better than the best."""
        value = max(loads_of(self.units, machines))
        if value >= self.value:
            return False
        self.best, self.value = tuple(machines), value
        self._note(machines)
        self.progress(self.value, self.bound)
        return True

    def _note(self, machines: Sequence[int]) -> None:
        held: dict[int, list[int]] = {}
        for unit, machine in enumerate(machines):
            held.setdefault(machine, []).append(unit)
        for machine, content in held.items():
            self.contents[self.units.kind_of[machine], tuple(content)] = None

    def raise_bound(self, bound: int, argument: str) -> None:
        """Take a bound, and the argument that it comes from, if it is better than the best."""
        if bound > self.bound:
            self.bound, self.arguments = bound, (argument,)
            self.progress(self.value, self.bound)

    def begin(self, starts: Sequence[Sequence[int]]) -> bool:
        """First placements; ``False`` where there is none."""
        for start in starts:
            self.offer(self.units.of_nodes(start))
        for found in cut_orders(self.units, self.problem.edges):
            self.offer(found)
        if not self.best:
            packed = pack(self.units, self.effort(self.left_s / 2))
            if not packed.machines:
                self.no_start = (packed.status, packed.proof)
                return False
            self.offer(packed.machines)
        return True

    def run(self) -> None:
        """Bounds that cost little, a first search, bounds from covers, more searches, then CP-SAT."""
        self.raise_bound(counting_bound(self.units), "work over machines")
        self.raise_bound(separation_bound(self.units), "minimum cuts around single groups")
        if not self.is_done:
            self._in_order()
        if self.is_done:
            return
        random = Random(0)  # noqa: S311 - a search, no secret
        for _ in self._steps(random):
            if self.is_done or self.is_late:
                return
        self._solve()

    def _in_order(self) -> None:
        """The best placement along an order of machines, as far as a tenth of the time allows."""
        work = allowance(_IN_ORDER * self.limit_s)
        try:
            found = place_contiguous(replace(self.problem, contiguous=True), work=work)
        except ValueError:  # units that are too fine for it
            return
        if found.machines:
            self.offer(self.units.of_nodes(found.machines))
        if work.interrupted:
            raise KeyboardInterrupt

    def _steps(self, random: Random) -> Iterator[None]:
        """All but the last, with a pause wherever something is better or time has passed."""
        work_s = self.work_s
        yield from self._anneal(self.best, 0.06 * work_s, random)
        prices = self._cover(0.4 * work_s, 0.25 * work_s)
        while self.left_s > 0.25 * work_s and self.value - self.bound > self.value >> 10:
            yield from self._for(0.06 * work_s, prices)
            yield from self._combine(0.03 * work_s)
            for start in self.dives[-3:] or [self.best]:
                yield from self._anneal(start, 0.03 * work_s, random)
            self.dives = []
            yield from self._for(0.12 * work_s, self._share_anew())
        yield from self._for(0.1 * work_s, prices)

    def _for(self, seconds: float, steps: Iterator[None]) -> Iterator[None]:
        """Some of the steps."""
        end = self.spent_s + seconds
        while self.spent_s < end:
            try:
                yield next(steps)
            except StopIteration:
                return

    def _cover(self, seconds: float, patience_s: float) -> Iterator[None]:
        """Prices until they took ``seconds``, or ``patience_s`` since the last better bound."""
        took_s = gained_s = 0.0
        for steps, step in enumerate(cover_bounds(self.units, self.value, self.bound, list(self.contents)), 1):
            step_s = step.cells / _CELLS_PER_S + _STEP_S
            self.spent_s += step_s
            took_s += step_s
            if step.bound > self.bound:
                gained_s = took_s
            self.raise_bound(min(step.bound, self.value), "prices of a cover")
            self.contents.update(dict.fromkeys(step.columns))
            if steps in (3, 20, 60, 120, 200) and (dive := step.dive()):
                self.dives.append(dive)
            yield
            if took_s > min(seconds, gained_s + patience_s):
                return

    def _combine(self, seconds: float) -> Iterator[None]:
        """Contents so far, put together anew."""
        found, work_s = combine(self.units, list(self.contents), self.value - 1, self.effort(seconds))
        self.spent_s += work_s / _WORK_PER_S + _PART_S
        if found:
            self.offer(found)
            self.dives.append(found)
        yield

    def _anneal(self, start: Sequence[int], seconds: float, random: Random) -> Iterator[None]:
        """Hot, with loads as near to the bound as may be reached, then cool, with loads just below the best."""
        moves = int(seconds / 2 * _MOVES_PER_S)
        for hot, target in (
            (0.02, self.bound + (self.value - self.bound) // next(self.parts)),
            (0.003, self.value - self.value // 500),
        ):
            self.spent_s += moves / _MOVES_PER_S
            most = self.value - 1
            target = max(self.bound, min(target, most))
            for found in anneal(self.units, start, target, most, moves, random, hot):
                self.offer(found)
                yield
            start = self.best
            yield

    def _share_anew(self) -> Iterator[None]:
        efforts = [self.effort(part * self.work_s) for part in (0.02, 0.08)]
        for found, work_s in share_anew(self.units, self.best, efforts, self.tried):
            self.spent_s += work_s / _WORK_PER_S + _PART_S
            self.offer(found)
            yield

    def _solve(self) -> None:
        """All machines and units in one model."""
        found = self._whole(self.effort(self.left_s, workers=8))
        if found.machines:
            self.offer(found.machines)
        if found.status == "OPTIMAL" and found.bound == self.value > self.bound:
            second = self._whole(self.effort(self.work_s / 2, workers=8, presolve=False))
            if (second.status, second.bound) == (found.status, found.bound):
                self.raise_bound(found.bound, "CP-SAT; CP-SAT without presolve")
        self.raise_bound(min(found.bound, self.value - 1), "CP-SAT")

    def _whole(self, effort: Effort) -> Found:
        return Part(self.units, self.best, range(len(self.units.kind_of)), 1 << _EXACT_BITS).solve(effort)
