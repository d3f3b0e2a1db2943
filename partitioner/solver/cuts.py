"""Dynamic programming over cuts: the least sums over runs, in order, for each number of wafers of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ir.objective import Objective
from partitioner.solver.costs import costs
from partitioner.solver.runs import Array, Chain, Thresholds, earliest, furthest

NEVER = 1 << 61
"""More than any sum."""

_AT_ONCE = 1 << 18
"""Runs that are looked at together: so many stay in the processor's cache."""

_MOST_RUNS = 12_000_000
"""Numbers of runs, and of stops in all states, that fit in memory: some 100 MB of each."""

_MOST_STEPS = 3_000_000_000
"""Runs in all states that are looked at: some ten seconds, and as many again to verify what is found."""


@dataclass(frozen=True)
class Bands:
    """Costs of all allowed runs, over stops (the positions where the chain may be cut).

    ``costs`` [objective][kind][end, width - (end - start)], in numbers of stops; ``NEVER`` where there is no run.
    ``reach`` [kind][start]: the furthest stop where a run may end.
    """

    stops: Array
    width: int
    reach: tuple[Array, ...]
    costs: tuple[tuple[Array, ...], ...]


@dataclass(frozen=True)
class Table:
    """The least sums, in order, with which each number of wafers of each kind reaches each stop.

    ``sums`` [objective, state, stop], and ``before`` [objective, state, stop, width], a view of them: those of the
    ``width`` stops before each. ``least``: of the whole chain; ``low`` [state]: the first stop from which the end can
    be reached.
    """

    thresholds: Thresholds
    bands: Bands
    low: tuple[int, ...]
    sums: Array
    before: Array
    least: tuple[int, ...]


@dataclass(frozen=True)
class Paths:
    """All runs that are part of a best way through a table, by the states before and after, in their order.

    ``runs``: (source state, target state, kind, starts, ends), as positions.
    """

    runs: tuple[tuple[int, int, int, Array, Array], ...]


def runs_of(chain: Chain, thresholds: Thresholds) -> tuple[Array, tuple[Array, ...]]:
    """Stops, and [kind][start] the furthest stop where a run may end, both as numbers of stops."""
    stops = np.flatnonzero(chain.cuts(thresholds))
    reach = chain.reach(thresholds)
    return stops, tuple(np.searchsorted(stops, kind[stops]) for kind in reach)


def is_feasible_work(chain: Chain, thresholds: Thresholds) -> bool:
    """Whether a table can be made in reasonable time and memory."""
    stops, reach = runs_of(chain, thresholds)
    width = max(int((kind - np.arange(len(stops))).max()) for kind in reach)
    states = _states(chain, thresholds)
    steps = sum(len(chain.wafers.steps[state]) for state in states)
    return (
        len(stops) * width * len(reach) <= _MOST_RUNS
        and len(stops) * len(states) <= _MOST_RUNS
        and len(stops) * width * steps <= _MOST_STEPS
    )


def coarser(chain: Chain, thresholds: Thresholds, cuts: Sequence[int]) -> Chain:
    """The chain, with fewer places to cut it if a table could not be made else; ``cuts`` among them."""
    coarse, step = chain, 1
    while step < chain.count and not is_feasible_work(coarse, thresholds):
        step *= 2
        stops = {*range(0, chain.count, step), *cuts, chain.count}
        coarse = Chain(chain.problem, chain.cautious, np.array(sorted(stops)))
    return coarse


def _states(chain: Chain, thresholds: Thresholds) -> range:
    return range(sum(used <= thresholds.machines for used in chain.wafers.used))


def bands(chain: Chain, objectives: Sequence[Objective], thresholds: Thresholds) -> Bands:
    """Costs of all runs within ``thresholds``."""
    stops, reach = runs_of(chain, thresholds)
    number = np.arange(len(stops))
    width = max(1, *(int((kind - number).max()) for kind in reach))
    found: list[list[Array]] = [[] for _ in objectives]
    for kind, ends in zip(chain.wafers.kinds, reach, strict=True):
        counts = ends - number
        starts = np.repeat(number, counts)
        nth = np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts, counts)
        for objective, row in zip(objectives, found, strict=True):
            band = np.full((len(stops), width), NEVER)
            run_costs = costs(chain, objective, kind, stops[starts], stops[starts + nth + 1])
            band[starts + nth + 1, width - 1 - nth] = run_costs
            row.append(band)
    return Bands(stops, width, reach, tuple(map(tuple, found)))


def solve(chain: Chain, objectives: Sequence[Objective], thresholds: Thresholds) -> Table | None:
    """The table of the least sums of ``objectives``, in order; ``None`` if there is no placement.

    Lexicographic vectors add up, so the best of a whole has the best of each part (Bellman).
    """
    stops, reach = runs_of(chain, thresholds)
    last, states = len(stops) - 1, _states(chain, thresholds)
    high = furthest(chain.wafers, reach, thresholds.machines)
    if max(high) < last:
        return None
    low = earliest(chain.wafers, reach, len(states), last)
    made = bands(chain, objectives, thresholds)
    padded = np.full((len(objectives), len(states), made.width + last + 1), NEVER)
    before, sums = np.lib.stride_tricks.sliding_window_view(padded, made.width, axis=2), padded[:, :, made.width :]
    sums[:, 0, 0] = 0
    for target in states[1:]:
        for source, kind in chain.wafers.steps[target]:
            for rows in _rows(low[target], high[target], made.width):
                reached = _cheapest(_ways(made, before[:, source], kind, rows))
                _keep_better(sums[:, target, rows], reached)
    ends = min(tuple(int(part) for part in sums[:, state, last]) for state in states)
    return Table(thresholds, made, tuple(low), sums, before, ends)


def _rows(low: int, high: int, width: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // width)
    for start in range(max(1, low), high + 1, step):
        yield slice(start, min(start + step, high + 1))


def _ways(made: Bands, before: Array, kind: int, rows: slice | Array) -> list[Array]:
    """[objective][row, width]: the sums with which each stop of ``rows`` is reached by each run that ends there."""
    return [sums[rows] + band[kind][rows] for sums, band in zip(before, made.costs, strict=True)]


def _cheapest(ways: list[Array]) -> Array:
    """[objective, row]: the least of each row, by the first objective, then the next."""
    open_ = ways[0]
    least = [open_.min(axis=1)]
    for way in ways[1:]:
        open_ = np.where(open_ == least[-1][:, None], way, 2 * NEVER)
        least.append(open_.min(axis=1))
    found = np.array(least)
    found[:, found[0] >= NEVER] = NEVER
    return found


def _keep_better(held: Array, offered: Array) -> None:
    """Replace those vectors of ``held`` that ``offered`` is better than, in place."""
    better = np.zeros(held.shape[1], bool)
    for has, offers in zip(held[::-1], offered[::-1], strict=True):
        better = (offers < has) | ((offers == has) & better)
    held[:, better] = offered[:, better]


def best_paths(chain: Chain, table: Table) -> Paths:
    """All runs of all ways that have the table's least sums."""
    last = len(table.bands.stops) - 1
    marked = [np.zeros(last + 1, bool) for _ in table.low]
    for state, sums in enumerate(table.sums[:, :, last].T.tolist()):
        marked[state][last] = tuple(sums) == table.least
    found = []
    for target in reversed(range(1, len(marked))):
        rows = np.flatnonzero(marked[target])
        for source, kind in chain.wafers.steps[target] if len(rows) else ():
            fits = np.ones((len(rows), table.bands.width), bool)
            for way, sums in zip(_ways(table.bands, table.before[:, source], kind, rows), table.sums, strict=True):
                fits &= (way == sums[target, rows][:, None]) & (way < NEVER)
            row, column = np.nonzero(fits)
            if len(row):
                ends = rows[row]
                starts = ends - table.bands.width + column
                marked[source][starts] = True
                found.append((source, target, kind, table.bands.stops[starts], table.bands.stops[ends]))
    return Paths(tuple(reversed(found)))


def within(chain: Chain, paths: Paths, thresholds: Thresholds) -> Paths | None:
    """The ways of ``paths`` that keep to ``thresholds``, without runs that are part of none; ``None`` if none does."""
    reach, allowed = chain.reach(thresholds), chain.cuts(thresholds)
    on_from: dict[int, npt.NDArray[np.bool_]] = {0: np.arange(chain.count + 1) == 0}
    kept = []
    for source, target, kind, starts, ends in paths.runs:
        if source not in on_from or chain.wafers.used[target] > thresholds.machines:
            continue
        fits = on_from[source][starts] & (ends <= reach[kind][starts]) & allowed[ends]
        on_from.setdefault(target, np.zeros(chain.count + 1, bool))[ends[fits]] = True
        kept.append((source, target, kind, starts[fits], ends[fits]))
    ends_at = {state: np.zeros(chain.count + 1, bool) for state in on_from}
    for state, on in on_from.items():
        ends_at[state][-1] = on[-1]
    back = []
    for source, target, kind, starts, ends in reversed(kept):
        fits = ends_at[target][ends]
        if fits.any():
            ends_at[source][starts[fits]] = True
            back.append((source, target, kind, starts[fits], ends[fits]))
    return Paths(tuple(reversed(back))) if back else None


def one_of(chain: Chain, paths: Paths) -> list[tuple[int, int, int]]:
    """One way of ``paths``, of the fewest wafers: (start, end, kind) of each run."""
    into: dict[int, list[tuple[int, int, int, Array, Array]]] = {}
    for run in paths.runs:
        into.setdefault(run[1], []).append(run)
    state = min(target for target, runs in into.items() if any(chain.count in run[4] for run in runs))
    position, way = chain.count, []
    while position:
        source, _, kind, starts, ends = next(run for run in into[state] if position in run[4])
        start = int(starts[np.flatnonzero(ends == position)[0]])
        way.append((start, position, kind))
        state, position = source, start
    return way[::-1]


def fewest_wafers(chain: Chain, paths: Paths) -> int:
    """Wafers in use on the way of ``paths`` that uses the fewest."""
    return min(chain.wafers.used[target] for _, target, _, _, ends in paths.runs if (ends == chain.count).any())
