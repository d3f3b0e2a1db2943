"""Objectives that are the largest sum over a wafer, on graphs with branches: the exact search over their prefixes.

Bytes add up on a wafer, and so do times where its blocks take turns. Such a problem is one of
:mod:`partitioner.solver.dag` whose values cost nothing to send: links are stations of their own here, and only make a
placement worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

from ir.objective import Objective
from partitioner.solver.chain import best_runs
from partitioner.solver.dag.contiguous import place_contiguous
from partitioner.solver.dag.exact import Progress
from partitioner.solver.dag.problem import DagProblem, Kind, Node, Placement
from partitioner.solver.problem import Assignment, Item, Problem, Wafer
from partitioner.solver.score import pipeline

_MOST_UNITS = 1 << 50
"""Of all sums together, so that they are exact."""


def least_load(problem: Problem, objective: Objective, limit_s: float, progress: Progress) -> Placement | None:
    """The placement, for each item its wafer, whose fullest or slowest wafer has least; ``None`` where ``objective``
    is no such sum, or where rules or links tell wafers apart.

    ``progress`` is told of the value and the bound of each better placement.
    """
    sums = objective is Objective.BALANCE or (objective is Objective.BOTTLENECK and problem.take_turns)
    if not sums or not problem.is_plain or problem.misfits or any(_can_overfill(problem, w) for w in problem.wafers):
        return None
    kinds = sorted({wafer for wafer in problem.wafers if wafer.tiles}, key=astuple)
    if not kinds:
        return None
    nodes = tuple(
        Node(tuple(_load(item, kind, objective) for kind in kinds), item.tiles, number, 0)
        for number, item in enumerate(problem.items)
    )
    total, missing = sum(sum(load or 0 for load in n.times) for n in nodes), sum(None in n.times for n in nodes)
    if total * (1 + missing) > _MOST_UNITS:
        return None
    counts = tuple(Kind(str(number), problem.wafers.count(kind), kind.tiles) for number, kind in enumerate(kinds))
    found = place_contiguous(DagProblem(nodes, problem.precedences, counts, contiguous=True), limit_s, progress)
    numbers = [number for kind in kinds for number, wafer in enumerate(problem.wafers) if wafer == kind]
    assignment = tuple(numbers[machine] for machine in found.machines)
    return Placement(assignment, found.value, found.bound, found.status, found.proof)


def _can_overfill(problem: Problem, wafer: Wafer) -> bool:
    """Whether bytes, rather than tiles, may limit what a wafer holds."""
    return (
        wafer.tiles > 0
        and sum(item.bytes for item in problem.items) > wafer.bytes
        and any(item.bytes * wafer.tiles > wafer.bytes * item.tiles for item in problem.items)
    )


def _load(item: Item, wafer: Wafer, objective: Objective) -> int | None:
    if item.tiles > wafer.tiles:
        return None
    if objective is Objective.BALANCE:
        return item.bytes
    return item.latency.slowed(wafer.slowness_permille).time(wafer.tiles - item.tiles)


def best_order(problem: Problem, assignment: Assignment, objectives: Sequence[Objective]) -> Assignment:
    """The best runs of items in an order in which ``assignment`` is runs; no worse than it in the first objective."""
    position = {wafer: number for number, wafer in enumerate(pipeline(problem, assignment))}
    order = sorted(range(len(problem.items)), key=lambda item: (position[assignment[item]], item))
    place_of = {item: place for place, item in enumerate(order)}
    flows = tuple(
        replace(flow, source=place_of[flow.source], targets=tuple(sorted(place_of[target] for target in flow.targets)))
        for flow in problem.flows
    )
    runs = best_runs(replace(problem, items=tuple(problem.items[item] for item in order), flows=flows), objectives)
    if runs is None:
        return assignment
    return tuple(runs.assignment[place_of[item]] for item in range(len(order)))
