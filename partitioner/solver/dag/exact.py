"""The exact search for a contiguous placement: where to look, how far, and by which two arguments it is proven.

A limit on the largest load is raised until something is found under it: the nearer it is to the optimum, the fewer
prefixes of the graph can be what some of the machines hold. CP-SAT is loaded only for graphs with too many.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from partitioner.solver.dag.items import ItemGraph, bits, memory_is_loose, merged, weightless
from partitioner.solver.dag.prefixes import (
    OutOfWorkError,
    Stage,
    Table,
    Work,
    all_prefixes,
    best_stages,
    fractional_bound,
    some_prefixes,
    table,
    worst_load,
)
from partitioner.solver.dag.suffixes import all_suffixes, nothing_within
from partitioner.solver.running import Effort

Progress = Callable[[int, int], None]
"""Told the value of the best placement so far, and a lower bound."""


def quiet(_incumbent: int, _bound: int) -> None:
    """Progress that nobody follows."""


MOST_PREFIXES = 300_000
"""A graph with more is not searched through."""
FEW_PREFIXES = 3_000
"""So few are searched through at once; among more, those of a few orders are tried first."""
PAIRS_PER_SECOND = 20_000_000
"""Pairs of prefixes that a second of the time limit buys: about what one core judges."""

LEAST_WALL_S = 10.0
"""On the clock, whatever the limit: to load CP-SAT may take seconds."""
MODEL_SHARE = 0.2
"""CP-SAT's deterministic seconds in one of the time limit: about what keeps to it on one core."""

FROM_THE_FRONT = "a search over prefixes, from the first machine, finds {nothing}"
FROM_THE_BACK = "a search over suffixes, from the last machine, finds {nothing}"
BY_MODEL = "CP-SAT finds {nothing}"
BY_MODEL_AS_IT_IS = "nor does it find any in the model as it is, without presolve"
FLUID = "work that is divided like a fluid takes as long"
LIGHTER = "a search in which what takes no time weighs nothing finds {nothing}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The best placement found as ``(kind, nodes)`` of each machine in order (none: ``value`` is -1).

    ``proofs`` of that none is better, or that there is none; ``bound`` is a lower bound of the value.
    """

    value: int
    stages: tuple[tuple[int, tuple[int, ...]], ...]
    bound: int
    proofs: tuple[str, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether two arguments agree."""
        return len(self.proofs) > 1


Found = tuple[int, tuple[Stage, ...]]
"""The largest load, and the stages that have it."""


def allowance(time_limit_s: float) -> Work:
    """The work that a time limit buys, whatever the clock says."""
    return Work(int(time_limit_s * PAIRS_PER_SECOND), time.monotonic() + max(time_limit_s, LEAST_WALL_S))


def solve(graph: ItemGraph, work: Work, progress: Progress) -> Answer:
    """The best placement of the graph, as far as ``work`` goes."""
    if unable := _unplaceable(graph):
        return Answer(-1, (), 0, unable)
    if memory_is_loose(graph):
        return _search(merged(graph, with_bytes=True), work, progress)
    graph = merged(graph, with_bytes=False)
    if all_prefixes(graph, MOST_PREFIXES) is not None:
        return _search(graph, work, progress)
    return _bracket(graph, work, progress)


def _unplaceable(graph: ItemGraph) -> tuple[str, ...]:
    """Two arguments for that some item finds no machine at all, if so."""
    kinds = [index for index, kind in enumerate(graph.kinds) if kind.machines]
    for item in graph.items:
        limits = [graph.kinds[kind].bytes for kind in kinds if item.times[kind] is not None]
        if all(limit is not None and item.bytes > limit for limit in limits):
            why = f"no kind of machine can run and hold node {item.nodes[0]} and those that must be with it"
            alone = ItemGraph((item,), (0,), (0,), (), graph.kinds)
            if nothing_within(alone, [0, 1], worst_load(alone), allowance(1.0)):
                return why, "a search finds no place for them even where they are alone"
    return ()


def _bracket(graph: ItemGraph, work: Work, progress: Progress) -> Answer:
    """Where memory may bind and there are too many prefixes: items that take no time, held to a neighbour.

    Without their bytes that is a relaxation, with their bytes a restriction; often the two agree. If not, what lies
    between them is left to CP-SAT.
    """
    lower = _search(merged(weightless(graph), with_bytes=False), work, quiet)
    if not lower.stages and lower.is_proven:
        return lower
    upper = _search(merged(graph, with_bytes=True), work, progress)
    if lower.is_proven and lower.value == upper.value:
        return replace(upper, bound=lower.bound, proofs=lower.proofs)
    most = upper.value - 1 if upper.stages else worst_load(graph)
    why = LIGHTER if lower.is_proven else FLUID
    better = _modelled(graph, None, min(lower.bound, most), most, work, why)
    if better.stages:
        return better
    return replace(upper, bound=upper.value if better.is_proven else lower.bound, proofs=better.proofs)


def _search(graph: ItemGraph, work: Work, progress: Progress) -> Answer:
    """The best of all sequences of prefixes, then the second argument for that it is."""
    low = proven = fractional_bound(graph)
    best: Found | None = None
    try:
        prefixes = all_prefixes(graph, MOST_PREFIXES)
        if prefixes is None or len(prefixes) > FEW_PREFIXES:
            best, _ = _raised(table(graph, some_prefixes(graph)), low, worst_load(graph), work)
        if best:
            progress(best[0], low)
        if prefixes is None:
            return _modelled(graph, best, low, best[0] if best else worst_load(graph), work)
        better, proven = _raised(table(graph, prefixes), low, best[0] if best else worst_load(graph), work)
        best = better or best
        if best:
            progress(best[0], proven)
        if best and best[0] == low:
            return _answer(graph, best, low, FROM_THE_FRONT, FLUID)
        return _confirmed(graph, best, low, work)
    except OutOfWorkError:
        return _answer(graph, best, low)
    except KeyboardInterrupt:
        work.interrupt()
        return _answer(graph, best, low)


def _raised(found: Table, low: int, high: int, work: Work) -> tuple[Found | None, int]:
    """The best stages of at most ``high``, if any, and a bound, by limits further and further from ``low``."""
    step = max(1, low // 100)
    least, most = low, min(low + step, high)
    while True:
        best = best_stages(found, least, most, work)
        if best or most == high:
            return best, best[0] if best else high + 1
        step *= 2
        least, most = most + 1, min(low + step, high)


def _confirmed(graph: ItemGraph, best: Found | None, low: int, work: Work) -> Answer:
    """The same from the other end."""
    suffixes = all_suffixes(graph, MOST_PREFIXES)
    most = best[0] - 1 if best else worst_load(graph)
    try:
        if suffixes is not None and nothing_within(graph, suffixes, most, work):
            return _answer(graph, best, best[0] if best else low, FROM_THE_FRONT, FROM_THE_BACK)
    except OutOfWorkError:
        pass
    return _answer(graph, best, low)


def _modelled(graph: ItemGraph, best: Found | None, low: int, most: int, work: Work, why: str = FLUID) -> Answer:
    """The best of at most ``most`` by CP-SAT. Only what a second run confirms, or ``why`` none is below ``low``, counts
    as proven.
    """
    from partitioner.solver.dag.nested import solve_nested

    seconds = MODEL_SHARE * work.pairs / PAIRS_PER_SECOND / 2
    work.pairs //= 2
    effort = Effort(0.6 * seconds, 8, end_s=work.end_s)
    found = solve_nested(graph, low, most, best[1] if best else (), effort)
    if found.stages and (best is None or found.value < best[0]):
        best = found.value, found.stages
    if found.status == "OPTIMAL" and found.value == low:
        return _answer(graph, best, low, BY_MODEL, why)
    if found.status in ("OPTIMAL", "INFEASIBLE"):
        under = most if best is None else best[0] - 1
        again = solve_nested(graph, low, under, (), replace(effort, work_s=0.4 * seconds, presolve=False))
        if again.status == "INFEASIBLE":
            return _answer(graph, best, best[0] if best else low, BY_MODEL, BY_MODEL_AS_IT_IS)
        if again.stages and (best is None or again.value < best[0]):
            best = again.value, again.stages
    return _answer(graph, best, min(found.bound, best[0]) if best else low)


def _answer(graph: ItemGraph, best: Found | None, bound: int, *proofs: str) -> Answer:
    proofs = tuple(proof.format(nothing="nothing better" if best else "none") for proof in proofs)
    if best is None:
        return Answer(-1, (), bound, proofs)
    value, stages = best
    held = ((s.kind, tuple(n for item in bits(s.items) for n in graph.items[item].nodes)) for s in stages)
    return Answer(value, tuple(held), bound, proofs)
