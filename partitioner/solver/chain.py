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
from partitioner.solver.costs import SUMS, is_countable
from partitioner.solver.cuts import Paths, best_paths, coarser, fewest_wafers, one_of, solve, within
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.proofs import proof_of_sum, proof_of_threshold, why_nothing_fits
from partitioner.solver.runs import Chain, Thresholds, furthest
from partitioner.solver.score import MOST_USERS, faults, score

_UNKNOWN = -1
"""Value of sums that are too large to be searched."""


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
    """What the search holds of the best values so far: ``thresholds``; ``paths``, all with the ``least`` ``sums``."""

    chain: Chain
    thresholds: Thresholds
    objectives: tuple[Objective, ...] = ()
    values: tuple[int, ...] = ()
    proofs: tuple[str, ...] = ()
    sums: tuple[Objective, ...] = ()
    paths: Paths | None = None

    @property
    def kept(self) -> dict[Objective, int]:
        """The values so far."""
        return dict(zip(self.objectives, self.values, strict=True))

    def then(self, objective: Objective, value: int, proof: str) -> _Found:
        """With one value more."""
        objectives, values, proofs = (*self.objectives, objective), (*self.values, value), (*self.proofs, proof)
        return replace(self, objectives=objectives, values=values, proofs=proofs)


def best_runs(problem: Problem, objectives: Sequence[Objective]) -> Runs | None:
    """The best contiguous runs by the first of ``objectives``, of these the best by the second, and so on.

    They are the best of all placements of a chain on wafers told apart by size and speed alone. Otherwise they are a
    placement like another, without proof. ``None``: there are no such runs, or they break a rule of the user.
    """
    found = _search(Chain(problem), objectives)
    if found is None:
        return None
    runs = _runs(found, found, objectives)
    if runs.values != found.values and problem.is_plain:
        # Values that skip items share links in a way that depends on several cuts, which was left out of account.
        other = _search(Chain(problem, cautious=True), objectives)
        runs = min(runs, *([_runs(other, found, objectives)] if other else []), key=_rank(objectives))
    return None if faults(problem, runs.assignment) else runs


def why_no_runs(problem: Problem) -> str:
    """Two arguments that a chain has no placement; empty if it has one, or where that is not known."""
    return why_nothing_fits(Chain(problem)) if problem.is_chain else ""


def _rank(objectives: Sequence[Objective]) -> Callable[[Runs], list[int]]:
    signs = [-1 if objective.is_maximum else 1 for objective in objectives]
    return lambda runs: [sign * value for sign, value in zip(signs, runs.values, strict=True)]


def _runs(found: _Found, bounds: _Found, objectives: Sequence[Objective]) -> Runs:
    """The placement found, with the proofs of those of ``bounds`` that it meets."""
    problem = found.chain.problem
    assignment = _assignment(found)
    values = tuple(score(problem, assignment, objective) for objective in objectives)
    met = [values[: n + 1] == bounds.values[: n + 1] for n in range(len(values))]
    return Runs(assignment, values, tuple(proof if so else "" for proof, so in zip(bounds.proofs, met, strict=True)))


# --- the search -------------------------------------------------------------------------------------------------------


def _search(chain: Chain, objectives: Sequence[Objective]) -> _Found | None:
    if not chain.wafers.kinds or not chain.count:
        return None
    found = _Found(chain, Thresholds(max(chain.wafers.used)))
    if not _fits(found, found.thresholds):
        return None
    for objective in objectives:
        found = _with_sum(found, objective) if objective in SUMS else _with_threshold(found, objective)
    return found


def _with_sum(found: _Found, objective: Objective) -> _Found:
    if not is_countable(found.chain, objective):
        return found.then(objective, _UNKNOWN, "")
    chain = coarser(found.chain, found.thresholds, [start for start, _, _ in _way(found)])
    sums = (*found.sums, objective)
    table = solve(chain, sums, found.thresholds)
    assert table is not None, "there was a placement before"
    found = replace(found, chain=chain, sums=sums, paths=best_paths(chain, table))
    return found.then(objective, table.least[-1], proof_of_sum(chain, table, sums, found.kept))


def _with_threshold(found: _Found, objective: Objective) -> _Found:
    if objective is Objective.MACHINES:
        value = _fewest(found)
    else:
        key = least(*_range(found.chain, objective), lambda key: _fits(found, _at(found.thresholds, objective, key)))
        value = MOST_USERS - key if objective is Objective.ROOM else key
    proof = proof_of_threshold(found.chain, objective, value, found.thresholds, found.sums, found.kept)
    thresholds = replace(found.thresholds, **{objective.value: value})
    paths = within(found.chain, found.paths, thresholds) if found.paths else None
    return replace(found, thresholds=thresholds, paths=paths).then(objective, value, proof)


def _at(thresholds: Thresholds, objective: Objective, key: int) -> Thresholds:
    """``thresholds`` with one more, by a number that is less the better it is."""
    return replace(thresholds, **{objective.value: MOST_USERS - key if objective is Objective.ROOM else key})


def _range(chain: Chain, objective: Objective) -> tuple[int, int]:
    """Between which numbers the best threshold lies."""
    items = chain.problem.items
    if objective is Objective.ROOM:
        return 0, MOST_USERS
    if objective is Objective.BALANCE:
        return max(item.bytes for item in items), sum(item.bytes for item in items)
    slowest = max(kind.slowness_permille for kind in chain.wafers.kinds)
    times = [curve.slowed(slowest).time_fs for item in items for curve in (item.latency, item.slowest)]
    return 0, sum(times) + int(chain.held_fs.max())


def least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number for which ``holds``, which it does for ``high`` and for all from some number on."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _fits(found: _Found, thresholds: Thresholds) -> bool:
    """Whether there is a placement within ``thresholds`` that is as good as ``found``."""
    if found.paths:
        return within(found.chain, found.paths, thresholds) is not None
    chain = found.chain
    return max(furthest(chain.wafers, chain.reach(thresholds), thresholds.machines)) == chain.count


def _fewest(found: _Found) -> int:
    if found.paths:
        return fewest_wafers(found.chain, found.paths)
    wafers = found.chain.wafers
    reached = furthest(wafers, found.chain.reach(found.thresholds), found.thresholds.machines)
    return wafers.used[reached.index(found.chain.count)]


# --- placements -------------------------------------------------------------------------------------------------------


def _assignment(found: _Found) -> Assignment:
    """One placement of those found; wafers of a kind in the order of their numbers, but where items lay before."""
    problem, way = found.chain.problem, _way(found)
    members = found.chain.wafers.members
    wafers: dict[int, int] = {}
    for _, wafer, run in sorted(_stays(problem, way), reverse=True):
        if run not in wafers and wafer not in wafers.values() and wafer in members[way[run][2]]:
            wafers[run] = wafer
    unused = [iter(sorted(set(own) - set(wafers.values()))) for own in members]
    assignment: list[int] = []
    for run, (start, end, kind) in enumerate(way):
        assignment += [wafers[run] if run in wafers else next(unused[kind])] * (end - start)
    return tuple(assignment)


def _stays(problem: Problem, way: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(bytes of weights, wafer, run) of the items of each run that lay together on a wafer before."""
    stays: dict[tuple[int, int], int] = {}
    for run, (start, end, _) in enumerate(way):
        for item, was in zip(problem.items[start:end], problem.previous[start:end], strict=False):
            if was is not None:
                stays[was, run] = stays.get((was, run), 0) + item.weight_bytes
    return [(size, wafer, run) for (wafer, run), size in stays.items()]


def _way(found: _Found) -> list[tuple[int, int, int]]:
    """(start, end, kind) of each run of a placement of the fewest wafers."""
    return one_of(found.chain, found.paths) if found.paths else _filled(found.chain, found.thresholds)


def _filled(chain: Chain, thresholds: Thresholds) -> list[tuple[int, int, int]]:
    """Wafers filled as far as possible."""
    reach = chain.reach(thresholds)
    reached = furthest(chain.wafers, reach, thresholds.machines)
    state = reached.index(chain.count)
    way = []
    while state:
        steps = chain.wafers.steps[state]
        source, kind = next(step for step in steps if reach[step[1]][reached[step[0]]] == reached[state])
        way.append((reached[source], reached[state], kind))
        state = source
    return way[::-1]
