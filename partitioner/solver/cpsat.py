"""The placement problem as a CP-SAT model: first the smallest bottleneck, then the least traffic that keeps it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from partitioner.solver.problem import Assignment, Problem

if TYPE_CHECKING:
    # It takes pandas with it, half a second that who only looks at a model need not wait.
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try: work in deterministic seconds, so that the same input gives the same plan on every machine."""

    deterministic_time: float = 60.0
    seed: int = 0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Answer:
    """``status`` is CP-SAT's: ``OPTIMAL``, ``FEASIBLE``, ``INFEASIBLE`` or ``UNKNOWN``; without an assignment the
    value is -1.
    """

    status: str
    assignment: Assignment | None
    value: int
    bound: int


def solve_bottleneck(problem: Problem, limits: Limits, hint: Assignment | None, *, presolve: bool = True) -> Answer:
    """Minimise the bytes of the fullest wafer."""
    formulation = _Formulation(problem)
    most = formulation.model.new_int_var(0, sum(item.bytes for item in problem.items), "bottleneck")
    for load in formulation.loads:
        formulation.model.add(load <= most)
    formulation.model.minimize(most)
    return formulation.solve(limits, hint, presolve=presolve)


def solve_traffic(
    problem: Problem, limits: Limits, hint: Assignment, most_bytes: int, *, presolve: bool = True
) -> Answer:
    """Minimise the bytes sent between wafers for each token, with at most ``most_bytes`` on each wafer."""
    formulation = _Formulation(problem)
    for load in formulation.loads:
        formulation.model.add(load <= most_bytes)
    formulation.model.minimize(formulation.traffic())
    return formulation.solve(limits, hint, presolve=presolve)


class _Formulation:
    """Variables ``on[i][w]``: item i lies on wafer w; wafers are used in order, and values never flow backward."""

    def __init__(self, problem: Problem) -> None:
        from ortools.sat.python import cp_model

        self._problem = problem
        self.model = cp_model.CpModel()
        wafers = range(len(problem.wafers))
        self._on = [[self.model.new_bool_var(f"on_{i}_{w}") for w in wafers] for i in range(len(problem.items))]
        for row in self._on:
            self.model.add_exactly_one(row)
        self._order_wafers()
        self.loads = [sum(i.bytes * row[w] for i, row in zip(problem.items, self._on, strict=True)) for w in wafers]
        for w in wafers:
            tiles = sum(item.tiles * row[w] for item, row in zip(problem.items, self._on, strict=True))
            self.model.add(tiles <= problem.wafers[w].tiles)
            for apart in problem.misfits:
                self._keep_apart(apart, w)

    def _keep_apart(self, apart: tuple[int, ...], wafer: int) -> None:
        """Of some kind of item in the combination ``apart``, ``wafer`` holds fewer than the combination has."""
        missing = []
        for kind, count in sorted(Counter(apart).items()):
            held = [row[wafer] for item, row in zip(self._problem.items, self._on, strict=True) if item.alike == kind]
            fewer = self.model.new_bool_var(f"fewer_{wafer}_{kind}")
            self.model.add(sum(held) < count).only_enforce_if(fewer)
            missing.append(fewer)
        self.model.add_bool_or(missing)

    def _order_wafers(self) -> None:
        """Item after item along the flows, and no wafer left empty before one that is used."""
        wafers = range(len(self._problem.wafers))
        position = [sum(w * row[w] for w in wafers) for row in self._on]
        pairs = sorted({(flow.source, target) for flow in self._problem.flows for target in flow.targets})
        for source, target in pairs:
            self.model.add(position[source] <= position[target])
        used = [self.model.new_bool_var(f"used_{w}") for w in wafers]
        for w in wafers:
            self.model.add_max_equality(used[w], [row[w] for row in self._on])
        for before, after in pairwise(used):
            self.model.add_implication(after, before)

    def traffic(self) -> cp_model.LinearExpr:
        """Bytes sent for each token; a value is sent once to each wafer that reads it and does not hold its source."""
        from ortools.sat.python import cp_model

        terms = []
        for number, flow in enumerate(self._problem.flows):
            for w in range(len(self._problem.wafers)):
                sent = self.model.new_bool_var(f"sent_{number}_{w}")
                for target in flow.targets:
                    self.model.add_bool_or(~self._on[target][w], self._on[flow.source][w], sent)
                terms.append(flow.bytes_per_token * sent)
        return cp_model.LinearExpr.sum(terms)

    def solve(self, limits: Limits, hint: Assignment | None, *, presolve: bool = True) -> Answer:
        """Run CP-SAT so that the answer depends on the input alone."""
        from ortools.sat.python import cp_model

        for index, wafer in enumerate(hint or ()):
            for w, literal in enumerate(self._on[index]):
                self.model.add_hint(literal, w == wafer)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 8
        solver.parameters.interleave_search = True
        solver.parameters.random_seed = limits.seed
        solver.parameters.max_deterministic_time = limits.deterministic_time
        solver.parameters.cp_model_presolve = presolve
        status = solver.status_name(solver.solve(self.model))
        if status not in ("OPTIMAL", "FEASIBLE"):
            return Answer(status, None, -1, 0)
        assignment = tuple(next(w for w, literal in enumerate(row) if solver.value(literal)) for row in self._on)
        return Answer(status, assignment, round(solver.objective_value), round(solver.best_objective_bound))
