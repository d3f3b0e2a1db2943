"""Placing and laying out in turn: what the floor planner cannot lay out on a wafer is not put there again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ir.diagnostics import Diagnostic, InfeasibleError, TimeLimitError
from ir.objective import Objective
from ir.plan import PlacedBlock, Score
from partitioner.floorplan.wafers import FloorPlanner, TooTight
from partitioner.former import Placer
from partitioner.problem import Copy
from partitioner.solver.counting import counting_bound
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import Incumbent, Solution, place
from partitioner.solver.problem import Problem
from partitioner.solver.score import by_wafer, score

_MOST_ROUNDS = 20
Progress = Callable[[str | Incumbent], None]
"""Called with a word on what begins now, and with each better placement."""


def place_and_lay_out(
    problem: Problem,
    planner: FloorPlanner,
    objectives: Sequence[Objective],
    limits: Limits,
    progress: Progress,
    placer: Placer = place,
) -> tuple[Solution, list[PlacedBlock]]:
    """A placement, as ``placer`` finds it, and its regions, in the model's order; bounds are those of the problem as it
    was given.

    Raises:
        InfeasibleError: W0401, no placement exists.
        TimeLimitError: W0402 or W0403, none was found, or none that could be laid out.
    """
    blocks = sum(len(item.blocks) for item in problem.items)
    first: tuple[Score, ...] | None = None
    given = problem
    for _ in range(_MOST_ROUNDS):
        progress(f"placing {blocks} blocks on {len(problem.wafers)} wafers")
        placed = partial(placer, problem, objectives, limits, progress)
        solution = _place_or_give_up(placed, problem, is_first=first is None)
        first = first or solution.scores
        progress("laying out tiles")
        regions = planner.lay_out(_by_wafer(problem, solution))
        if not isinstance(regions, TooTight):
            return replace(solution, scores=_proven(given, solution, first)), regions
        misfits = [i for i, wafer in enumerate(solution.assignment) if wafer == regions.wafer]
        misfits = fewest_misfits(problem, planner, misfits, regions.wafer)
        problem = _kept_apart(problem, planner, misfits, regions.wafer)
    facts = {"placements_tried": _MOST_ROUNDS}
    raise TimeLimitError(Diagnostic("W0403", "no placement tried could be laid out in tiles", facts=facts))


def _proven(problem: Problem, solution: Solution, first: Sequence[Score]) -> tuple[Score, ...]:
    """What ``solution`` is worth in the problem as it was given, for which ``first`` are the scores that were found.

    Wafers may have been given fewer tiles since, on which all would take longer. That the floor planner fails on a set
    of blocks proves nothing, so what was proven while such sets were kept apart is forgotten, but for counts. A bound
    that stands on values of earlier objectives needs those values.
    """
    kept: list[Score] = []
    for best in first:
        value = score(problem, solution.assignment, best.objective)
        if all(earlier.value == other.value for earlier, other in zip(kept, first, strict=False)):
            bound, proof = best.bound, best.proof if value == best.value else ""
        else:
            bound = counting_bound(problem, best.objective, {earlier.objective: earlier.value for earlier in kept})
            proof = "counting bound" if value == bound else ""
        kept.append(Score(best.objective, value, bound, proof))
    return tuple(kept)


def _place_or_give_up(placer: Callable[[], Solution], problem: Problem, *, is_first: bool) -> Solution:
    """What ``placer`` finds; where only our own floor planner stands in the way, infeasible is too strong a word."""
    try:
        return placer()
    except InfeasibleError:
        if is_first:
            raise
        facts = {"combinations_kept_apart": len(problem.misfits)}
        help_ = ("the bytes fit, but not as rectangles of tiles: one more system, or less context, gives room",)
        raise TimeLimitError(
            Diagnostic("W0403", "no placement tried could be laid out in tiles", facts=facts, help=help_)
        ) from None


def fewest_misfits(problem: Problem, planner: FloorPlanner, misfits: Sequence[int], wafer: int) -> list[int]:
    """A part of ``misfits`` that still does not fit on ``wafer``, with none to spare."""
    kept = list(misfits)
    for item in misfits:
        rest = [other for other in kept if other != item]
        if not planner.fits(_copies(problem, rest), planner.mesh(wafer)):
            kept = rest
    return kept


def _kept_apart(problem: Problem, planner: FloorPlanner, misfits: Sequence[int], wafer: int) -> Problem:
    """The problem in which ``misfits``, which do not fit on ``wafer`` together, are never put there again.

    What fits on no other wafer either is kept apart everywhere. Else the wafers that are too small for it, of those
    with the mesh of ``wafer``, offer fewer tiles than it counts.
    """
    blocks, mesh = _copies(problem, misfits), planner.mesh(wafer)
    meshes = {planner.mesh(other) for other, offered in enumerate(problem.wafers) if offered.tiles}
    if not any(planner.fits(blocks, other) for other in sorted(meshes - {mesh})):
        kinds = tuple(sorted(problem.items[item].alike for item in misfits))
        return replace(problem, misfits=(*problem.misfits, kinds))
    most = sum(problem.items[item].tiles for item in misfits) - 1
    wafers = (
        replace(offered, tiles=min(offered.tiles, most)) if planner.mesh(other) == mesh else offered
        for other, offered in enumerate(problem.wafers)
    )
    return replace(problem, wafers=tuple(wafers))


def _by_wafer(problem: Problem, solution: Solution) -> list[list[Copy]]:
    """The copies of blocks on each wafer, by its number."""
    held = by_wafer(solution.assignment)
    return [_copies(problem, held.get(wafer, ())) for wafer in range(len(problem.wafers))]


def _copies(problem: Problem, items: Sequence[int]) -> list[Copy]:
    """The blocks of ``items`` (indices), each with the number of its copy and how many there are."""
    copies = Counter(block for item in problem.items for block in item.blocks)
    return [Copy(block, problem.items[i].copy, copies[block]) for i in items for block in problem.items[i].blocks]
