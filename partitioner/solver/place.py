"""Placing items on wafers, with a claim of optimality only where two different arguments agree.

OR-Tools 9.15 has open bugs in which presolve turns a feasible problem infeasible or a good solution "optimal", so
CP-SAT's word alone is not proof here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ir.diagnostics import Diagnostic, InfeasibleError, TimeLimitError
from ir.objective import DEFAULT_OBJECTIVES, Objective
from ir.plan import Score
from partitioner.solver.chain import (
    bottleneck,
    counting_bound,
    least_traffic,
    smallest_bottleneck,
    traffic,
)
from partitioner.solver.cpsat import DEFAULT_LIMITS, Answer, Limits, solve_bottleneck, solve_traffic
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.score import MOST_USERS, pipeline, score

_MOST_BYTES = 1 << 56
"""Of all items together, for a search in 64-bit integers."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A wafer for each item, the wafers in use in the order in which values flow, and a score for each objective.

    ``interrupted``: the user ended the search, and this is the best that it had.
    """

    assignment: Assignment
    order: tuple[int, ...]
    scores: tuple[Score, ...]
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best placement so far, in one objective; ``bound`` is not confirmed yet."""

    objective: Objective
    value: int
    bound: int
    elapsed_s: float

    @property
    def gap(self) -> float:
        """Relative distance of the value from the bound."""
        return abs(self.value - self.bound) / max(1, abs(self.value))


def place(
    problem: Problem,
    objectives: Sequence[Objective] = DEFAULT_OBJECTIVES,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[Incumbent], None] = lambda _found: None,
) -> Solution:
    """The placement that is best in the first of ``objectives``, of these that which is best in the second, and so on.

    ``progress`` is called with each better placement.

    Raises:
        InfeasibleError: W0401, no placement exists, by two arguments.
        TimeLimitError: W0402, none was found within the limit.
    """
    if sum(item.bytes for item in problem.items) > _MOST_BYTES and (counts := _counted_out(problem)):
        # The solver's integers are too small for such a problem, and counting is proof enough.
        raise InfeasibleError(Diagnostic("W0401", "no placement exists", facts={"proof": "; ".join(counts)}))
    begin = time.perf_counter()
    # Runs of items in order are a placement of any problem, and the best of them the answer for a chain.
    runs = smallest_bottleneck(problem)
    answer = solve_bottleneck(problem, limits, runs[1] if runs else None)
    options = [option for option in (runs and runs[1], answer.assignment) if option]
    if not options:
        raise _none_found(problem, answer, limits)
    found = min(options, key=lambda option: bottleneck(problem, option))
    value = bottleneck(problem, found)
    proof = _proof(problem, answer, value, runs, limits)
    answers = [solve_traffic(problem, limits, found, value)]
    if problem.is_chain:
        least = least_traffic(problem, value)
    else:
        least = answers[0].assignment
        answers.append(solve_traffic(problem, limits, found, value, presolve=False))
    best = min((option for option in (least, found) if option), key=lambda option: traffic(problem, option))
    progress(
        Incumbent(Objective.BALANCE, value, value if proof else counting_bound(problem), time.perf_counter() - begin)
    )
    sent = traffic(problem, best)
    agree = all((answer.status, answer.value) == ("OPTIMAL", sent) for answer in answers)
    other = "dynamic programming over cuts" if problem.is_chain else "CP-SAT without presolve"
    bounds = {
        Objective.BALANCE: (value if proof else counting_bound(problem), proof),
        Objective.TRAFFIC: (sent, f"{other} and CP-SAT") if agree and proof else (0, ""),
    }
    scores = [
        Score(objective, score(problem, best, objective), *bounds.get(objective, (trivial_bound(objective), "")))
        for objective in objectives
    ]
    return Solution(best, pipeline(problem, best), tuple(scores))


def trivial_bound(objective: Objective) -> int:
    """What no placement of any problem does better than."""
    return MOST_USERS if objective.is_maximum else 0


def _proof(problem: Problem, answer: Answer, value: int, runs: tuple[int, Assignment] | None, limits: Limits) -> str:
    """The arguments that no placement has a smaller bottleneck than ``value``: a count that it meets, or two searches.

    Two searches that contradict each other prove nothing, whichever is right.
    """
    if counting_bound(problem) == value:
        return "counting bound"
    searches = []
    if problem.is_chain and runs and runs[0] == value:
        searches.append("exact parametric search over contiguous placements")
    if answer.status == "OPTIMAL" and answer.value == value:
        searches.append("CP-SAT")
        if len(searches) == 1:
            again = solve_bottleneck(problem, limits, answer.assignment, presolve=False)
            searches += ["CP-SAT without presolve"] if (again.status, again.value) == ("OPTIMAL", value) else []
    return " and ".join(searches) if len(searches) > 1 else ""


def _counted_out(problem: Problem) -> tuple[str, ...]:
    """Counts that no placement can meet."""
    arguments = {
        "a block is larger than a wafer": any(item.tiles > problem.wafers[0].tiles for item in problem.items),
        "the blocks need more tiles than all wafers have": sum(i.tiles for i in problem.items)
        > sum(wafer.tiles for wafer in problem.wafers),
    }
    return tuple(argument for argument, holds in arguments.items() if holds)


def _none_found(problem: Problem, answer: Answer, limits: Limits) -> InfeasibleError | TimeLimitError:
    """Infeasible where two arguments say so, else out of time."""
    arguments = {
        **dict.fromkeys(_counted_out(problem), True),
        "exact search over contiguous placements": problem.is_chain,
        "CP-SAT": answer.status == "INFEASIBLE",
    }
    agreeing = [argument for argument, holds in arguments.items() if holds]
    if len(agreeing) == 1 and answer.status == "INFEASIBLE":
        again = solve_bottleneck(problem, limits, None, presolve=False)
        agreeing += ["CP-SAT without presolve"] if again.status == "INFEASIBLE" else []
    if len(agreeing) > 1:
        return InfeasibleError(Diagnostic("W0401", "no placement exists", facts={"proof": "; ".join(agreeing)}))
    facts = {"deterministic_seconds": limits.deterministic_time}
    return TimeLimitError(Diagnostic("W0402", "no placement was found within the limit", facts=facts))
