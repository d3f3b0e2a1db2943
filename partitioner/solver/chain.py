"""Exact answers for chains: contiguous runs of items on wafers in pipeline order, optimal with proof.

Objectives of two sorts take turns. What a placement is at its worst (bytes of the fullest wafer, the bottleneck, room
for users) and the number of wafers are thresholds on what runs may be: whether there is a placement within them is
decided by filling wafer after wafer as far as possible, and the best threshold is found by bisection (parametric
search; Pinar and Aykanat, "Fast optimal load balancing algorithms for 1D partitioning", 2004). What adds up over runs
(traffic, latency) is found by dynamic programming over cuts, for vectors in lexicographic order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ir.objective import Objective
from partitioner.solver.costs import SUMS
from partitioner.solver.cuts import Paths, best_paths, fewest_wafers, one_of, solve, within
from partitioner.solver.filling import bottleneck, counting_bound, fill, least_traffic, smallest_bottleneck, traffic
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.runs import Chain, Thresholds, furthest
from partitioner.solver.score import MOST_USERS, faults, score

__all__ = [
    "Runs",
    "best_runs",
    "bottleneck",
    "counting_bound",
    "fill",
    "least_traffic",
    "smallest_bottleneck",
    "traffic",
]


@dataclass(frozen=True, slots=True)
class Runs:
    """Contiguous runs of items, one on each wafer in use.

    ``values`` of the objectives that were asked for; ``proofs``: two arguments of different kinds that no placement has
    a better one, given the values before it; empty where that is not known.
    """

    assignment: Assignment
    values: tuple[int, ...]
    proofs: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What the search holds of a placement's best values so far; ``paths`` if sums are among them."""

    thresholds: Thresholds
    values: tuple[int, ...] = ()
    sums: tuple[Objective, ...] = ()
    paths: Paths | None = None


def best_runs(problem: Problem, objectives: Sequence[Objective]) -> Runs | None:
    """The best contiguous runs by the first of ``objectives``, of these the best by the second, and so on.

    They are the best of all placements of a chain on wafers told apart by size and speed alone. Otherwise they are a
    placement like another, without proof. ``None``: there are no such runs, or they break a rule of the user.
    """
    options = []
    for cautious in (False, True):
        chain = Chain(problem, cautious)
        found = _search(chain, objectives)
        if found is None:
            return None
        assignment = _assignment(chain, found)
        if faults(problem, assignment):
            return None
        values = tuple(score(problem, assignment, objective) for objective in objectives)
        options.append(Runs(assignment, values, ("",) * len(objectives)))
        if values == found.values:
            break  # what several links might share decides nothing
    return min(
        options, key=lambda runs: [-v if o.is_maximum else v for o, v in zip(objectives, runs.values, strict=True)]
    )


def _search(chain: Chain, objectives: Sequence[Objective]) -> _Found | None:
    if not chain.wafers.kinds or not chain.count:
        return None
    found = _Found(Thresholds(max(chain.wafers.used)))
    if not _fits(chain, found, found.thresholds):
        return None
    for objective in objectives:
        found = _with_sum(chain, found, objective) if objective in SUMS else _with_threshold(chain, found, objective)
    return found


def _with_sum(chain: Chain, found: _Found, objective: Objective) -> _Found:
    sums = (*found.sums, objective)
    table = solve(chain, sums, found.thresholds)
    assert table is not None, "there was a placement before"
    return replace(found, values=(*found.values, table.least[-1]), sums=sums, paths=best_paths(chain, table))


def _with_threshold(chain: Chain, found: _Found, objective: Objective) -> _Found:
    if objective is Objective.MACHINES:
        value = fewest_wafers(chain, found.paths) if found.paths else _fewest(chain, found.thresholds)
    else:
        low, high = _range(chain, objective)
        key = _least(low, high, lambda key: _fits(chain, found, _at(found.thresholds, objective, key)))
        value = MOST_USERS - key if objective is Objective.ROOM else key
    thresholds = replace(found.thresholds, **{objective.value: value})
    paths = within(chain, found.paths, thresholds) if found.paths else None
    return replace(found, thresholds=thresholds, values=(*found.values, value), paths=paths)


def _at(thresholds: Thresholds, objective: Objective, key: int) -> Thresholds:
    """``thresholds`` with one more, by a number that is less the better it is."""
    return replace(thresholds, **{objective.value: MOST_USERS - key if objective is Objective.ROOM else key})


def _range(chain: Chain, objective: Objective) -> tuple[int, int]:
    items, wafers = chain.problem.items, chain.wafers.kinds
    if objective is Objective.ROOM:
        return 0, MOST_USERS
    if objective is Objective.BALANCE:
        return max(item.bytes for item in items), sum(item.bytes for item in items)
    slowest = max(
        sum(
            max(
                item.latency.slowed(kind.slowness_permille).time_fs, item.slowest.slowed(kind.slowness_permille).time_fs
            )
            for item in items
        )
        for kind in wafers
    )
    return 0, slowest + int(chain.held_fs.max())


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number for which ``holds``, which it does for ``high`` and for all from some number on."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _fits(chain: Chain, found: _Found, thresholds: Thresholds) -> bool:
    """Whether there is a placement within ``thresholds`` that is as good as ``found``."""
    if found.paths:
        return within(chain, found.paths, thresholds) is not None
    return max(furthest(chain.wafers, chain.reach(thresholds), thresholds.machines)) == chain.count


def _fewest(chain: Chain, thresholds: Thresholds) -> int:
    reached = furthest(chain.wafers, chain.reach(thresholds), thresholds.machines)
    return chain.wafers.used[reached.index(chain.count)]


def _assignment(chain: Chain, found: _Found) -> Assignment:
    """One placement of those found; wafers of a kind in the order of their numbers."""
    way = one_of(chain, found.paths) if found.paths else _filled(chain, found.thresholds)
    unused = [iter(members) for members in chain.wafers.members]
    assignment: list[int] = []
    for start, end, kind in way:
        assignment += [next(unused[kind])] * (end - start)
    return tuple(assignment)


def _filled(chain: Chain, thresholds: Thresholds) -> list[tuple[int, int, int]]:
    """Wafers filled as far as possible, of the fewest: (start, end, kind) of each run."""
    reach = chain.reach(thresholds)
    reached = furthest(chain.wafers, reach, thresholds.machines)
    state, way = reached.index(chain.count), []
    while state:
        source, kind = next(
            step for step in chain.wafers.steps[state] if reach[step[1]][reached[step[0]]] == reached[state]
        )
        way.append((reached[source], reached[state], kind))
        state = source
    return way[::-1]
