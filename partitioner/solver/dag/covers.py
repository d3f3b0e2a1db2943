"""A lower bound from covering: where machines hold all units, the units' prices are at most what the machines earn.

For any prices of units, let a kind of machine earn at most A(T) with loads up to T: no placement has loads up to T if
the sum of all prices exceeds that of A(T) over machines. Column generation (Gilmore and Gomory, "A linear programming
approach to the cutting-stock problem", 1961) finds good prices; :mod:`.frontier` finds A(T) exactly, for all T at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from partitioner.solver.dag.combining import Column, completed, load_of
from partitioner.solver.dag.frontier import Pricing, pricing
from partitioner.solver.dag.units import Units

if TYPE_CHECKING:
    from ortools.linear_solver import pywraplp

_CELLS = 12_000_000
"""Of a dynamic programme's table, over all steps: about a tenth of a second."""
_SMOOTH = 0.9
"""Of the prices: the part kept from the best so far (Wentges, "Weighted Dantzig-Wolfe decomposition", 1997)."""
_FADING = 0.9
"""Of that part, with each price that was no better (after Pessoa et al., "Automation and combination of linear
programming based stabilization techniques in column generation", 2018)."""

_CLASSES = 4
"""Sets of heaviest units that are tried as what machines must cover."""
_ROUNDS = 40
"""With one target, before another is tried."""

Prices = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One round: a lower bound, contents that a machine could have, and the cells of tables that it took.

    ``dive`` makes a start for a search of the best prices: machine after machine takes what earns most of what is left.
    """

    bound: int
    columns: tuple[Column, ...]
    cells: int
    dive: Callable[[], tuple[int, ...] | None]


def cover_bounds(units: Units, value: int, bound: int, starts: Sequence[Column]) -> Iterator[Step]:
    """Better and better bounds for placements that beat ``value``; none where the graph is too wide."""
    kinds = [kind for kind, entry in enumerate(units.kinds) if entry.machines]
    priced = {kind: found for kind in kinds if (found := pricing(units, kind, value))}
    if len(priced) < len(kinds) or not len(units):
        return
    cover = _Cover(units, priced)
    exact = _Cover(units, {kind: found.exactly() for kind, found in priced.items()})
    best, low, high = bound, bound, value
    for column in starts:
        cover.add(column)
    walk = _Walk(_first_prices(units, kinds))
    target = value - 1
    while high - low > 1:
        master = _Master(units, cover.columns(target))
        for _ in range(_ROUNDS):
            part, duals = master.solve()
            if part <= 1 + 1e-7:
                high = target
                break
            news: list[Column] = []
            for prices in walk.next(duals):
                reached, columns, cells = cover.price(prices, target)
                if reached >= value - (value >> 12):
                    reached = max(reached, exact.price(prices, target)[0])
                    cells *= 3
                walk.learn(prices, reached, _coverage(units, columns))
                news += [column for column in columns if cover.add(column) and cover.load(column) <= target]
                best = max(best, reached)
                yield Step(best, columns, cells, partial(cover.dive, walk.center, target))
            if best >= target or (walk.is_stuck and not news):
                low = target
                break
            master.extend(news)
            walk.is_stuck = not news
        low = max(low, best)
        # Prices just below the value serve best where they can be found, nearer to the bound they are found sooner.
        target = (low + high) // 2 if target == high - 1 or high < value else high - 1


def _first_prices(units: Units, kinds: Sequence[int]) -> list[Prices]:
    """The units' times; and the same price for all units with at least some time, where times differ most."""
    times = np.array([float(next((time for kind in kinds if (time := times[kind])), 0)) for times in units.times])
    falling = np.sort(times)[::-1]
    drops = falling[:-1] / np.maximum(falling[1:], 1.0)
    heavy = sorted(np.argsort(-drops[: 2 * len(units.kind_of) + 2], kind="stable")[:_CLASSES])
    found = [times, *((times >= falling[last]) * 1.0 for last in heavy)]
    return [prices / max(prices.sum(), 1.0) for prices in found]


def _coverage(units: Units, columns: Sequence[Column]) -> Prices:
    """How often the best content of each kind, on all of its machines, covers each unit."""
    covered = np.zeros(len(units))
    last = dict(columns)
    for kind, held in last.items():
        covered[list(held)] += units.kinds[kind].machines
    return covered


@dataclass
class _Walk:
    """The prices to try next: between the best so far and the master's, and along a subgradient of the bound."""

    starts: list[Prices]
    best: int = -1
    pace: float = 0.3
    is_stuck: bool = False
    center: Prices = field(default_factory=lambda: np.zeros(0))
    _at: Prices = field(default_factory=lambda: np.zeros(0))
    _covered: Prices = field(default_factory=lambda: np.zeros(0))
    _failures: int = 0
    _misses: int = 0

    def next(self, duals: Prices) -> list[Prices]:
        """Prices that sum up to 1."""
        master = duals / max(duals.sum(), 1e-9)
        if self.best < 0:
            return self.starts
        if self.is_stuck:
            return [master]
        kept = _SMOOTH * _FADING**self._misses
        moved = self._at * np.exp(self.pace * np.clip(1 - self._covered, -2, 2))
        return [moved / moved.sum(), kept * self.center + (1 - kept) * master]

    def learn(self, prices: Prices, reached: int, covered: Prices) -> None:
        """Take what ``prices`` led to."""
        if not len(self._at):
            self._covered = covered
        self._covered = 0.7 * self._covered + 0.3 * covered
        if reached > self.best:
            self.center, self.best, self._failures, self._at = prices, reached, 0, prices
            self._misses = 0
            return
        self._misses += 1
        self._failures += 1
        if self._failures >= 6:
            self.pace, self._failures, self._at = self.pace * 0.7, 0, self.center


@dataclass
class _Cover:
    """Machines' contents so far, and how to find better ones."""

    units: Units
    priced: dict[int, Pricing]
    known: dict[Column, int] = field(default_factory=dict)

    def add(self, column: Column) -> bool:
        """Whether it is new."""
        if column in self.known or not column[1]:
            return False
        self.known[column] = self.load(column)
        return True

    def load(self, column: Column) -> int:
        """Of a machine with this content."""
        return load_of(self.units, column)

    def columns(self, most: int) -> list[Column]:
        """Those with loads up to ``most``."""
        return [column for column, load in self.known.items() if load <= most]

    def price(self, prices: Prices, target: int) -> tuple[int, tuple[Column, ...], int]:
        """The bound of these prices, contents that earn much with loads up to ``target``, and cells of tables."""
        total = max(float(prices.sum()), 1e-12)
        tables, cells = {}, 0
        fewest = min(self.units.kinds[kind].machines for kind in self.priced)
        states = max(found.path.states for found in self.priced.values())
        steps = max(100, min(5000, _CELLS // states))
        profits = [int(price / total * steps * fewest + 0.5) for price in prices]
        columns: list[Column] = []
        for kind, found in self.priced.items():
            cap = -(-sum(profits) // self.units.kinds[kind].machines)
            table = found.least_loads(profits, cap)
            least = np.minimum.accumulate(table[::-1])[::-1].astype(np.int64) * found.grain
            tables[kind] = least
            earned = int(np.searchsorted(least, target, side="right")) - 1
            levels = {earned, earned - max(1, cap // 50), earned - cap // 10}
            columns += [(kind, found.content(int(self._exact(table, level)))) for level in sorted(levels) if level > 0]
            cells += found.path.states * cap
        return self._bound(tables, sum(profits)), tuple(columns), cells

    def dive(self, prices: Prices, most: int) -> tuple[int, ...] | None:
        """A machine for each unit, with loads about ``most`` before what is left over is added."""
        units = self.units
        left = [int(price / max(float(prices.sum()), 1e-12) * 1000 * len(units.kind_of) + 0.5) for price in prices]
        placed = [-1] * len(units)
        for machine, kind in enumerate(units.kind_of):
            found = self.priced[kind]
            cap = max(1, -(-sum(left) // max(1, len(units.kind_of) - machine)))
            table = found.least_loads(left, cap)
            least = np.minimum.accumulate(table[::-1])[::-1].astype(np.int64) * found.grain
            level = max(0, int(np.searchsorted(least, most, side="right")) - 1)
            for unit in found.content(self._exact(table, level)):
                if placed[unit] < 0:
                    placed[unit], left[unit] = machine, 0
        return completed(units, placed)

    @staticmethod
    def _exact(table: npt.NDArray[np.int64], level: int) -> int:
        """The profit from ``level`` on with the least load."""
        return level + int(table[level:].argmin())

    def _bound(self, tables: dict[int, npt.NDArray[np.int64]], total: int) -> int:
        """The least T with which all machines together can earn ``total``."""
        low, high = 0, max(int(table[-1]) for table in tables.values())
        while low < high:
            middle = (low + high) // 2
            earned = sum(
                self.units.kinds[kind].machines * (int(np.searchsorted(table, middle, side="right")) - 1)
                for kind, table in tables.items()
            )
            if earned >= total:
                high = middle
            else:
                low = middle + 1
        return low


class _Master:
    """The linear programme over known columns: the part of each kind's machines that covers all units."""

    def __init__(self, units: Units, columns: Sequence[Column]) -> None:
        from ortools.linear_solver import pywraplp

        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        endless = self._solver.infinity()
        self._part = self._solver.NumVar(0, endless, "part")
        self._rows = [self._solver.Constraint(1, endless) for _ in range(len(units))]
        self._limits: list[pywraplp.Constraint] = []
        for entry in units.kinds:
            limit = self._solver.Constraint(-endless, 0)
            limit.SetCoefficient(self._part, -entry.machines)
            self._limits.append(limit)
        fewest = min(entry.machines for entry in units.kinds if entry.machines)
        objective = self._solver.Objective()
        objective.SetCoefficient(self._part, 1)
        for row in self._rows:
            missing = self._solver.NumVar(0, endless, "")
            row.SetCoefficient(missing, 1)
            objective.SetCoefficient(missing, 1 / fewest)
        objective.SetMinimization()
        self.extend(columns)

    def extend(self, columns: Sequence[Column]) -> None:
        """Add columns."""
        for kind, held in columns:
            used = self._solver.NumVar(0, self._solver.infinity(), "")
            self._limits[kind].SetCoefficient(used, 1)
            for unit in held:
                self._rows[unit].SetCoefficient(used, 1)

    def solve(self) -> tuple[float, Prices]:
        """The objective, and the price of each unit."""
        self._solver.Solve()
        duals = np.array([max(0.0, row.dual_value()) for row in self._rows])
        return self._solver.Objective().Value(), duals
