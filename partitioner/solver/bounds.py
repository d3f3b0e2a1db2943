"""Counting: what no placement of a problem does better than, whatever its items' order and its rules."""

from __future__ import annotations

from itertools import accumulate

from ir.objective import Objective
from partitioner.solver.problem import Curve, Problem, Wafer
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
            return _least_latency(problem, wafers)
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


def _least_latency(problem: Problem, wafers: list[Wafer]) -> int:
    """What all items take alone, each on the best of wafers, and on the tiles of all wafers in one."""
    curves = [item.latency for item in problem.items]
    speed, spare = _pool(problem, wafers)
    pooled = least_time([curve.slowed(speed) for curve in curves], spare) if speed else 0
    return max(sum(_alone(problem, wafers, curves)), pooled)


def _least_bottleneck(problem: Problem, wafers: list[Wafer]) -> int:
    """What the slowest item takes alone, and all items on the tiles, or in the time, of all wafers together."""
    if problem.take_turns:
        times = _alone(problem, wafers, [item.latency for item in problem.items])
        return max(0, *times, -(-sum(times) // len(wafers)))
    curves = [item.slowest for item in problem.items]
    speed, spare = _pool(problem, wafers)
    pooled = least_slowest([curve.slowed(speed) for curve in curves], spare) if speed else 0
    return max(pooled, *_alone(problem, wafers, curves))


def _alone(problem: Problem, wafers: list[Wafer], curves: list[Curve]) -> list[int]:
    """What each item takes with all tiles of the wafer that is best for it."""
    kinds = sorted({(wafer.tiles, wafer.slowness_permille) for wafer in wafers})
    return [
        min(curve.slowed(speed).time(max(0, tiles - item.tiles)) for tiles, speed in kinds)
        for item, curve in zip(problem.items, curves, strict=True)
    ]


def _pool(problem: Problem, wafers: list[Wafer]) -> tuple[int, int]:
    """The speed of all wafers, 0 if they differ (rounded curves may cross), and their tiles beyond the fewest."""
    speeds = {wafer.slowness_permille for wafer in wafers}
    spare = sum(wafer.tiles for wafer in wafers) - sum(item.tiles for item in problem.items)
    return (speeds.pop() if len(speeds) == 1 else 0), max(0, spare)
