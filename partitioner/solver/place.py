"""Placing items on wafers, with a claim of optimality only where two different arguments agree.

OR-Tools 9.15 has open bugs in which presolve turns a feasible problem infeasible or a good solution "optimal", so
CP-SAT's word alone is not proof here. Counting is: it knows no search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ir.diagnostics import Diagnostic, InfeasibleError, TimeLimitError
from ir.objective import DEFAULT_OBJECTIVES, Objective
from ir.plan import Score, relative_gap
from partitioner.solver.chain import Runs, best_runs, why_no_runs
from partitioner.solver.counting import counted_out, counting_bound
from partitioner.solver.cpsat import DEFAULT_LIMITS, Answer, Clock, Limits, Task, is_within_reach, solve
from partitioner.solver.fitting import first_fit
from partitioner.solver.loads import best_order, least_load
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.score import MOST_USERS, faults, pipeline, score

_MOST_BYTES = 1 << 56
"""Of all items together, for a search in 64-bit integers."""
_NEVER = 1 << 62
"""What no value reaches."""


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
    """The best placement so far, in one objective; ``bound`` is the search's word, which is not confirmed yet."""

    objective: Objective
    value: int
    bound: int
    elapsed_s: float

    @property
    def gap(self) -> float:
        """Relative distance of the value from the bound."""
        return relative_gap(self.value, self.bound)


Progress = Callable[[Incumbent], None]


@dataclass(frozen=True, slots=True)
class Argument:
    """``name`` says that no placement does better than ``bound``."""

    name: str
    bound: int


def place(
    problem: Problem,
    objectives: Sequence[Objective] = DEFAULT_OBJECTIVES,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress = lambda _found: None,
    known: Assignment | None = None,
) -> Solution:
    """The placement that is best in the first of ``objectives``, of these that which is best in the second, and so on;
    any placement where there are none.

    ``progress`` is called with each better placement; ``known`` is one to begin with. An interrupt (SIGINT) ends the
    search, and what it has found is returned; before it has found any, ``KeyboardInterrupt`` passes on.

    Raises:
        InfeasibleError: W0401, no placement exists, by two arguments.
        TimeLimitError: W0402, none was found within the limit.
    """
    if sum(item.bytes for item in problem.items) > _MOST_BYTES and (counts := counted_out(problem)):
        # The solver's integers are too small for such a problem, and counting is proof enough.
        raise _infeasible(counts)
    search = _Search(problem, Clock(limits), progress)
    try:
        search.start(objectives, known)
        for number, objective in enumerate(objectives):
            search.improve(objective, 1 / (len(objectives) - number))
    except KeyboardInterrupt:
        search.interrupted = True
    if search.best is None:
        raise KeyboardInterrupt
    for objective in objectives[len(search.scores) :]:
        search.conclude(objective, [])
    return Solution(search.best, pipeline(problem, search.best), tuple(search.scores), search.interrupted)


class _Search:
    """The best placement so far, the scores that it has for good, and the work that is left."""

    def __init__(self, problem: Problem, clock: Clock, progress: Progress) -> None:
        self._problem = problem
        self._clock = clock
        self._progress = progress
        self._within_reach = is_within_reach(problem)
        self._runs: Runs | None = None
        self._objectives: tuple[Objective, ...] = ()
        self.best: Assignment | None = None
        self.scores: list[Score] = []
        self._grounds: list[tuple[Argument, Sequence[Argument]]] = []
        self.interrupted = False

    def start(self, objectives: Sequence[Objective], known: Assignment | None = None) -> None:
        """Find a placement: runs of items in their order, the ``known`` one, the first fit, or whatever CP-SAT finds.

        Raises:
            InfeasibleError: W0401, no placement exists, by two arguments.
            TimeLimitError: W0402, none was found within the limit.
        """
        self._objectives = tuple(objectives)
        self._runs = best_runs(self._problem, objectives)
        if self._runs:
            self.best = self._runs.assignment
            return
        if self._problem.is_plain and (proof := why_no_runs(self._problem)):
            raise _infeasible((proof,))
        is_good = known is not None and not faults(self._problem, known)
        self.best = known if is_good else first_fit(self._problem, self._clock.seed)
        if self.best is None:
            first = objectives[0] if objectives else None
            answer = self._solve(first, 1 / (len(objectives) + 1))
            if answer.interrupted and not answer.assignment:
                raise KeyboardInterrupt
            if answer.assignment is None or faults(self._problem, answer.assignment):
                raise self._none_found(answer, first)
            self.best = answer.assignment

    def improve(self, objective: Objective, share: float) -> None:
        """Find the best in ``objective`` that keeps the scores so far, and say how good that is.

        Raises:
            KeyboardInterrupt: the user has enough; ``best`` is what was found.
        """
        if self._follow_runs(objective) or self._follow_loads(objective, share):
            return
        counted = counting_bound(self._problem, objective, self._kept)
        self._tell(objective, self._value(objective), counted)
        if self._value(objective) == counted or not self._within_reach:
            self.conclude(objective, [])
            return
        arguments = []
        for name, presolve, part in (("CP-SAT", True, 0.6 * share), ("CP-SAT without presolve", False, share)):
            answer = self._solve(objective, part, presolve=presolve)
            arguments.append(Argument(name, self._word(answer, objective)))
            self._take(answer, objective)
            if answer.interrupted:
                raise KeyboardInterrupt
            if not _is_better(objective, counted, arguments[0].bound):
                break  # there is nothing to confirm
        self.conclude(objective, arguments)

    def conclude(self, objective: Objective, arguments: Sequence[Argument]) -> None:
        """Take the score in ``objective`` for good, with what ``arguments`` prove together."""
        assert self.best is not None
        counted = Argument("counting bound", counting_bound(self._problem, objective, self._kept))
        self._settle(objective, counted, arguments)

    def _settle(self, objective: Objective, proof: Argument, others: Sequence[Argument] = ()) -> None:
        self._grounds.append((proof, others))
        self.scores.append(_proven(objective, self._value(objective), proof, others))
        self._tell(objective, self.scores[-1].value, self.scores[-1].bound)

    def _follow_runs(self, objective: Objective) -> bool:
        """Take the score of the best runs, if it is proven and the placement is still as good as they are."""
        number = len(self.scores)
        runs = self._runs
        if runs is None or runs.values[:number] != tuple(score.value for score in self.scores):
            return False
        if not runs.proofs[number]:
            return False
        self.best = runs.assignment
        self._settle(objective, Argument(runs.proofs[number], runs.values[number]))
        return True

    def _follow_loads(self, objective: Objective, share: float) -> bool:
        """Take the least load of a graph with branches, if it is proven and no link is slower."""
        if self.scores:
            return False
        limit_s = self._clock.share(share).deterministic_time
        found = least_load(self._problem, objective, limit_s, lambda value, bound: self._tell(objective, value, bound))
        if found is None or not found.machines or faults(self._problem, found.machines):
            return False
        for better in (found.machines, best_order(self._problem, found.machines, self._objectives)):
            if _is_as_good(objective, self._score(better, objective), self._value(objective)):
                self.best = better
        if not found.proof or self._value(objective) != found.bound:
            return False
        self._settle(objective, Argument(found.proof, found.bound))
        return True

    @property
    def _kept(self) -> dict[Objective, int]:
        return dict(self._problem.thresholds) | {found.objective: found.value for found in self.scores}

    def _value(self, objective: Objective) -> int:
        assert self.best is not None
        return score(self._problem, self.best, objective)

    def _solve(self, objective: Objective | None, share: float, *, presolve: bool = True) -> Answer:
        task = Task(self._problem, objective, tuple(self._kept.items()))
        answer = solve(
            task,
            self._clock.share(share),
            self.best,
            presolve=presolve,
            found=lambda value, bound: self._tell(objective, value, bound) if objective else None,
        )
        self._clock.spend(answer.work)
        return answer

    def _take(self, answer: Answer, objective: Objective) -> None:
        """Remember a placement that is better, allowed, and no worse in what is kept; if it is better in that too, its
        scores are, which bounds of worse ones still hold for.
        """
        found = answer.assignment
        if found is None or faults(self._problem, found):
            return
        if not all(_is_as_good(kept.objective, self._score(found, kept.objective), kept.value) for kept in self.scores):
            return
        if _is_better(objective, self._score(found, objective), self._value(objective)):
            self.best = found
            self.scores = [
                _proven(old.objective, self._value(old.objective), *grounds)
                for old, grounds in zip(self.scores, self._grounds, strict=True)
            ]

    def _score(self, assignment: Assignment, objective: Objective) -> int:
        return score(self._problem, assignment, objective)

    def _word(self, answer: Answer, objective: Objective) -> int:
        """What a search says that no placement does better than: nothing, where it contradicts that there is one."""
        if answer.status == "INFEASIBLE":
            return -1 if objective.is_maximum else _NEVER
        nothing = MOST_USERS if objective.is_maximum else 0
        return nothing if answer.bound is None else answer.bound

    def _tell(self, objective: Objective, value: int, bound: int) -> None:
        self._progress(Incumbent(objective, value, bound, self._clock.elapsed_s))

    def _none_found(self, answer: Answer, objective: Objective | None) -> InfeasibleError | TimeLimitError:
        """Infeasible where two arguments say so, else out of time."""
        agreeing = [*counted_out(self._problem)]
        agreeing += ["CP-SAT"] if answer.status == "INFEASIBLE" else []
        if len(agreeing) == 1 and answer.status == "INFEASIBLE":
            again = self._solve(objective, 1.0, presolve=False)
            agreeing += ["CP-SAT without presolve"] if again.status == "INFEASIBLE" else []
        if len(agreeing) > 1:
            return _infeasible(agreeing)
        facts = {"deterministic_seconds": self._clock.limits.deterministic_time}
        return TimeLimitError(Diagnostic("W0402", "no placement was found within the limit", facts=facts))


def _infeasible(arguments: Sequence[str]) -> InfeasibleError:
    return InfeasibleError(Diagnostic("W0401", "no placement exists", facts={"proof": "; ".join(arguments)}))


def _is_better(objective: Objective, one: int, other: int) -> bool:
    return one > other if objective.is_maximum else one < other


def _is_as_good(objective: Objective, one: int, other: int) -> bool:
    return not _is_better(objective, other, one)


def _proven(objective: Objective, value: int, counted: Argument, others: Sequence[Argument]) -> Score:
    """A bound as far as it is proven: by counting, or by two searches of which neither contradicts the placement.

    What searches say is believed as far as two of them agree. One that says that no placement is as good as the one
    that is there is wrong, and then none is believed.
    """
    if counted.bound == value:
        return Score(objective, value, value, counted.name)
    contradicted = any(_is_better(objective, value, other.bound) for other in others)
    if len(others) < 2 or contradicted:
        return Score(objective, value, counted.bound, "")
    agreed = sorted((other.bound for other in others), reverse=not objective.is_maximum)[1]
    if agreed == value:
        return Score(objective, value, value, " and ".join(other.name for other in others if other.bound == value))
    return Score(objective, value, counted.bound if _is_better(objective, agreed, counted.bound) else agreed, "")
