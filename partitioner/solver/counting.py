"""What no placement does better than, by counting: arithmetic that knows no search, so that it is proof by itself.

Each bound forgets most of the problem: where items lie, which of them follow each other, and what rules say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

from ir.objective import Objective
from partitioner.solver.dag.units import Classes
from partitioner.solver.problem import Curve, Problem, Wafer
from partitioner.solver.score import MOST_USERS, least_slowest, least_time

Kept = Mapping[Objective, int]
"""Values of earlier objectives, which a placement must reach too."""
NOTHING_KEPT: Kept = MappingProxyType({})


def counting_bound(problem: Problem, objective: Objective, kept: Kept = NOTHING_KEPT) -> int:
    """What no placement does better than in ``objective``, of those that reach ``kept``."""
    return _BOUNDS[objective](problem, kept)


def counted_out(problem: Problem) -> tuple[str, ...]:
    """Counts that no placement can meet."""
    tiles = [wafer.tiles for wafer in problem.wafers]
    sizes = [wafer.bytes for wafer in problem.wafers]
    arguments = {
        "a block is larger than a wafer": any(
            item.tiles > max(tiles) or item.bytes > max(sizes) for item in problem.items
        ),
        "the blocks need more tiles than all wafers have": sum(item.tiles for item in problem.items) > sum(tiles),
        "the blocks need more bytes than all wafers have": sum(item.bytes for item in problem.items) > sum(sizes),
    }
    return tuple(argument for argument, holds in arguments.items() if holds)


def _machines(problem: Problem, kept: Kept) -> int:
    """So many of the largest wafers hold all tiles, and all bytes; items over half of the largest share none."""
    most = max(wafer.tiles for wafer in problem.wafers)
    return max(
        1,
        _fewest([item.tiles for item in problem.items], [wafer.tiles for wafer in problem.wafers]),
        _fewest([item.bytes for item in problem.items], _bytes(problem, kept)),
        sum(2 * item.tiles > most for item in problem.items),
        sum(2 * item.bytes > max(_bytes(problem, kept)) for item in problem.items),
    )


def _bytes(problem: Problem, kept: Kept) -> list[int]:
    return [min(wafer.bytes, kept.get(Objective.BALANCE, wafer.bytes)) for wafer in problem.wafers]


def _fewest(needs: Sequence[int], offers: Sequence[int]) -> int:
    """How many of ``offers``, the largest first, the sum of ``needs`` takes; all, if they do not do."""
    total = sum(needs)
    held = accumulate(sorted(offers, reverse=True))
    return next((number for number, reached in enumerate(held, start=1) if reached >= total), len(offers))


def _usable(problem: Problem, kept: Kept) -> list[Wafer]:
    """Wafers that can hold something; the largest of them, where a number is kept."""
    least = min(item.tiles for item in problem.items)
    usable = sorted((wafer for wafer in problem.wafers if wafer.tiles >= least), key=lambda wafer: -wafer.tiles)
    return usable[: kept.get(Objective.MACHINES, len(usable))] or [problem.wafers[0]]


def _balance(problem: Problem, kept: Kept) -> int:
    """The largest item; and the mean, as far as wafers can hold that."""
    usable = _usable(problem, kept)
    sizes = sorted(wafer.bytes for wafer in usable)
    if Objective.MACHINES in kept:  # the largest by bytes need not be those by tiles
        sizes = sorted(wafer.bytes for wafer in problem.wafers)[-len(usable) :]
    left = sum(item.bytes for item in problem.items)
    mean = 0
    for number, size in enumerate(sizes):
        mean = -(-left // (len(sizes) - number))
        if mean <= size:
            break
        left -= size
    return max(mean, max(item.bytes for item in problem.items))


def _traffic(problem: Problem, kept: Kept) -> int:
    """Parts of a connected graph on different wafers are joined by as many values as there are wafers but one."""
    components = Classes(len(problem.items))
    for flow in problem.flows:
        components.join((flow.source, *flow.targets))
    joined = max(0, _machines(problem, kept) - len(set(components.labels())))
    cheapest = min((1, *problem.link_cost.values()))
    sent = sorted(flow.bytes_per_token for flow in problem.flows for _ in flow.targets)
    return cheapest * sum(sent[:joined])


def _fastest(problem: Problem, curves: Sequence[Curve]) -> list[Curve]:
    """Curves that are above none of those on the wafers. Rounded curves of different speeds may cross."""
    speeds = {wafer.slowness_permille for wafer in problem.wafers if wafer.tiles or len(problem.wafers) == 1}
    slowness = min(speeds)
    if len(speeds) == 1:
        return [curve.slowed(slowness) for curve in curves]
    return [
        Curve(
            curve.time_fs * slowness // 1000,
            tuple((tiles, -(-saved * slowness // 1000)) for tiles, saved in curve.drops),
        )
        for curve in curves
    ]


def _spare(problem: Problem, kept: Kept) -> int:
    """Tiles beyond those needed, as if all wafers were one."""
    offered = sum(wafer.tiles for wafer in _usable(problem, kept))
    return max(0, offered - sum(item.tiles for item in problem.items))


def _alone(problem: Problem, curves: Sequence[Curve]) -> list[int]:
    """The time of each with a wafer of its own."""
    most = max(wafer.tiles for wafer in problem.wafers)
    return [curve.time(max(0, most - item.tiles)) for item, curve in zip(problem.items, curves, strict=True)]


def _latency(problem: Problem, kept: Kept) -> int:
    """Each item with a wafer of its own, or all of them with the tiles of all wafers; on the fastest."""
    curves = _fastest(problem, [item.latency for item in problem.items])
    work = max(sum(_alone(problem, curves)), least_time(curves, _spare(problem, kept)))
    ways: dict[int, int] = {}
    for flow in problem.flows:
        if flow.source + 1 in flow.targets:
            ways[flow.source] = max(ways.get(flow.source, 0), problem.hand_over_fs + flow.link_fs)
    if len(ways) < len(problem.items) - 1 or not problem.is_chain:
        return work
    cheapest = min((1, *problem.link_cost.values()))
    return work + cheapest * sum(sorted(ways.values())[: _machines(problem, kept) - 1])


def _bottleneck(problem: Problem, kept: Kept) -> int:
    """The slowest alone; all of them with the tiles of all wafers, or by turns on all wafers."""
    if problem.take_turns:
        times = _alone(problem, _fastest(problem, [item.latency for item in problem.items]))
        return max(*times, -(-sum(times) // len(_usable(problem, kept))))
    curves = _fastest(problem, [item.slowest for item in problem.items])
    return max(*_alone(problem, curves), least_slowest(curves, _spare(problem, kept)))


def _room(problem: Problem, kept: Kept) -> int:
    """Users of whom each adds to every item: to one alone on the largest wafer, and to all of them on all wafers."""
    sizes = sorted((wafer.bytes for wafer in problem.wafers), reverse=True)[: len(_usable(problem, kept))]
    most = MOST_USERS
    for items, offered in [([item], sizes[0]) for item in problem.items] + [([*problem.items], sum(sizes))]:
        each = sum(item.state_bytes for item in items)
        if each:
            most = min(most, (offered - sum(item.bytes for item in items)) // each + problem.users)
    return most


_BOUNDS: dict[Objective, Callable[[Problem, Kept], int]] = {
    Objective.MACHINES: _machines,
    Objective.BALANCE: _balance,
    Objective.TRAFFIC: _traffic,
    Objective.LATENCY: _latency,
    Objective.BOTTLENECK: _bottleneck,
    Objective.ROOM: _room,
    Objective.MOVES: lambda _problem, _kept: 0,
}
