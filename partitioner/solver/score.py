"""What a placement is worth, in plain arithmetic: the second half of each objective, which knows no solver.

A placement is an assignment (the wafer of each item). Rules are read off the problem one by one.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from ir.objective import Objective
from ir.rules import RuleKind
from partitioner.solver.problem import Assignment, Curve, Flow, Problem, Restriction

MOST_USERS = 1 << 40
"""Room for users where none of them takes any."""


def score(problem: Problem, assignment: Assignment, objective: Objective) -> int:
    """The value of ``objective``, in its unit, of a placement without faults."""
    return _SCORES[objective](problem, assignment)


def faults(problem: Problem, assignment: Assignment) -> tuple[str, ...]:
    """What forbids the placement, in words; nothing if it is allowed."""
    held = by_wafer(assignment)
    found = [text for wafer, items in sorted(held.items()) for text in _overfull(problem, wafer, items)]
    try:
        pipeline(problem, assignment)
    except CycleError:
        found.append("values flow back along the pipeline")
    found += [rule.text or rule.kind.value for rule in problem.restrictions if _broken(rule, assignment)]
    if not found:
        found += [
            text for objective, limit in problem.thresholds for text in _missed(problem, assignment, objective, limit)
        ]
    return tuple(found)


def by_wafer(assignment: Assignment) -> dict[int, list[int]]:
    """The items of each wafer in use."""
    held: defaultdict[int, list[int]] = defaultdict(list)
    for item, wafer in enumerate(assignment):
        held[wafer].append(item)
    return dict(held)


def pipeline(problem: Problem, assignment: Assignment) -> tuple[int, ...]:
    """The wafers in use, in an order in which values flow on; the one that stays closest to their items' order.

    Raises:
        CycleError: there is none.
    """
    before: defaultdict[int, set[int]] = defaultdict(set)
    for source, target in problem.precedences:
        if assignment[source] != assignment[target]:
            before[assignment[target]].add(assignment[source])
    first = {wafer: items[0] for wafer, items in by_wafer(assignment).items()}
    sorter = TopologicalSorter({wafer: before[wafer] for wafer in first})
    sorter.prepare()
    order: list[int] = []
    ready: list[tuple[int, int]] = []
    while sorter.is_active():
        for wafer in sorter.get_ready():
            heapq.heappush(ready, (first[wafer], wafer))
        _, wafer = heapq.heappop(ready)
        order.append(wafer)
        sorter.done(wafer)
    return tuple(order)


def _overfull(problem: Problem, wafer: int, items: Sequence[int]) -> Iterator[str]:
    if not 0 <= wafer < len(problem.wafers):
        yield f"there is no wafer {wafer}"
        return
    offered = problem.wafers[wafer]
    if sum(problem.items[item].tiles for item in items) > offered.tiles:
        yield f"wafer {wafer} has too few tiles"
    if sum(problem.items[item].bytes for item in items) > offered.bytes:
        yield f"wafer {wafer} has too few bytes"
    if problem.holds_misfit(items):
        yield f"wafer {wafer} holds items that do not fit together"


def _missed(problem: Problem, assignment: Assignment, objective: Objective, limit: int) -> Iterator[str]:
    value = score(problem, assignment, objective)
    if value < limit if objective.is_maximum else value > limit:
        yield f"{objective} is {value}, beyond {limit}"


def _broken(rule: Restriction, assignment: Assignment) -> bool:
    wafers = [assignment[item] for item in rule.items]
    match rule.kind:
        case RuleKind.PIN:
            return not set(wafers) <= set(rule.wafers)
        case RuleKind.FORBID:
            return bool(set(wafers) & set(rule.wafers))
        case RuleKind.APART:
            return len(set(wafers)) < len(wafers)
        case RuleKind.TOGETHER:
            return len(set(wafers)) > 1
        case RuleKind.AT_MOST:
            return max(Counter(wafers).values(), default=0) > rule.count
        case RuleKind.REPLICATE:
            copies = ([assignment[item] for item in group] for group in rule.groups)
            return any(len(set(own)) < len(own) for own in copies)
        case RuleKind.ORDER | RuleKind.FREE:
            return False  # the order of the pipeline has them


# --- objectives -------------------------------------------------------------------------------------------------------


def _machines(_problem: Problem, assignment: Assignment) -> int:
    return len(set(assignment))


def _balance(problem: Problem, assignment: Assignment) -> int:
    return max(sum(problem.items[item].bytes for item in items) for items in by_wafer(assignment).values())


def _traffic(problem: Problem, assignment: Assignment) -> int:
    return sum(
        flow.bytes_per_token * problem.link_cost.get((assignment[flow.source], wafer), 1)
        for flow in problem.flows
        for wafer in receivers(flow, assignment)
    )


def receivers(flow: Flow, assignment: Assignment) -> set[int]:
    """The other wafers that a value is sent to, once each."""
    return {assignment[target] for target in flow.targets} - {assignment[flow.source]}


def _latency(problem: Problem, assignment: Assignment) -> int:
    work = 0
    for wafer, items in by_wafer(assignment).items():
        offered = problem.wafers[wafer]
        curves = [problem.items[item].latency.slowed(offered.slowness_permille) for item in items]
        work += least_time(curves, spare_tiles(problem, wafer, items))
    return work + _longest_way_fs(problem, assignment)


def spare_tiles(problem: Problem, wafer: int, items: Iterable[int]) -> int:
    """Tiles of a wafer beyond the fewest that its items need."""
    return problem.wafers[wafer].tiles - sum(problem.items[item].tiles for item in items)


def least_time(curves: Iterable[Curve], spare: int) -> int:
    """The least sum of times on ``spare`` tiles: they go where each saves most, which is exact as savings fall."""
    curves = tuple(curves)
    pieces = sorted(((saved, tiles) for curve in curves for tiles, saved in curve.drops), reverse=True)
    total = sum(curve.time_fs for curve in curves)
    for saved, tiles in pieces:
        taken = min(tiles, spare)
        total -= taken * saved
        spare -= taken
    return total


def _longest_way_fs(problem: Problem, assignment: Assignment) -> int:
    """The most that any path through the graph spends between wafers."""
    spent = [0] * len(problem.items)
    for flow in sorted(problem.flows, key=lambda flow: flow.source):
        for target in flow.targets:
            route = (assignment[flow.source], assignment[target])
            cost = 0 if route[0] == route[1] else problem.link_cost.get(route, 1)
            way = cost * (problem.hand_over_fs + flow.link_fs)
            spent[target] = max(spent[target], spent[flow.source] + way)
    return max(spent)


def _bottleneck(problem: Problem, assignment: Assignment) -> int:
    longest = max(held_fs(problem, wafer, items) for wafer, items in by_wafer(assignment).items())
    links: Counter[tuple[int, int]] = Counter()
    for flow in problem.flows:
        for wafer in receivers(flow, assignment):
            route = (assignment[flow.source], wafer)
            links[route] += flow.link_fs * problem.link_cost.get(route, 1)
    return max([longest, *links.values()])


def held_fs(problem: Problem, wafer: int, items: Sequence[int]) -> int:
    """How long a wafer is held for each token: by all its items in turn, or by the slowest, tiles shared out for it."""
    slowness = problem.wafers[wafer].slowness_permille
    if problem.take_turns:
        return sum(
            problem.items[i].latency.slowed(slowness).time(problem.wafers[wafer].tiles - problem.items[i].tiles)
            for i in items
        )
    return least_slowest([problem.items[i].slowest.slowed(slowness) for i in items], spare_tiles(problem, wafer, items))


def least_slowest(curves: Sequence[Curve], spare: int) -> int:
    """The least time of the slowest on ``spare`` tiles, by bisection on it."""
    low, high = max(curve.time(spare) for curve in curves), max(curve.time_fs for curve in curves)
    while low < high:
        middle = (low + high) // 2
        needed = [curve.spare(middle) for curve in curves]
        if None not in needed and sum(tiles or 0 for tiles in needed) <= spare:
            high = middle
        else:
            low = middle + 1
    return low


def _room(problem: Problem, assignment: Assignment) -> int:
    most = MOST_USERS
    for wafer, items in by_wafer(assignment).items():
        state = sum(problem.items[item].state_bytes for item in items)
        fixed = sum(problem.items[item].bytes for item in items) - state * problem.users
        if state:
            most = min(most, (problem.wafers[wafer].bytes - fixed) // state)
    return most


def _moves(problem: Problem, assignment: Assignment) -> int:
    return sum(
        item.weight_bytes
        for item, was, now in zip(problem.items, problem.previous, assignment, strict=bool(problem.previous))
        if was is not None and was != now
    )


_SCORES = {
    Objective.MACHINES: _machines,
    Objective.BALANCE: _balance,
    Objective.TRAFFIC: _traffic,
    Objective.LATENCY: _latency,
    Objective.BOTTLENECK: _bottleneck,
    Objective.ROOM: _room,
    Objective.MOVES: _moves,
}
