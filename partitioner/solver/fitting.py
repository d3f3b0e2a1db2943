"""A first placement under rules: items in an order that the pipeline allows, each on the first wafer where it fits."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Sequence

from ir.rules import RuleKind
from partitioner.solver.problem import Assignment, Problem, Restriction
from partitioner.solver.score import faults

_TRIES = 20


def first_fit(problem: Problem, seed: int) -> Assignment | None:
    """A placement found by filling wafer after wafer; ``None`` where some orders of items and wafers give none, which
    proves nothing.
    """
    draw = random.Random(seed)  # noqa: S311 - for variety, no secret
    wafers = sorted(range(len(problem.wafers)), key=lambda wafer: (-problem.wafers[wafer].tiles, wafer))
    for attempt in range(_TRIES):
        urgency = [draw.random() if attempt else float(item) for item in range(len(problem.items))]
        order = _in_order(problem, urgency)
        if order is None:
            return None
        found = _filled(problem, order, wafers)
        if found and not faults(problem, found):
            return found
        draw.shuffle(wafers)
    return None


def _in_order(problem: Problem, urgency: Sequence[float]) -> list[int] | None:
    """The items so that each comes after those before it, the most urgent first; ``None`` where they go in circles."""
    after: defaultdict[int, list[int]] = defaultdict(list)
    waits = [0] * len(problem.items)
    for one, other in problem.precedences:
        after[one].append(other)
        waits[other] += 1
    ready = [(urgency[item], item) for item, count in enumerate(waits) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, item = heapq.heappop(ready)
        order.append(item)
        for other in after[item]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, (urgency[other], other))
    return order if len(order) == len(problem.items) else None


def _filled(problem: Problem, order: Sequence[int], wafers: Sequence[int]) -> Assignment | None:
    """Each item in ``order`` on the first of ``wafers`` that allows it, none before those that it follows."""
    follows: defaultdict[int, list[int]] = defaultdict(list)
    for one, other in problem.precedences:
        follows[other].append(one)
    stage_of: dict[int, int] = {}
    held: list[list[int]] = [[] for _ in wafers]
    for item in order:
        earliest = max((stage_of[before] for before in follows[item]), default=0)
        stages = range(earliest, len(wafers))
        stage = next((s for s in stages if _allows(problem, wafers[s], held[s], stage_of, s, item)), None)
        if stage is None:
            return None
        stage_of[item] = stage
        held[stage].append(item)
    return tuple(wafers[stage_of[item]] for item in range(len(problem.items)))


def _allows(problem: Problem, wafer: int, held: Sequence[int], stage_of: dict[int, int], stage: int, item: int) -> bool:
    offered = problem.wafers[wafer]
    together = [*held, item]
    return (
        sum(problem.items[other].tiles for other in together) <= offered.tiles
        and sum(problem.items[other].bytes for other in together) <= offered.bytes
        and not problem.holds_misfit(together)
        and _keeps_rules(problem, wafer, set(held), stage_of, stage, item)
    )


def _keeps_rules(problem: Problem, wafer: int, held: set[int], stage_of: dict[int, int], stage: int, item: int) -> bool:
    return not any(
        item in rule.items and _breaks(rule, wafer, held - {item}, stage_of, stage, item)
        for rule in problem.restrictions
    )


def _breaks(rule: Restriction, wafer: int, held: set[int], stage_of: dict[int, int], stage: int, item: int) -> bool:
    match rule.kind:
        case RuleKind.PIN:
            return wafer not in rule.wafers
        case RuleKind.FORBID:
            return wafer in rule.wafers
        case RuleKind.APART:
            return not held.isdisjoint(rule.items)
        case RuleKind.TOGETHER:
            return any(stage_of.get(other, stage) != stage for other in rule.items)
        case RuleKind.AT_MOST:
            return len(held.intersection(rule.items)) >= rule.count
        case RuleKind.REPLICATE:
            return any(item in group and not held.isdisjoint(group) for group in rule.groups)
        case RuleKind.ORDER | RuleKind.FREE:
            return False  # the order of the items has them
