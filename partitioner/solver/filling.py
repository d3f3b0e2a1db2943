"""Filling equal wafers one after another, in plain Python, for forecasts and levers that ask many times.

Whether a chain fits on k wafers with at most B bytes each is decided by filling wafer after wafer as far as possible:
every limit that holds for a run of items holds for its parts, so filling further never hurts. The least B is found by
bisection. ``chain.py`` does this for every objective, for unequal wafers, and with proof.
"""

from __future__ import annotations

from ir.objective import Objective
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.score import score


def fill(problem: Problem, most_bytes: int) -> Assignment | None:
    """A placement of at most ``most_bytes`` on each wafer, found greedily; ``None`` if a chain has none.

    For problems that are no chain ``None`` proves nothing.
    """
    wafers: list[int] = []
    wafer = used_bytes = used_tiles = 0
    run: set[int] = set()
    has_misfits = bool(problem.misfits)
    for index, item in enumerate(problem.items):
        if (
            item.bytes > most_bytes
            or item.tiles > problem.wafers[0].tiles
            or (has_misfits and problem.holds_misfit((index,)))
        ):
            return None
        run.add(index)
        too_much = used_bytes + item.bytes > most_bytes or used_tiles + item.tiles > problem.wafers[0].tiles
        if too_much or (has_misfits and problem.holds_misfit(run)):
            wafer, used_bytes, used_tiles, run = wafer + 1, 0, 0, {index}
        if wafer == len(problem.wafers):
            return None
        used_bytes += item.bytes
        used_tiles += item.tiles
        wafers.append(wafer)
    return tuple(wafers)


def smallest_bottleneck(problem: Problem) -> tuple[int, Assignment] | None:
    """The least bytes of the fullest wafer over all contiguous placements, and one that reaches it."""
    total = sum(item.bytes for item in problem.items)
    low = max(-(-total // len(problem.wafers)), max(item.bytes for item in problem.items))
    best = fill(problem, total)
    if best is None:
        return None
    high = score(problem, best, Objective.BALANCE)
    while low < high:
        middle = (low + high) // 2
        found = fill(problem, middle)
        if found is None:
            low = middle + 1
        else:
            best, high = found, score(problem, found, Objective.BALANCE)
    return high, best
