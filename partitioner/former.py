"""Staying close to a former plan: of the placements near the optimum, one that moves the fewest bytes of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ir.machine import Machine
from ir.model import Model
from ir.objective import Objective
from ir.plan import Plan, Score
from partitioner.problem import wafers_of
from partitioner.solver.counting import counting_bound
from partitioner.solver.cpsat import Limits
from partitioner.solver.moves import applies, fewest_moves
from partitioner.solver.place import Incumbent, Solution, place
from partitioner.solver.problem import Problem
from partitioner.solver.score import pipeline, score

Placer = Callable[[Problem, Sequence[Objective], Limits, Callable[[Incumbent], None]], Solution]
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
        progress: Callable[[Incumbent], None],
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
        if applies(near):
            moved = fewest_moves(near)
            assert moved is not None, "the optimum is within every gap"
            assignment, interrupted = moved.assignment, found.interrupted
            moves = Score(Objective.MOVES, moved.moved_bytes, moved.moved_bytes if moved.proof else 0, moved.proof)
        else:
            nearest = place(near, (Objective.MOVES, *objectives), limits, progress)
            assignment, interrupted = nearest.assignment, nearest.interrupted or found.interrupted
            moves = nearest.scores[0]
        value = score(problem, assignment, first)
        scores = [Score(first, value, best.bound, best.proof if value == best.value else ""), moves]
        scores += [
            Score(other, score(problem, assignment, other), counting_bound(problem, other), "") for other in others
        ]
        return Solution(assignment, pipeline(problem, assignment), tuple(scores), interrupted)


def furthest(best: Score, within: Fraction) -> int:
    """The worst value that is within a gap of the optimum, of which only a bound may be known; ``best`` itself always
    is.
    """
    if best.objective.is_maximum:
        return min(best.value, -int(-best.bound * (1 - within) // 1))
    return max(best.value, int(best.bound * (1 + within)))


def _nameless(problem: Problem) -> Problem:
    """``problem`` with what decides which values can be reached: where nothing but size and speed tells wafers apart,
    those in service alone, and no more of them than items.
    """
    forgotten = replace(problem, previous=())
    if not forgotten.is_plain:
        return forgotten
    usable = sorted((wafer for wafer in problem.wafers if wafer.tiles), key=lambda wafer: -wafer.tiles)
    return replace(forgotten, wafers=tuple(usable) or problem.wafers[:1])
