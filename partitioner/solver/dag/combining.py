"""Placements out of contents that machines could have: those that leave least undone, and the rest around them.

The restricted master heuristic of column generation (Joncour et al., "Column generation based primal heuristics",
2010): prices of covers, and placements of a search, leave behind contents of small loads that nobody put together yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.solver.dag.local_search import State
from partitioner.solver.dag.units import Units
from partitioner.solver.running import Effort, run_whole

Column = tuple[int, tuple[int, ...]]
"""A kind, and the units on one machine of it."""


def combine(units: Units, columns: Sequence[Column], most: int, effort: Effort) -> tuple[tuple[int, ...] | None, float]:
    """A placement of those columns with loads up to ``most`` that leave least work over together, and the rest.

    ``None`` where bytes forbid it. Also the deterministic seconds that it took.
    """
    from ortools.sat.python import cp_model

    fitting = [column for column in columns if load_of(units, column) <= most and _fits(units, column)]
    model = cp_model.CpModel()
    chosen = [model.new_bool_var("") for _ in fitting]
    of_unit: list[list[cp_model.IntVar]] = [[] for _ in range(len(units))]
    of_kind: list[list[cp_model.IntVar]] = [[] for _ in units.kinds]
    for literal, (kind, held) in zip(chosen, fitting, strict=True):
        of_kind[kind].append(literal)
        for unit in held:
            of_unit[unit].append(literal)
    for entry, literals in zip(units.kinds, of_kind, strict=True):
        model.add(cp_model.LinearExpr.sum(literals) <= entry.machines)
    missing = [model.new_bool_var("") for _ in range(len(units))]
    for literals, left in zip(of_unit, missing, strict=True):
        model.add_bool_or(left, *literals)
    work = [max(time or 0 for time in times) for times in units.times]
    grain = max(1, sum(work) >> 30)
    model.minimize(cp_model.LinearExpr.weighted_sum(missing, [1 + time // grain for time in work]))
    status, solver = run_whole(model, effort)
    spent = solver.response_proto.deterministic_time
    if status not in ("OPTIMAL", "FEASIBLE"):
        return None, spent
    free = [[machine for machine, own in enumerate(units.kind_of) if own == kind] for kind in range(len(units.kinds))]
    placed = [-1] * len(units)
    for literal, (kind, held) in zip(chosen, fitting, strict=True):
        if solver.value(literal):
            machine = free[kind].pop(0)
            for unit in held:
                placed[unit] = machine if placed[unit] < 0 else placed[unit]
    return completed(units, placed), spent


def load_of(units: Units, column: Column) -> int:
    """Of a machine with this content."""
    kind, held = column
    inside = set(held)
    load = sum(units.times[unit][kind] or 0 for unit in held)
    if units.kinds[kind].charged:
        crossed = {n for unit in held for n in units.nets_of[unit] if not inside.issuperset(units.nets[n][0])}
        load += sum(units.nets[net][1] for net in crossed)
    return load


def _fits(units: Units, column: Column) -> bool:
    limit = units.kinds[column[0]].bytes
    return limit is None or sum(units.bytes[unit] for unit in column[1]) <= limit


def completed(units: Units, placed: Sequence[int]) -> tuple[int, ...] | None:
    """``placed`` with a machine for each unit at -1 too: where the load is the least then. ``None`` if bytes forbid."""
    fallback = [max(d for d, kind in enumerate(units.kind_of) if times[kind] is not None) for times in units.times]
    state = State(units, [last if machine < 0 else machine for machine, last in zip(placed, fallback, strict=True)])
    rest = sorted((unit for unit, machine in enumerate(placed) if machine < 0), key=lambda unit: -units.bytes[unit])
    for unit in rest * 2:
        changes = [
            (state.loads[goal] + change[1], goal, change)
            for goal in range(len(units.kind_of))
            if goal != state.at[unit] and (change := state.change(unit, goal))
        ]
        if changes and (min(changes)[0] < state.loads[state.at[unit]] or state.free[state.at[unit]] < 0):
            state.move(unit, *min(changes)[1:])
    return tuple(state.at) if min(state.free) >= 0 else None
