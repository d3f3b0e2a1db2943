"""Counting: what no placement of a problem does better than, whatever its items' order and its rules."""

from __future__ import annotations

from itertools import accumulate

from ir.objective import Objective
from partitioner.solver.problem import Problem, Wafer
from partitioner.solver.score import MOST_USERS, least_slowest, least_time


def counted(problem: Problem, objective: Objective) -> int:
    """A bound for ``objective``: the mean over wafers, the largest item, or all wafers' tiles in one."""
    wafers = [wafer for wafer in problem.wafers if wafer.tiles]
    if not wafers or not problem.items:
        return MOST_USERS if objective.is_maximum else 0
    match objective:
        case Objective.BALANCE:
            total, used = sum(item.bytes for item in problem.items), min(len(wafers), len(problem.items))
            return max(-(-total // used), max(item.bytes for item in problem.items))
        case Objective.MACHINES:
            return max(_fewest(problem, wafers, "tiles"), _fewest(problem, wafers, "bytes"))
        case Objective.ROOM:
            return _most_users(problem, wafers)
        case Objective.BOTTLENECK:
            return _least_bottleneck(problem, wafers)
        case Objective.LATENCY:
            fastest = min(wafer.slowness_permille for wafer in wafers)
            curves = [item.latency.slowed(fastest) for item in problem.items]
            spare = sum(wafer.tiles for wafer in wafers) - sum(item.tiles for item in problem.items)
            return least_time(curves, max(0, spare))
        case _:
            return 0


def _fewest(problem: Problem, wafers: list[Wafer], what: str) -> int:
    """Of the largest wafers, as many as have so much together as all items need."""
    needed = sum(getattr(item, what) for item in problem.items)
    offered = accumulate(sorted((int(getattr(wafer, what)) for wafer in wafers), reverse=True))
    return 1 + sum(1 for so_many in offered if so_many < needed)


def _most_users(problem: Problem, wafers: list[Wafer]) -> int:
    each = sum(item.state_bytes for item in problem.items)
    fixed = sum(item.bytes for item in problem.items) - each * problem.users
    return min(MOST_USERS, (sum(wafer.bytes for wafer in wafers) - fixed) // each) if each else MOST_USERS


def _least_bottleneck(problem: Problem, wafers: list[Wafer]) -> int:
    """What the slowest item takes alone on the best of wafers, and what all take that share the tiles of all wafers."""
    fastest, tiles = min(wafer.slowness_permille for wafer in wafers), max(wafer.tiles for wafer in wafers)
    curves = [(item.latency if problem.take_turns else item.slowest).slowed(fastest).time for item in problem.items]
    alone = [time(max(0, tiles - item.tiles)) for time, item in zip(curves, problem.items, strict=True)]
    if problem.take_turns:
        return max(0, *alone, -(-sum(alone) // len(wafers)))
    spare = sum(wafer.tiles for wafer in wafers) - sum(item.tiles for item in problem.items)
    return max(0, *alone, least_slowest([item.slowest.slowed(fastest) for item in problem.items], max(0, spare)))
