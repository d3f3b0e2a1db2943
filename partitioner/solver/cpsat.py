"""CP-SAT on the placement problem: one objective at a time, those before it kept, and a search that can be ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ir.objective import Objective
from partitioner.solver.counting import counting_bound
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.running import Effort, run
from partitioner.solver.score import score

if TYPE_CHECKING:
    from partitioner.solver.model import Formulation


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try: work in deterministic seconds, so that the same input gives the same plan on every machine."""

    deterministic_time: float = 60.0
    seed: int = 0


DEFAULT_LIMITS = Limits()
_MOST_LITERALS = 60_000
"""Of a model that is worth building."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``status`` is CP-SAT's: ``OPTIMAL``, ``FEASIBLE``, ``INFEASIBLE`` or ``UNKNOWN``; without an assignment the
    value is -1. ``bound`` is what the search says that no placement does better than, ``None`` where it says nothing;
    ``work`` is in deterministic seconds.
    """

    status: str
    assignment: Assignment | None
    value: int
    bound: int | None
    work: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """What to search for: the best in ``objective`` of the placements that reach ``kept`` in others; any of them if it
    is ``None``.
    """

    problem: Problem
    objective: Objective | None
    kept: tuple[tuple[Objective, int], ...] = ()


def solve(
    task: Task,
    limits: Limits,
    hint: Assignment | None,
    *,
    presolve: bool = True,
    found: Callable[[int, int], None] = lambda _value, _bound: None,
) -> Answer:
    """Search; ``found`` is called with the value and bound of each better placement.

    An interrupt (SIGINT) ends the search and keeps the best placement that it found.
    """
    if task.objective is Objective.ROOM:
        return _most_room(task, task.objective, limits, hint, presolve, found)
    from partitioner.solver.expressions import expression

    form = _formulation(task, hint)
    if task.objective is not None:
        form.model.minimize(expression(form, task.objective))
    return _answer(form, limits, presolve, found)


def _formulation(task: Task, hint: Assignment | None) -> Formulation:
    """The model of ``task``. The hint must be one of its placements: ortools 9.15 aborts the process on some models
    that have none and a hint ("heuristics.fixed_search != nullptr", or-tools issue 5025).
    """
    from partitioner.solver.expressions import require
    from partitioner.solver.model import Formulation

    form = Formulation(task.problem)
    for objective, value in task.kept:
        require(form, objective, value)
    if hint:
        form.suggest(hint)
    return form


def _most_room(
    task: Task,
    room: Objective,
    limits: Limits,
    hint: Assignment | None,
    presolve: bool,
    found: Callable[[int, int], None],
) -> Answer:
    """The largest number of users for which there is a placement, by one question after the other: room is a quotient,
    which a linear model can only be asked to reach. Steps grow until one is too large, and are halved from then on.
    """
    best, work, step = hint, 0.0, 1
    low = score(task.problem, hint, room) if hint else -1
    high = most = counting_bound(task.problem, room, dict(task.kept))
    while low < high:
        users = min(high, low + step) if high == most else (low + high + 1) // 2
        asked = replace(task, kept=(*task.kept, (room, users)))
        left = Limits(max(1e-3, limits.deterministic_time - work), limits.seed)
        answer = _answer(_formulation(asked, None), left, presolve, lambda _value, _bound: None)
        work += answer.work
        if answer.assignment:
            best, step = answer.assignment, 2 * step
            low = max(users, score(task.problem, best, room))
            found(low, high)
        elif answer.status == "INFEASIBLE":
            high = users - 1
        if answer.status not in ("OPTIMAL", "FEASIBLE", "INFEASIBLE") or answer.interrupted:
            return Answer("FEASIBLE" if best else answer.status, best, low, high, work, answer.interrupted)
    return Answer("OPTIMAL" if best else "INFEASIBLE", best, low, high, work)


def _answer(form: Formulation, limits: Limits, presolve: bool, found: Callable[[int, int], None]) -> Answer:
    effort = Effort(limits.deterministic_time, workers=8, presolve=presolve, seed=limits.seed)
    outcome = run(form.model, effort, found)
    status, solver, work = outcome.status, outcome.solver, outcome.solver.response_proto.deterministic_time
    if status not in ("OPTIMAL", "FEASIBLE"):
        return Answer(status, None, -1, None, work, outcome.interrupted)
    holds = [solver.boolean_value(literal) for row in form.on for literal in row]
    kinds = [[solver.boolean_value(literal) for literal in row] for row in form.is_kind]
    value, bound = round(solver.objective_value), round(solver.best_objective_bound)
    return Answer(status, form.assignment(holds, kinds), value, bound, work, outcome.interrupted)


class Clock:
    """Work and time left of a search in several parts."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._left = limits.deterministic_time
        self._begin = time.perf_counter()

    @property
    def seed(self) -> int:
        """Of all that is random."""
        return self.limits.seed

    @property
    def elapsed_s(self) -> float:
        """Since the search began."""
        return time.perf_counter() - self._begin

    def share(self, part: float) -> Limits:
        """Limits that leave the rest of the work for later."""
        return Limits(max(self._left * part, 1e-3), self.limits.seed)

    def spend(self, work: float) -> None:
        """Take off what a part of the search has used."""
        self._left = max(0.0, self._left - work)


def is_within_reach(problem: Problem) -> bool:
    """Whether a model of the problem is small enough to be worth building."""
    stages = min(len(problem.items), len(problem.wafers))
    reads = sum(1 + len(flow.targets) for flow in problem.flows)
    return stages * (2 * len(problem.items) + reads) <= _MOST_LITERALS
