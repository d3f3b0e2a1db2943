"""CP-SAT on the placement problem: one objective at a time, those before it kept, and a search that can be ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING

from ir.objective import Objective
from partitioner.solver.counting import counting_bound
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.score import score

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

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
    """Run CP-SAT so that the answer depends on the input alone."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 8
    solver.parameters.interleave_search = True
    solver.parameters.random_seed = limits.seed
    solver.parameters.max_deterministic_time = limits.deterministic_time
    solver.parameters.cp_model_presolve = presolve
    # Its dual reductions make some feasible models infeasible, and with a hint the process then aborts (see above).
    solver.parameters.keep_all_feasible_solutions_in_presolve = True
    solver.parameters.catch_sigint_signal = False  # it would be swallowed: Python is to see it
    code, interrupted = _run(solver, form.model, found)
    status = solver.status_name(code)
    work = solver.response_proto.deterministic_time
    if status not in ("OPTIMAL", "FEASIBLE"):
        return Answer(status, None, -1, None, work, interrupted)
    holds = [solver.boolean_value(literal) for row in form.on for literal in row]
    kinds = [[solver.boolean_value(literal) for literal in row] for row in form.is_kind]
    value, bound = round(solver.objective_value), round(solver.best_objective_bound)
    return Answer(status, form.assignment(holds, kinds), value, bound, work, interrupted)


def _run(
    solver: cp_model.CpSolver, model: cp_model.CpModel, found: Callable[[int, int], None]
) -> tuple[cp_model.cp_model_pb2.CpSolverStatus, bool]:
    """Solve in a thread of its own, so that this one hears of placements, and of interrupts, while it waits."""
    from ortools.sat.python import cp_model

    news: Queue[tuple[int, int] | None] = Queue()
    codes: list[cp_model.cp_model_pb2.CpSolverStatus] = []
    errors: list[BaseException] = []

    class Watch(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # its module has no types
        def on_solution_callback(self) -> None:
            news.put((round(self.objective_value), round(self.best_objective_bound)))

    def work() -> None:
        try:
            codes.append(solver.solve(model, Watch()))
        except BaseException as error:  # told in the thread that waits
            errors.append(error)
        finally:
            news.put(None)

    thread = Thread(target=work, daemon=True)
    interrupted = False
    thread.start()
    while True:
        try:
            step = news.get()
            if step is None:
                break
            found(*step)
        except KeyboardInterrupt:
            interrupted = True
            solver.stop_search()
    thread.join()
    if errors:
        raise errors[0]
    return codes[0], interrupted


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
