"""CP-SAT, run so that the answer depends on the input alone, and so that Ctrl-C ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True)
class Effort:
    """CP-SAT's limit in deterministic seconds, and how it goes about; ``end_s`` is a net, on the monotonic clock."""

    work_s: float
    workers: int = 1
    presolve: bool = True
    end_s: float = 1e18
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """The status, and the solver after it has run; ``interrupted``: the user ended it."""

    status: str
    solver: cp_model.CpSolver
    interrupted: bool


def run(model: cp_model.CpModel, effort: Effort, found: Callable[[int, int], None] | None = None) -> Outcome:
    """Solve; ``found`` is called with the value and bound of each better solution.

    CP-SAT runs in a thread of its own, so that this one hears of solutions, and of interrupts, while it waits.
    """
    from ortools.sat.python import cp_model

    solver = _solver(effort)
    news: Queue[tuple[int, int] | None] = Queue()
    codes: list[cp_model.cp_model_pb2.CpSolverStatus] = []
    errors: list[BaseException] = []

    class Watch(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # its module has no types
        def on_solution_callback(self) -> None:
            news.put((round(self.objective_value), round(self.best_objective_bound)))

    def work() -> None:
        try:
            codes.append(solver.solve(model, Watch() if found else None))
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
            if found:
                found(*step)
        except KeyboardInterrupt:
            interrupted = True
            solver.stop_search()
    thread.join()
    if errors:
        raise errors[0]
    return Outcome(solver.status_name(codes[0]), solver, interrupted)


def run_whole(model: cp_model.CpModel, effort: Effort) -> tuple[str, cp_model.CpSolver]:
    """The status and the solver after it has run. KeyboardInterrupt stops it and passes on."""
    outcome = run(model, effort)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome.status, outcome.solver


def _solver(effort: Effort) -> cp_model.CpSolver:
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = effort.workers
    solver.parameters.interleave_search = effort.workers > 1
    solver.parameters.random_seed = effort.seed
    solver.parameters.max_deterministic_time = effort.work_s
    solver.parameters.max_time_in_seconds = min(1e9, max(0.1, effort.end_s - time.monotonic()))
    solver.parameters.cp_model_presolve = effort.presolve
    # Its dual reductions make some feasible models infeasible, and with a hint the process then aborts (or-tools issue
    # 5025).
    solver.parameters.keep_all_feasible_solutions_in_presolve = True
    solver.parameters.catch_sigint_signal = False  # it would be swallowed: Python is to see it
    return solver
