"""Contiguous placements by CP-SAT, for graphs with too many prefixes to look at: an item has one place in the row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from partitioner.solver.dag.items import ItemGraph, bits
from partitioner.solver.dag.prefixes import Stage
from partitioner.solver.running import Effort, run_whole

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True)
class Nested:
    """CP-SAT's answer; ``status`` is its own word. ``stages`` in order, with machines that hold nothing left out.

    ``bound``: no placement within the limits has a smaller value.
    """

    status: str
    value: int
    stages: tuple[Stage, ...]
    bound: int


def solve_nested(graph: ItemGraph, low: int, high: int, hint: Sequence[Stage], effort: Effort) -> Nested:
    """Minimise the largest load within ``low`` to ``high``; begin from ``hint``. The same input gives the same answer.

    ``INFEASIBLE`` says that nothing is within ``high``. KeyboardInterrupt stops it and passes on.
    """
    row = _Row(graph, low, high)
    row.follow(hint)
    status, solver = run_whole(row.model, effort)
    if status == "INFEASIBLE":
        return Nested(status, -1, (), high + 1)
    bound = max(low, math.ceil(solver.best_objective_bound - 1e-6))
    if status not in ("OPTIMAL", "FEASIBLE"):
        return Nested(status, -1, (), bound if status == "UNKNOWN" else low)
    return Nested(status, round(solver.objective_value), row.stages(solver), bound)


class _Row:
    """Variables ``within[i][p]``: item i is on one of the first p machines; ``on[i][p]``: it is on machine p itself."""

    def __init__(self, graph: ItemGraph, low: int, high: int) -> None:
        from ortools.sat.python import cp_model

        self._graph, self.model = graph, cp_model.CpModel()
        self._kinds = [index for index, kind in enumerate(graph.kinds) if kind.machines]
        self._places = range(sum(kind.machines for kind in graph.kinds))
        model, items = self.model, range(len(graph.items))
        self._within = [[model.new_bool_var("") for _ in self._places] for _ in items]
        self._on = [[model.new_bool_var("") for _ in self._places] for _ in items]
        self._kind = [{kind: model.new_bool_var("") for kind in self._kinds} for _ in self._places]
        self._largest = model.new_int_var(low, high, "largest")
        for item in items:
            self._order(item)
        for place in self._places:
            model.add_exactly_one(self._kind[place].values())
            self._limit(place)
        for kind in self._kinds:
            model.add(sum(chosen[kind] for chosen in self._kind) == graph.kinds[kind].machines)
        model.minimize(self._largest)

    def _order(self, item: int) -> None:
        """An item stays in later prefixes, is in none without those before it, and is on the place where it enters."""
        within, on = self._within[item], self._on[item]
        self.model.add(within[-1] == 1)
        self.model.add_exactly_one(on)
        for place in self._places:
            earlier = within[place - 1] if place else 0
            self.model.add(on[place] == within[place] - earlier)
            for source in bits(self._graph.before[item]):
                self.model.add_implication(within[place], self._within[source][place])

    def _limit(self, place: int) -> None:
        """What is on the place can run there, fits, and takes no longer than the largest load."""
        cuts = sum(value.charge * self._cut(value.pins, place) for value in self._graph.values)
        for kind, chosen in self._kind[place].items():
            machine = self._graph.kinds[kind]
            load = cuts if machine.charged else 0
            for item, on in zip(self._graph.items, (row[place] for row in self._on), strict=True):
                time = item.times[kind]
                if time is None:
                    self.model.add_implication(chosen, ~on)
                else:
                    load += time * on
            self.model.add(load <= self._largest).only_enforce_if(chosen)
            if machine.bytes is not None:
                held = sum(item.bytes * row[place] for item, row in zip(self._graph.items, self._on, strict=True))
                self.model.add(held <= machine.bytes).only_enforce_if(chosen)

    def _cut(self, pins: int, place: int) -> cp_model.IntVar:
        """Whether some of the pins are on the place, and some are not."""
        cut, some = self.model.new_bool_var(""), self.model.new_bool_var("")
        for pin in bits(pins):
            self.model.add_implication(self._on[pin][place], some)
            self.model.add_bool_or(~some, self._on[pin][place], cut)
        return cut

    def follow(self, stages: Sequence[Stage]) -> None:
        """Hint the stages, on the first places."""
        place_of = {item: place for place, stage in enumerate(stages) for item in bits(stage.items)}
        for item, place in place_of.items():
            for other in self._places:
                self.model.add_hint(self._on[item][other], other == place)
                self.model.add_hint(self._within[item][other], other >= place)

    def stages(self, solver: cp_model.CpSolver) -> tuple[Stage, ...]:
        """What the solution puts on each place, in order."""
        found = []
        for place in self._places:
            kind = next(kind for kind, chosen in self._kind[place].items() if solver.value(chosen))
            held = sum(1 << item for item, row in enumerate(self._on) if solver.value(row[place]))
            found.append(Stage(kind, held))
        return tuple(stage for stage in found if stage.items)
