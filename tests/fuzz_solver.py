"""Random problems, small enough to try every placement, until something that the solver claims is untrue.

    python -m tests.fuzz_solver --seconds 300 --seed 0

It stops at the first counterexample, makes it smaller, and prints it as Python. pytest does not collect it; what it
has found stands in the tests.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import combinations, product

from ir.diagnostics import InfeasibleError, TimeLimitError
from ir.objective import Objective
from partitioner.solver.chain import best_runs, why_no_runs
from partitioner.solver.counting import counted_out, counting_bound
from partitioner.solver.cpsat import Limits, Task, solve
from partitioner.solver.dag.contiguous import place_contiguous
from partitioner.solver.dag.free import place_free
from partitioner.solver.dag.problem import DagProblem
from partitioner.solver.filling import smallest_bottleneck
from partitioner.solver.fitting import first_fit
from partitioner.solver.loads import least_load
from partitioner.solver.moves import applies, fewest_moves
from partitioner.solver.naming import renamed
from partitioner.solver.place import Solution, place
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.score import faults, pipeline, score
from tests.fuzz_enumeration import Enumeration, Rank, largest_load, least_of_all, namings
from tests.fuzz_problems import draw_dag, draw_problem, smaller

_LONG_S = 1.0
"""Of deterministic time: with more, tiny problems are solved to the end."""
_SHRINK_S = 20.0


@dataclass(frozen=True)
class Case:
    """What is asked of the solver: placements of ``problem``, and of ``dag``, a graph of operators."""

    problem: Problem
    objectives: tuple[Objective, ...]
    dag: DagProblem
    deterministic_time: float = 3.0
    known: Assignment | None = None

    @cached_property
    def every(self) -> Enumeration:
        """All placements."""
        return Enumeration(self.problem)

    @property
    def draw(self) -> random.Random:
        """For choices of a check, the same each time."""
        return random.Random(len(self.problem.items) + self.problem.hand_over_fs)


TALLY: Counter[str] = Counter()
"""What was checked."""


def sign(goal: Objective) -> int:
    """By which values are the smaller, the better."""
    return -1 if goal.is_maximum else 1


# --- claims: each yields those that are untrue ------------------------------------------------------------------------


def scores(case: Case) -> Iterator[str]:
    """Values and faults, and the first placement."""
    every, problem = case.every, case.problem
    all_ = list(product(range(len(problem.wafers)), repeat=len(problem.items)))
    for placed in case.draw.sample(all_, min(6, len(all_))):
        if every.allows(placed) == bool(faults(problem, placed)):
            yield f"faults of {placed}: {faults(problem, placed)}"
    for placed in case.draw.sample(every.placements, min(3, len(every.placements))):
        for goal in Objective:
            if score(problem, placed, goal) != every.value(placed, goal):
                yield f"{goal} of {placed} is {every.value(placed, goal)}, not {score(problem, placed, goal)}"
    fit = first_fit(problem, 0)
    if fit is not None and not every.allows(fit):
        yield f"first fit {fit} is not allowed"
    TALLY["scores"] += 1


def counts(case: Case) -> Iterator[str]:
    """Bounds by counting, alone and with another objective kept."""
    every, problem = case.every, case.problem
    if not every.placements:
        return
    if said := counted_out(problem):
        yield f"counted out: {said}"
    for goal in Objective:
        bound = counting_bound(problem, goal, dict(problem.thresholds))
        best = min(sign(goal) * every.value(placed, goal) for placed in every.placements)
        if sign(goal) * bound > best:
            yield f"{goal} counted {bound}, but {sign(goal) * best} exists"
    for first, second in combinations(case.objectives, 2):
        kept = every.value(case.draw.choice(every.placements), first)
        good = [placed for placed in every.placements if every.reaches(placed, first, kept)]
        best = min(sign(second) * every.value(placed, second) for placed in good)
        bound = counting_bound(problem, second, {first: kept})
        if sign(second) * bound > best:
            yield f"{second} counted {bound} with {first} {kept}, but {sign(second) * best} exists"
    TALLY["counting bounds"] += 1


def plain(problem: Problem) -> Problem:
    """The problem without what binds the wafers' names."""
    return replace(problem, restrictions=(), link_costs=(), previous=(), thresholds=())


def runs(case: Case) -> Iterator[str]:
    """The exact search over chains, of the problem and of what is left of it without rules."""
    for problem in [case.problem] if case.problem.is_plain else [case.problem, plain(case.problem)]:
        yield from _runs(problem, case.objectives, case.every if problem is case.problem else Enumeration(problem))


def _runs(problem: Problem, objectives: tuple[Objective, ...], every: Enumeration) -> Iterator[str]:
    found, exact = best_runs(problem, objectives), problem.is_plain and problem.is_chain
    if (said := why_no_runs(problem)) and every.placements:
        yield f"no runs: {said}"
    if found is None:
        if exact and every.placements:
            yield "no runs of a chain"
        return
    if not every.allows(found.assignment):
        yield f"runs {found.assignment} are not allowed"
        return
    rank, best = every.rank(found.assignment, objectives), every.best(objectives)
    if found.values != tuple(every.value(found.assignment, goal) for goal in objectives):
        yield f"values of runs are {found.values}"
    for number, proof in enumerate(found.proofs, start=1):
        if proof and rank[:number] != best[:number]:
            yield f"runs of {found.values} by {proof}, best is {best}"
    proven = "proven" if all(found.proofs) else "open"
    TALLY[f"runs of chains, {proven}" if exact else "runs of others"] += 1


def loads(case: Case) -> Iterator[str]:
    """The search over prefixes; links count for nothing in it."""
    bare = replace(plain(case.problem), misfits=())
    unlinked = replace(bare, flows=tuple(replace(flow, link_fs=0) for flow in bare.flows))
    every = Enumeration(unlinked)
    for goal in (Objective.BALANCE, Objective.BOTTLENECK):
        found = least_load(bare, goal, 60.0, lambda _value, _bound: None)
        if found is None:
            continue
        TALLY[f"loads {found.status}"] += 1
        best = every.best((goal,))
        if not found.machines:
            if found.status == "infeasible" and best:
                yield f"least load of {goal}: infeasible, best is {best[0]}"
        elif not every.allows(found.machines):
            yield f"least load of {goal}: {found.machines} is not allowed"
        else:
            yield from _loads(goal, (found.value, found.bound, found.status), every.rank(found.machines, (goal,)), best)


def _loads(goal: Objective, said: tuple[int, int, str], rank: Rank, best: Rank | None) -> Iterator[str]:
    value, bound, status = said
    if best is None or rank != (value,) or bound > best[0] or (status == "optimal" and value != best[0]):
        yield f"least load of {goal}: {said}, is {rank}, best is {best}"


def fillings(case: Case) -> Iterator[str]:
    """The bisection for equal wafers."""
    problem = replace(plain(case.problem), wafers=(case.problem.wafers[0],) * len(case.problem.wafers))
    problem = replace(problem, wafers=tuple(replace(wafer, bytes=1 << 60) for wafer in problem.wafers))
    if not problem.is_chain:
        return
    found, best = smallest_bottleneck(problem), Enumeration(problem).best((Objective.BALANCE,))
    TALLY["fillings"] += 1
    if (found and (found[0],)) != best:
        yield f"smallest bottleneck {found}, best is {best}"


def moves(case: Case) -> Iterator[str]:
    """The fewest bytes moved of chains."""
    problem, every = case.problem, case.every
    if not applies(problem):
        return
    found = fewest_moves(problem)
    TALLY["moves" if found is None or found.proof else "moves, open"] += 1
    if found is None:
        if every.placements:
            yield f"no moves, but {every.placements[0]} is allowed"
        return
    if not every.allows(found.assignment) or found.moved_bytes != every.value(found.assignment, Objective.MOVES):
        yield f"moves {found.assignment} for {found.moved_bytes}"
        return
    goals = (Objective.MOVES, Objective.BALANCE, Objective.TRAFFIC)
    even = Enumeration(replace(problem, link_costs=()))
    best = min(even.rank(placed, goals) for placed in every.placements)
    if found.proof and even.rank(found.assignment, goals) != best:
        yield f"moves {even.rank(found.assignment, goals)} by {found.proof}, best is {best}"


def names(case: Case) -> Iterator[str]:
    """The renaming of equal wafers."""
    problem, every = case.problem, case.every
    if not problem.previous or problem.link_costs or any(rule.wafers for rule in problem.restrictions):
        return
    for placed in case.draw.sample(every.placements, min(3, len(every.placements))):
        other, others = renamed(problem, placed), list(namings(problem, placed))
        TALLY["names"] += 1
        if other not in others:
            yield f"{placed} renamed to {other}"
        elif every.value(other, Objective.MOVES) != min(every.value(named, Objective.MOVES) for named in others):
            yield f"{placed} renamed to {other} moves {every.value(other, Objective.MOVES)}"


def searches(case: Case) -> Iterator[str]:
    """CP-SAT by itself, with and without presolve, with and without a hint."""
    every, draw, goal = case.every, case.draw, case.draw.choice([None, *case.objectives])
    kept, hint = case.problem.thresholds, None
    if every.placements:
        hint = draw.choice(every.placements)
        kept = (*kept, *((first, every.value(hint, first)) for first in case.objectives[1:2]))
    task, hint = Task(case.problem, goal, kept), draw.choice((None, hint))
    answer = solve(task, Limits(case.deterministic_time), hint, presolve=draw.random() < 0.7)
    TALLY[f"CP-SAT {answer.status}"] += 1
    good = [placed for placed in every.placements if all(every.reaches(placed, *least) for least in kept)]
    said = f"CP-SAT of {goal} with {kept}, hint {hint}: {answer}"
    if answer.status == "INFEASIBLE" and good:
        yield f"{said}, but {good[0]} is allowed"
    if answer.assignment is None:
        return
    if answer.assignment not in good:
        yield f"{said}, which is not allowed"
    elif goal is not None:
        best = min(sign(goal) * every.value(placed, goal) for placed in good)
        optimal = answer.status == "OPTIMAL"
        if optimal and {sign(goal) * every.value(answer.assignment, goal), sign(goal) * answer.value} != {best}:
            yield f"{said}, best is {sign(goal) * best}"
        if answer.bound is not None and sign(goal) * answer.bound > best:
            yield f"{said}, best is {sign(goal) * best}"


def placements(case: Case) -> Iterator[str]:
    """All of it together."""
    every, limits = case.every, Limits(case.deterministic_time)
    try:
        found = place(case.problem, case.objectives, limits, known=case.known)
    except InfeasibleError:
        TALLY["place: infeasible"] += 1
        if every.placements:
            yield f"infeasible, but {every.placements[0]} is allowed"
    except TimeLimitError:
        TALLY["place: out of time" + (", though one exists" if every.placements else "")] += 1
    else:
        TALLY[f"place: {len(case.objectives)} objectives"] += 1
        if not every.allows(found.assignment):
            yield f"{found.assignment} is not allowed"
            return
        if found.order != pipeline(case.problem, found.assignment):
            yield f"order of {found.assignment} is {found.order}"
        yield from _placed(case, found)


def _placed(case: Case, found: Solution) -> Iterator[str]:
    every, rank = case.every, case.every.rank(found.assignment, case.objectives)
    ranks = [every.rank(placed, case.objectives) for placed in every.placements]
    for number, (goal, said) in enumerate(zip(case.objectives, found.scores, strict=True)):
        best = min(other[number] for other in ranks if other[:number] <= rank[:number])
        value, bound = sign(goal) * said.value, sign(goal) * said.bound
        if said.objective != goal or value != rank[number]:
            yield f"{said}, is {rank[number]}"
        if bound > best or bound > value or (said.proof and value != best):
            yield f"{said}, best is {best}"
        if bool(said.proof) != (bound == value):
            yield f"{said}: a proof of something else"
        length = "" if case.deterministic_time >= _LONG_S else ", short"
        TALLY[f"scores {'proven' if said.proof else 'open'}{length}"] += 1


def graphs(case: Case) -> Iterator[str]:
    """Placements of graphs of operators, contiguous or not."""
    problem = case.dag
    best = least_of_all(problem)
    found = place_contiguous(problem) if problem.contiguous else place_free(problem, 2.0)
    TALLY[f"graphs, {'contiguous' if problem.contiguous else 'free'}: {found.status}"] += 1
    if found.status == "infeasible" or best is None:
        if (found.status == "infeasible") != (best is None) and (best is not None or found.machines):
            yield f"{found}, best is {best}"
        return
    if found.bound > best or (found.machines and largest_load(problem, found.machines) != found.value):
        yield f"{found}, best is {best}"
    if found.status == "optimal" and found.value != best:
        yield f"{found}, best is {best}"


CLAIMS: tuple[Callable[[Case], Iterator[str]], ...] = (
    scores, counts, runs, loads, fillings, moves, names, searches, placements, graphs,
)  # fmt: skip


# --- running ----------------------------------------------------------------------------------------------------------


def draw_case(seed: str) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    problem, dag = draw_problem(draw), draw_dag(draw)
    objectives = tuple(draw.sample([*Objective], draw.choice((1, 1, 2, 2, 2, 3))))
    known = tuple(draw.randrange(len(problem.wafers)) for _ in problem.items) if draw.random() < 0.1 else None
    return Case(problem, objectives, dag, draw.choice((3.0, 3.0, 3.0, 0.02, 0.001)), known)


def untrue(case: Case, claims: Callable[[Case], Iterator[str]]) -> str:
    """The first claim that is not true, or how the solver fails; empty if all are."""
    try:
        return next(claims(case), "")
    except Exception as error:  # whatever it is, it is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {where.filename}:{where.lineno}: {error}"


def shrunk(case: Case, claims: Callable[[Case], Iterator[str]]) -> Case:
    """A smaller case that the same is said of; as small as some seconds allow for."""
    kind, end = untrue(case, claims).split()[0], time.monotonic() + _SHRINK_S
    found = True
    while found:
        shorter = (case.objectives[:n] + case.objectives[n + 1 :] for n in range(len(case.objectives)))
        others = [replace(case, objectives=objectives) for objectives in shorter if objectives]
        others += [replace(case, problem=problem, known=None) for problem in smaller(case.problem)]
        found = False
        for other in others:
            if time.monotonic() < end and untrue(other, claims).startswith(kind):
                case, found = other, True
                break
    return case


def as_python(thing: object) -> str:
    """What evaluates to it, without what is so by default."""
    if isinstance(thing, tuple):
        return f"({', '.join(map(as_python, thing))}{',' * (len(thing) == 1)})"
    if isinstance(thing, Enum):
        return f"{type(thing).__name__}.{thing.name}"
    if not is_dataclass(thing):
        return repr(thing)
    given = [(field.name, getattr(thing, field.name)) for field in fields(thing) if not _is_default(thing, field)]
    return f"{type(thing).__name__}({', '.join(f'{name}={as_python(value)}' for name, value in given)})"


def _is_default(thing: object, field) -> bool:
    return getattr(thing, field.name) == field.default


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="of this seed's cases, the first to try")
    parser.add_argument("--go-on", action="store_true", help="after a counterexample")
    given = parser.parse_args()
    end, number, found = time.monotonic() + given.seconds, given.first, 0
    while time.monotonic() < end:
        # Told before it runs: what aborts the process leaves no other trace.
        print(f"case {number}", end="\r", file=sys.stderr, flush=True)
        case = draw_case(f"{given.seed}:{number}")
        for claims in CLAIMS:
            if text := untrue(case, claims):
                small = shrunk(case, claims)
                print(f"# --seed {given.seed} --first {number}, {claims.__name__}: {text}\ncase = {as_python(small)}")
                print(f"print(untrue(case, {claims.__name__}))  # {untrue(small, claims)}", flush=True)
                found += 1
                if not given.go_on:
                    return 1
        number += 1
    print(f"{number - given.first} cases, {found} counterexamples")
    for name, times in sorted(TALLY.items()):
        print(f"{times:8} {name}")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
