"""Staying close to a former plan: of the placements near the optimum, one that moves the fewest bytes of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from ir.machine import Machine
from ir.model import Model
from ir.objective import Objective
from ir.plan import Plan, Score
from partitioner.problem import wafers_of
from partitioner.solver.counting import counting_bound
from partitioner.solver.cpsat import Limits
from partitioner.solver.moves import applies, fewest_moves
from partitioner.solver.naming import renamed
from partitioner.solver.place import Progress, Solution, place
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.score import faults, pipeline, score

_COUNTED = "counting bound"

Placer = Callable[[Problem, Sequence[Objective], Limits, Progress], Solution]
"""What :func:`partitioner.solver.place.place` is."""


@dataclass(frozen=True, slots=True)
class Former:
    """A plan that a new one should be close to, and how far from the optimum that may lead: 1/20 is 5 %."""

    plan: Plan
    within: Fraction

    def recalled(self, problem: Problem, model: Model, machine: Machine) -> Problem:
        """``problem`` on all wafers of ``machine``, with the wafer where each item lay."""
        lay = {(block.name, block.copy): block.wafer for block in self.plan.blocks}
        previous = tuple(lay.get((model.blocks[item.blocks[0]].name, item.copy)) for item in problem.items)
        return replace(problem, wafers=wafers_of(machine, machine.systems), previous=previous)

    def place(
        self,
        problem: Problem,
        objectives: Sequence[Objective],
        limits: Limits,
        progress: Progress,
    ) -> Solution:
        """The placement that moves the fewest bytes of those whose first objective is within the gap of the optimum;
        of these the best by the objectives in order.

        The score of moves follows that of the first objective, whose bound is that of all placements.

        Raises:
            InfeasibleError, TimeLimitError: as :func:`partitioner.solver.place.place`.
        """
        first, *others = objectives
        found = place(_nameless(problem), objectives[:1], limits, progress)
        best = found.scores[0]
        near = replace(problem, thresholds=((first, furthest(best, self.within)),))
        nearest = _nearest(near, found, objectives, limits, progress)
        assignment = nearest.assignment
        value = score(problem, assignment, first)
        scores = [Score(first, value, best.bound, best.proof if value == best.value else ""), *nearest.scores]
        scores += [_counted(problem, assignment, other) for other in others]
        interrupted = found.interrupted or nearest.interrupted
        return Solution(assignment, pipeline(problem, assignment), tuple(scores), interrupted)


def _counted(problem: Problem, assignment: Assignment, objective: Objective) -> Score:
    value, bound = score(problem, assignment, objective), counting_bound(problem, objective)
    return Score(objective, value, bound, _COUNTED if value == bound else "")


def _nearest(
    problem: Problem,
    best: Solution,
    objectives: Sequence[Objective],
    limits: Limits,
    progress: Progress,
) -> Solution:
    """The placement within the problem's thresholds that moves the fewest bytes, with its score of moves alone.

    ``best`` is a placement on :func:`_nameless` wafers that reaches them.
    """
    moved = fewest_moves(problem) if applies(problem) else None
    if moved is not None:
        return _moving(problem, moved.assignment, moved.moved_bytes if moved.proof else 0, moved.proof)
    stay = tuple(wafer for wafer in problem.previous if wafer is not None)
    if len(stay) == len(problem.items) and not faults(problem, stay):
        return _moving(problem, stay)
    numbers = _service(problem)
    known = tuple(numbers[wafer] for wafer in best.assignment)
    near = _moving(problem, min(_allowed(problem, known, renamed(problem, known)), key=partial(_moved, problem)))
    if near.scores[0].proof:
        return near
    solved = place(problem, (Objective.MOVES, *objectives), limits, progress, near.assignment)
    told = solved.scores[0]
    if not faults(problem, solved.assignment) and told.value <= near.scores[0].value:
        near = _moving(problem, solved.assignment, told.bound, told.proof)
    return replace(near, interrupted=solved.interrupted)


def _allowed(problem: Problem, *options: Assignment) -> list[Assignment]:
    """Those of ``options`` that keep the rules and reach the thresholds, of which the first is known to."""
    return [options[0], *(option for option in options[1:] if not faults(problem, option))]


def _moved(problem: Problem, assignment: Assignment) -> int:
    return score(problem, assignment, Objective.MOVES)


def _moving(problem: Problem, assignment: Assignment, bound: int = 0, proof: str = "") -> Solution:
    """A placement with its score of moves: what lay on wafers that are no longer in service has to move."""
    homeless = sum(
        item.weight_bytes
        for item, was in zip(problem.items, problem.previous, strict=True)
        if was is not None and not problem.wafers[was].tiles
    )
    value = _moved(problem, assignment)
    proof = proof or (_COUNTED if value == homeless else "")
    moves = Score(Objective.MOVES, value, value if proof else max(bound, homeless), proof)
    return Solution(assignment, pipeline(problem, assignment), (moves,))


def furthest(best: Score, within: Fraction) -> int:
    """The worst value that is within a gap of the optimum, of which only a bound may be known; ``best`` itself always
    is.
    """
    if best.objective.is_maximum:
        return min(best.value, -int(-best.bound * (1 - within) // 1))
    return max(best.value, int(best.bound * (1 + within)))


def _service(problem: Problem) -> list[int]:
    """The wafers of :func:`_nameless` by number."""
    if not replace(problem, previous=(), thresholds=()).is_plain:
        return [*range(len(problem.wafers))]
    usable = [number for number, wafer in enumerate(problem.wafers) if wafer.tiles]
    return sorted(usable, key=lambda number: -problem.wafers[number].tiles) or [0]


def _nameless(problem: Problem) -> Problem:
    """``problem`` without a former plan; where nothing but size and speed tells wafers apart, on those in service."""
    wafers = tuple(problem.wafers[number] for number in _service(problem))
    return replace(problem, wafers=wafers, previous=(), thresholds=())
