"""Some machines and the units on them as a CP-SAT model: whole problems, and parts of a local search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from partitioner.solver.dag.units import Units, loads_of
from partitioner.solver.running import Effort, run_whole

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True)
class Found:
    """``machines`` for all units, or none; ``bound`` holds for the largest load of the machines that were free."""

    status: str
    machines: tuple[int, ...]
    bound: int
    work_s: float


class Part:
    """The machines ``free`` and what they hold in ``machines``; what lies elsewhere stays there.

    Loads of other machines do not depend on how the free ones share what they hold. Times are rounded down, term by
    term, to ``resolution`` steps of the largest load or finer.
    """

    def __init__(self, units: Units, machines: Sequence[int], free: Sequence[int], resolution: int = 1 << 20) -> None:
        from ortools.sat.python import cp_model

        self.units, self.machines, self.free = units, tuple(machines), tuple(free)
        self.inside = [unit for unit, machine in enumerate(machines) if machine in set(free)]
        most = max(loads_of(units, machines)[machine] for machine in free)
        self._grain = max(1, most // resolution)
        self.model = cp_model.CpModel()
        self.on = {unit: [self.model.new_bool_var(f"on_{unit}_{d}") for d in free] for unit in self.inside}
        for row in self.on.values():
            self.model.add_exactly_one(row)
        self.loads = [self._load(index) for index in range(len(free))]
        self.most = self.model.new_int_var(0, most // self._grain, "most")
        for load in self.loads:
            self.model.add(load <= self.most)
        self._break_symmetry()

    def _load(self, index: int) -> cp_model.LinearExpr:
        """The load of a machine in grains, rounded down term by term."""
        from ortools.sat.python import cp_model

        machine, units, model = self.free[index], self.units, self.model
        terms = []
        for unit in self.inside:
            time, here = units.times[unit][units.kind_of[machine]], self.on[unit][index]
            if time is None:
                model.add(here == 0)
            else:
                terms.append(time // self._grain * here)
        model.add(
            cp_model.LinearExpr.sum([units.bytes[unit] * self.on[unit][index] for unit in self.inside])
            <= units.limits[machine]
        )
        if units.charged[machine]:
            terms += self._charges(index)
        return cp_model.LinearExpr.sum(terms)

    def _charges(self, index: int) -> list[cp_model.LinearExpr]:
        terms = []
        for number, (pins, charge) in enumerate(self.units.nets):
            here = [self.on[pin][index] for pin in pins if pin in self.on]
            if not here:
                continue
            if len(here) < len(pins) and len(here) == 1:
                terms.append(charge // self._grain * here[0])
                continue
            crossed = self.model.new_bool_var(f"crossed_{number}_{index}")
            if len(here) < len(pins):
                for literal in here:
                    self.model.add_implication(literal, crossed)
            else:
                for some, other in pairwise([*here, here[0]]):
                    self.model.add_bool_or(~some, other, crossed)
            terms.append(charge // self._grain * crossed)
        return terms

    def _break_symmetry(self) -> None:
        """Where all is free: machines of a kind in the order of the first unit that each holds."""
        if len(self.inside) < len(self.units):
            return
        for kind in range(len(self.units.kinds)):
            same = [index for index, machine in enumerate(self.free) if self.units.kind_of[machine] == kind]
            by_time = sorted(self.inside, key=lambda unit: (-(self.units.times[unit][0] or 0), unit))
            for rank, unit in enumerate(by_time[: len(same)]):
                for index in same[rank + 1 :]:
                    self.model.add(self.on[unit][index] == 0)

    def solve(self, effort: Effort) -> Found:
        """Minimise the largest load of the free machines, from what they hold now."""
        self.model.minimize(self.most)
        position = {machine: index for index, machine in enumerate(self.free)}
        for unit, row in self.on.items():
            for index, literal in enumerate(row):
                self.model.add_hint(literal, index == position[self.machines[unit]])
        status, solver = run_whole(self.model, effort)
        spent = solver.response_proto.deterministic_time
        if status not in ("OPTIMAL", "FEASIBLE"):
            return Found(status, (), 0, spent)
        placed = list(self.machines)
        for unit, row in self.on.items():
            placed[unit] = self.free[next(index for index, literal in enumerate(row) if solver.value(literal))]
        return Found(status, tuple(placed), round(solver.best_objective_bound) * self._grain, spent)


@dataclass(frozen=True, slots=True)
class Packed:
    """Some placement, whatever its loads; without one, ``status`` is ``infeasible`` or ``unknown``."""

    machines: tuple[int, ...]
    status: str
    proof: str


def pack(units: Units, effort: Effort) -> Packed:
    """A placement that keeps all rules: first fit, largest units first, or CP-SAT's."""
    machines = _first_fit(units)
    if machines:
        return Packed(machines, "feasible", "")
    solvers = [_packing(units, effort)]
    if solvers[0][0] == "INFEASIBLE":
        solvers.append(_packing(units, replace(effort, presolve=False)))
    if any(found for _, found in solvers):
        return Packed(next(found for _, found in solvers if found), "feasible", "")
    if [status for status, _ in solvers] == ["INFEASIBLE", "INFEASIBLE"]:
        return Packed((), "infeasible", "CP-SAT; CP-SAT without presolve")
    return Packed((), "unknown", "")


def _first_fit(units: Units) -> tuple[int, ...]:
    free = list(units.limits)
    placed = [-1] * len(units)
    for unit in sorted(range(len(units)), key=lambda unit: (-units.bytes[unit], unit)):
        for machine, kind in enumerate(units.kind_of):
            if units.times[unit][kind] is not None and units.bytes[unit] <= free[machine]:
                placed[unit] = machine
                free[machine] -= units.bytes[unit]
                break
        else:
            return ()
    return tuple(placed)


def _packing(units: Units, effort: Effort) -> tuple[str, tuple[int, ...]]:
    """CP-SAT's status for bytes and kinds alone, and a machine for each unit if it has one."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    on = [[model.new_bool_var(f"on_{unit}_{d}") for d in range(len(units.kind_of))] for unit in range(len(units))]
    for times, row in zip(units.times, on, strict=True):
        model.add_exactly_one(row)
        for kind, literal in zip(units.kind_of, row, strict=True):
            if times[kind] is None:
                model.add(literal == 0)
    for machine, limit in enumerate(units.limits):
        sizes = zip(units.bytes, on, strict=True)
        model.add(cp_model.LinearExpr.sum([size * row[machine] for size, row in sizes]) <= limit)
    status, solver = run_whole(model, effort)
    if status not in ("OPTIMAL", "FEASIBLE"):
        return status, ()
    return status, tuple(next(d for d, literal in enumerate(row) if solver.value(literal)) for row in on)
