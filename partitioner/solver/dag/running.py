"""CP-SAT as one step of many: the same answer each time, and stopped by Ctrl-C."""

from __future__ import annotations

import time
from dataclasses import dataclass
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


def run(model: cp_model.CpModel, effort: Effort) -> tuple[str, cp_model.CpSolver]:
    """The status and the solver after it has run. KeyboardInterrupt stops it and passes on."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = effort.workers
    solver.parameters.interleave_search = effort.workers > 1
    solver.parameters.max_deterministic_time = effort.work_s
    solver.parameters.max_time_in_seconds = min(1e9, max(0.1, effort.end_s - time.monotonic()))
    solver.parameters.cp_model_presolve = effort.presolve
    solver.parameters.keep_all_feasible_solutions_in_presolve = True  # or a hint that is one may end the process
    solver.parameters.catch_sigint_signal = False
    # Python handles signals between steps of the main thread alone, which must not be inside the solver for long.
    thread = Thread(target=solver.solve, args=(model,))
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        solver.stop_search()
        thread.join()
        raise
    return solver.status_name(solver.response_proto.status), solver
