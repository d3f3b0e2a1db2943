"""Placements are the best there are: every claim of the solver against the enumeration of all placements."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.diagnostics import InfeasibleError, TimeLimitError
from ir.objective import Objective
from ir.rules import RuleKind
from partitioner.solver import place as placing
from partitioner.solver.chain import best_runs
from partitioner.solver.counting import counting_bound
from partitioner.solver.cpsat import Answer, Limits, Task, solve
from partitioner.solver.expressions import expression, require
from partitioner.solver.filling import fill, smallest_bottleneck
from partitioner.solver.model import Formulation
from partitioner.solver.place import place
from partitioner.solver.problem import Curve, Flow, Item, Problem, Restriction, Wafer, equal_wafers
from partitioner.solver.score import MOST_USERS, faults, pipeline, score

ROOT = Path(__file__).parent.parent
ONE = Flow(0, (1,), 1)


# --- the enumeration ------------------------------------------------------------------------------------------------


def allowed(problem: Problem, wafers: tuple[int, ...]) -> bool:
    """The rules: values flow forward, no wafer is skipped, none holds too many tiles or what must be apart."""
    forward = all(wafers[flow.source] <= wafers[target] for flow in problem.flows for target in flow.targets)
    gap_free = set(wafers) == set(range(max(wafers) + 1))
    return forward and gap_free and all(fits(problem, wafers, wafer) for wafer in set(wafers))


def fits(problem: Problem, wafers: tuple[int, ...], wafer: int) -> bool:
    on = {index for index, place_ in enumerate(wafers) if place_ == wafer}
    tiles = sum(problem.items[index].tiles for index in on)
    kinds = Counter(problem.items[index].alike for index in on)
    return tiles <= problem.wafers[0].tiles and not any(Counter(apart) <= kinds for apart in problem.misfits)


def fullest(problem: Problem, wafers: tuple[int, ...]) -> int:
    return max(sum(i.bytes for i, w in zip(problem.items, wafers, strict=True) if w == wafer) for wafer in set(wafers))


def sent(problem: Problem, wafers: tuple[int, ...]) -> int:
    """Each value once to each other wafer that reads it, counted wafer by wafer."""
    total = 0
    for flow in problem.flows:
        for wafer in range(len(problem.wafers)):
            readers = [target for target in flow.targets if wafers[target] == wafer]
            total += flow.bytes_per_token if readers and wafers[flow.source] != wafer else 0
    return total


def best_of_all(problem: Problem) -> tuple[int, int] | None:
    """The smallest bottleneck and, of the placements that reach it, the least traffic; ``None`` if there is none."""
    every = product(range(len(problem.wafers)), repeat=len(problem.items))
    ranks = [(fullest(problem, w), sent(problem, w)) for w in every if allowed(problem, w)]
    return min(ranks, default=None)


# --- random problems ------------------------------------------------------------------------------------------------


@st.composite
def problems(draw, chain: bool) -> Problem:
    count = draw(st.integers(1, 7 if chain else 6))
    sizes = st.tuples(st.integers(0, 12), st.integers(1, 6))
    kinds = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    items = tuple(Item((n,), *draw(sizes), kind) for n, kind in enumerate(kinds))
    flows = [Flow(n, (n + 1,), draw(st.integers(0, 9))) for n in range(count - 1)] if chain else []
    for source in draw(st.lists(st.integers(0, count - 2), max_size=4)) if count > 1 else []:
        targets = draw(st.sets(st.integers(source + 1, count - 1), min_size=1, max_size=3))
        flows.append(Flow(source, tuple(sorted(targets)), draw(st.integers(0, 9))))
    combination = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda kinds: tuple(sorted(kinds)))
    apart = draw(st.lists(combination, max_size=2))
    wafers = equal_wafers(draw(st.integers(1, 3)), draw(st.integers(4, 20)))
    return Problem(items, tuple(flows), wafers, tuple(apart))


def solves_exactly(problem: Problem) -> None:
    best = best_of_all(problem)
    if best is None:
        with pytest.raises(InfeasibleError) as caught:
            place(problem)
        assert two_arguments(caught.value)
        return
    solution = place(problem)
    assert allowed(problem, solution.assignment)
    assert (fullest(problem, solution.assignment), sent(problem, solution.assignment)) == best
    assert tuple(found.value for found in solution.scores) == best
    assert [found.bound for found in solution.scores] == [found.value for found in solution.scores]
    assert all(found.proof for found in solution.scores), "small problems are solved to the end"


def two_arguments(error: InfeasibleError) -> bool:
    (fault,) = error.diagnostics
    return fault.code == "W0401" and len(re.split("; | and ", str(fault.facts["proof"]))) > 1


examples = settings(max_examples=150, deadline=None, derandomize=True)


@examples
@given(problems(chain=True))
def test_chains_are_placed_as_well_as_can_be(problem):
    assert problem.is_chain
    solves_exactly(problem)


@examples
@given(problems(chain=False))
def test_graphs_are_placed_as_well_as_can_be(problem):
    solves_exactly(problem)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(problems(chain=True), st.integers(0, 60))
def test_exact_search_over_chains_is_exact(problem, most):
    every = [w for w in product(range(len(problem.wafers)), repeat=len(problem.items)) if allowed(problem, w)]
    within = [w for w in every if fullest(problem, w) <= most]
    filled = fill(problem, most)
    assert (filled is None) == (not within)
    assert not filled or filled in within
    found = smallest_bottleneck(problem)
    assert (found is None) == (not every)
    if found:
        assert found[1] in every
        assert found[0] == fullest(problem, found[1]) == min(fullest(problem, w) for w in every)


def least_traffic(problem: Problem, most_bytes: int) -> tuple[int, ...] | None:
    wafers = tuple(replace(wafer, bytes=most_bytes) for wafer in problem.wafers)
    runs = best_runs(replace(problem, wafers=wafers), [Objective.TRAFFIC])
    return runs and runs.assignment


def test_two_cheap_cuts_are_better_than_one_dear_cut():
    items = tuple(Item((n,), size, 1) for n, size in enumerate((3, 1, 1, 3)))
    problem = Problem(items, tuple(Flow(n, (n + 1,), size) for n, size in enumerate((1, 9, 1))), equal_wafers(3, 10))
    assert least_traffic(problem, 4) == (0, 1, 1, 2)
    assert least_traffic(replace(problem, wafers=equal_wafers(2, 10)), 4) == (0, 0, 1, 1)


def test_a_value_read_on_three_wafers_is_sent_twice():
    items = tuple(Item((n,), 1, 1) for n in range(4))
    flows = (Flow(0, (1, 3), 9), Flow(0, (1,), 1), Flow(1, (2,), 5), Flow(2, (3,), 1))
    assert least_traffic(Problem(items, flows, equal_wafers(3, 10)), 2) == (0, 0, 1, 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems(chain=False), st.randoms(use_true_random=False))
def test_figures_of_a_placement_are_those_of_the_enumeration(problem, random):
    wafers = tuple(random.randrange(len(problem.wafers)) for _ in problem.items)
    assert score(problem, wafers, Objective.BALANCE) == fullest(problem, wafers)
    assert score(problem, wafers, Objective.TRAFFIC) == sent(problem, wafers)


# --- every objective, every rule --------------------------------------------------------------------------------------


def draw_problem(draw: random.Random) -> Problem:
    """A tiny problem with whatever problems can have: branches, unequal wafers, rules, links, curves, a former plan."""
    count, wafers, users = draw.randint(1, 5), draw.randint(1, 3), draw.randint(1, 3)
    items = tuple(draw_item(draw, number, users) for number in range(count))
    flows = [
        Flow(source, tuple(sorted(draw.sample(range(source + 1, count), size))), draw.randint(0, 9), draw.randint(0, 5))
        for source in range(count - 1)
        for size in [draw.randint(1, min(3, count - 1 - source))]
        for _ in range(draw.randint(0, 2))
    ]
    odd = [Wafer(draw.choice((6, 10, 14)), draw.choice((20, 30, 1 << 60)), draw.choice((1000, 1500))) for _ in range(3)]
    pairs = [pair for pair in combinations(range(wafers), 2) if draw.random() < 0.3]
    return Problem(
        items=items,
        flows=tuple(flows),
        wafers=equal_wafers(wafers, draw.randint(4, 20)) if draw.random() < 0.4 else tuple(odd[:wafers]),
        misfits=tuple(tuple(sorted(draw.choices(range(4), k=2))) for _ in range(draw.choice((0, 0, 1)))),
        restrictions=tuple(draw_rule(draw, count, wafers) for _ in range(draw.choice((0, 0, 1, 2)))),
        take_turns=draw.random() < 0.3,
        hand_over_fs=draw.randint(0, 5),
        link_costs=tuple((*pair, draw.randint(2, 4)) for pair in pairs) if draw.random() < 0.4 else (),
        users=users,
        previous=tuple(draw.choice((None, *range(wafers))) for _ in items) if draw.random() < 0.5 else (),
    )


def draw_item(draw: random.Random, number: int, users: int) -> Item:
    state = draw.randint(0, 3)
    size = draw.randint(0, 12) + state * users
    curves = (draw_curve(draw), draw_curve(draw))
    return Item((number,), size, draw.randint(1, 6), draw.randint(0, 3), state, draw.randint(0, 9), *curves)


def draw_curve(draw: random.Random) -> Curve:
    slopes = sorted((draw.randint(0, 9) for _ in range(draw.randint(0, 3))), reverse=True)
    drops = tuple((draw.randint(1, 3), saved) for saved in slopes)
    return Curve(sum(tiles * saved for tiles, saved in drops) + draw.randint(0, 20), drops)


def draw_rule(draw: random.Random, count: int, wafers: int) -> Restriction:
    kind = draw.choice([*RuleKind])
    items = tuple(sorted(draw.sample(range(count), draw.randint(1, count))))
    cut = draw.randint(0, len(items))
    groups = (items[:cut], items[cut:]) if kind is RuleKind.ORDER else (items,)
    named = tuple(sorted(draw.sample(range(wafers), draw.randint(1, wafers))))
    return Restriction(kind, groups, named, draw.randint(1, 3))


def rank(problem: Problem, wafers: tuple[int, ...], objectives) -> list[int]:
    """The smaller, the better."""
    return [(-1 if goal.is_maximum else 1) * score(problem, wafers, goal) for goal in objectives]


def every_placement(problem: Problem) -> list[tuple[int, ...]]:
    every = product(range(len(problem.wafers)), repeat=len(problem.items))
    return [wafers for wafers in every if not faults(problem, wafers)]


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_asked_is_placed_as_well_as_can_be(seed):
    """Forty problems each, two objectives in any order: values, bounds and "infeasible" against the enumeration."""
    draw = random.Random(seed)
    for _ in range(40):
        problem, objectives = draw_problem(draw), draw.sample([*Objective], 2)
        best = min((rank(problem, wafers, objectives) for wafers in every_placement(problem)), default=None)
        if best is None:
            with pytest.raises(InfeasibleError) as caught:
                place(problem, objectives)
            assert two_arguments(caught.value)
            continue
        solution = place(problem, objectives)
        assert faults(problem, solution.assignment) == ()
        assert rank(problem, solution.assignment, objectives) == best
        assert [found.objective for found in solution.scores] == objectives
        assert [found.value for found in solution.scores] == [
            score(problem, solution.assignment, o) for o in objectives
        ]
        assert all(found.proof and found.bound == found.value for found in solution.scores)
        assert solution.order == pipeline(problem, solution.assignment)


@pytest.mark.parametrize("objective", Objective)
def test_expressions_of_the_search_are_the_scores(objective):
    """Each objective is a pair: with the placement held fixed, its expression has the score's value."""
    draw = random.Random(17)
    checked = 0
    while checked < 40:
        problem = draw_problem(draw)
        every = every_placement(problem)
        for wafers in draw.sample(every, min(2, len(every))):
            value = score(problem, wafers, objective)
            form = Formulation(problem)
            form.require(wafers)
            require(form, objective, value)
            if objective is Objective.ROOM:
                assert status_of(form) == "OPTIMAL"
                require(form, objective, value + 1)
                assert status_of(form) == ("INFEASIBLE" if value < MOST_USERS else "OPTIMAL")
            else:
                form.model.minimize(expression(form, objective))
                assert status_of(form, value) == "OPTIMAL"
            checked += 1


def status_of(form: Formulation, value: int = 0) -> str:
    """How the search of a model ends, with ``value``."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    status = solver.status_name(solver.solve(form.model))
    assert status == "INFEASIBLE" or round(solver.objective_value) == value
    return status


def test_bounds_by_counting_are_bounds():
    draw = random.Random(5)
    for _ in range(200):
        problem, (first, second) = draw_problem(draw), draw.sample([*Objective], 2)
        every = every_placement(problem)
        if not every:
            continue
        counted = {goal: counting_bound(problem, goal) for goal in (first, second)}
        for goal, bound in counted.items():
            reached = [score(problem, wafers, goal) for wafers in every]
            assert bound >= max(reached) if goal.is_maximum else bound <= min(reached)
        kept = score(problem, every[0], first)
        good = [w for w in every if rank(problem, w, [first]) <= rank(problem, every[0], [first])]
        reached = [score(problem, wafers, second) for wafers in good]
        bound = counting_bound(problem, second, {first: kept})
        assert bound >= max(reached) if second.is_maximum else bound <= min(reached)


# --- what a solver's word is worth ------------------------------------------------------------------------------------


def split_problem() -> Problem:
    """Two strands that join: no chain, best at 7 bytes, above the counting bound of 6."""
    items = tuple(Item((n,), size, 1) for n, size in enumerate((4, 3, 4, 1)))
    return Problem(items, (Flow(0, (3,), 5), Flow(1, (3,), 2), Flow(2, (3,), 1)), equal_wafers(2, 10))


BALANCE = (Objective.BALANCE,)


def tell_lies(monkeypatch, answer: Answer) -> None:
    """CP-SAT gives a wrong answer wherever presolve runs, and the right one without; and nobody else can tell."""

    def solve_(task, limits, hint, *, presolve=True, found=None):
        return answer if presolve else solve(task, limits, hint, presolve=False)

    monkeypatch.setattr(placing, "solve", solve_)
    monkeypatch.setattr(placing, "least_load", lambda *_: None)


def test_a_wrong_optimum_is_not_called_optimal(monkeypatch):
    problem = split_problem()
    assert best_of_all(problem)[0] == 7
    tell_lies(monkeypatch, Answer("OPTIMAL", (0, 0, 0, 1), 11, 11))
    (found,) = place(problem, BALANCE).scores
    assert (found.value, found.bound, found.proof) == (7, 6, "")


@pytest.mark.parametrize("answer", [Answer("INFEASIBLE", None, -1, None), Answer("OPTIMAL", (0, 0, 1, 1), 9, 9)])
def test_a_wrong_word_on_a_placement_that_exists_proves_nothing(monkeypatch, answer):
    problem = split_problem()
    tell_lies(monkeypatch, answer)
    solution = place(problem, BALANCE)
    assert allowed(problem, solution.assignment)
    assert (solution.scores[0].bound, solution.scores[0].proof) == (6, "")


@pytest.mark.parametrize("answer", [Answer("UNKNOWN", None, -1, None), Answer("FEASIBLE", (0, 0, 1, 1), 7, 3)])
def test_one_search_alone_proves_nothing(monkeypatch, answer):
    tell_lies(monkeypatch, answer)
    (found,) = place(split_problem(), BALANCE).scores
    assert (found.value, found.bound, found.proof) == (7, 6, "")


def test_a_wrong_optimum_of_room_is_not_called_optimal(monkeypatch):
    """Of what is to be large, a bound below the value is the wrong one."""
    items = tuple(Item((n,), size, 1, state_bytes=size) for n, size in enumerate((4, 3, 4, 1)))
    problem = replace(split_problem(), items=items, wafers=equal_wafers(2, 10, 22))
    objectives = (Objective.ROOM,)
    (right,) = place(problem, objectives).scores
    assert right.proof
    assert right.value == right.bound == max(score(problem, w, Objective.ROOM) for w in every_placement(problem)) == 3
    for answer in (Answer("OPTIMAL", (0, 0, 0, 1), 2, 2), Answer("INFEASIBLE", None, -1, None)):
        tell_lies(monkeypatch, answer)
        (found,) = place(problem, objectives).scores
        assert not found.proof or found.proof == "counting bound"


def test_a_wrong_infeasible_is_not_called_proven(monkeypatch):
    """Items that fit in pairs, but not as runs in their order nor by first fit, so that only CP-SAT can tell."""
    problem = Problem(tuple(Item((n,), 1, tiles) for n, tiles in enumerate((6, 6, 4, 4))), (), equal_wafers(2, 10))
    assert best_of_all(problem) == (2, 0)
    assert smallest_bottleneck(problem) is None
    monkeypatch.setattr(placing, "first_fit", lambda _problem, _seed: None)
    assert place(problem).scores[0].value == 2
    tell_lies(monkeypatch, Answer("INFEASIBLE", None, -1, None))
    with pytest.raises(TimeLimitError) as caught:
        place(problem)
    assert caught.value.diagnostics[0].code == "W0402"


def test_a_score_that_a_later_search_betters_is_better(monkeypatch):
    """What was out of time for one objective is found with the next: scores are those of the placement given."""

    def late(task, limits, hint, *, presolve=True, found=None):
        return Answer("FEASIBLE", (0, 1, 1, 1), 2, 0) if len(task.kept) else Answer("UNKNOWN", None, -1, None)

    problem = replace(split_problem(), flows=(Flow(0, (3,), 2), Flow(0, (3,), 9), Flow(2, (3,), 20)))
    for name, stub in (("solve", late), ("best_runs", lambda *_: None), ("least_load", lambda *_: None)):
        monkeypatch.setattr(placing, name, stub)
    solution = place(problem, (Objective.BALANCE, Objective.TRAFFIC), known=(0, 0, 0, 1))
    assert [found.value for found in solution.scores] == [8, 11]
    assert all(found.bound <= found.value for found in solution.scores)


def test_dual_reductions_of_presolve_lose_no_placement():
    """Times as large as real ones, on unequal wafers: ortools 9.15 called 41 ms the least, and aborted with a hint."""
    first, second = ((1, 9 * 10**12), (4, 2 * 10**12)), ((2, 8 * 10**12), (2, 5 * 10**12), (1, 4 * 10**12))
    items = (
        Item((0,), 7 << 30, 4, slowest=Curve(17 * 10**12, first)),
        Item((1,), 7 << 30, 5, slowest=Curve(30 * 10**12, second)),
    )
    wafers = (Wafer(14, 20 << 30), Wafer(25, slowness_permille=700), Wafer(25, slowness_permille=700))
    order = Restriction(RuleKind.ORDER, ((0,), (1,)))
    problem = Problem(items, (), wafers, restrictions=(order,))
    best = min(score(problem, placed, Objective.BOTTLENECK) for placed in every_placement(problem))
    for hint in (None, (0, 1), (1, 2)):
        answer = solve(Task(problem, Objective.BOTTLENECK), Limits(), hint)
        assert (answer.status, answer.value) == ("OPTIMAL", best)


def test_what_a_search_finds_is_checked(monkeypatch):
    """A placement that breaks a rule is none, whatever the search says of it."""
    tell_lies(monkeypatch, Answer("OPTIMAL", (1, 1, 1, 0), 6, 6))
    problem = split_problem()
    (found,) = place(problem, BALANCE).scores
    assert (found.value, found.proof) == (7, "")


def test_branches_are_balanced_by_a_search_over_prefixes(monkeypatch):
    """The largest sum of bytes, and of times where blocks take turns, needs no CP-SAT; slow links may leave it open."""
    problem = split_problem()
    monkeypatch.setattr(placing, "solve", lambda *_, **__: Answer("UNKNOWN", None, -1, None))
    (found,) = place(problem, BALANCE).scores
    assert (found.value, found.bound) == (7, 7)
    assert "prefixes" in found.proof
    assert "suffixes" in found.proof
    items = tuple(replace(item, latency=Curve(item.bytes)) for item in problem.items)
    turns = replace(problem, items=items, take_turns=True)
    (fast,) = place(turns, (Objective.BOTTLENECK,)).scores
    assert (fast.value, fast.bound) == (7, 7)
    slow = replace(turns, flows=tuple(replace(flow, link_fs=100) for flow in turns.flows))
    (alone,) = place(slow, (Objective.BOTTLENECK,)).scores
    assert alone.value == 12  # all on one wafer
    assert not alone.proof
    assert alone.bound <= 7


def test_bounds_stay_below_values_when_time_runs_out():
    items = tuple(Item((n,), 7 + n * n % 11, 1) for n in range(24))
    flows = tuple(Flow(n, (n + 2,), 1 + n % 3) for n in range(22))
    problem = Problem(items, flows, equal_wafers(5, 100))
    for seconds in (0.0001, 0.01):
        solution = place(problem, limits=Limits(deterministic_time=seconds))
        assert allowed(problem, solution.assignment)
        assert all(found.bound <= found.value for found in solution.scores)
        assert all((found.bound == found.value) == bool(found.proof) for found in solution.scores)


# --- infeasible, feasible, and at the edge --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "argument"),
    [
        (Problem((Item((0,), 1, 11),), (), equal_wafers(3, 10)), "a block is larger than a wafer"),
        (
            Problem((Item((0,), 1, 6), Item((1,), 1, 6)), (ONE,), equal_wafers(1, 10)),
            "the blocks need more tiles than all",
        ),
        (Problem((Item((0,), 1, 6),) * 3, (ONE, Flow(1, (2,), 1)), equal_wafers(2, 10)), "exact search"),
        (Problem((Item((0,), 1, 6),) * 3, (Flow(0, (2,), 1),), equal_wafers(2, 10)), "CP-SAT without presolve"),
    ],
)
def test_infeasible_is_proven_by_two_arguments(problem, argument):
    with pytest.raises(InfeasibleError) as caught:
        place(problem)
    assert argument in str(caught.value.diagnostics[0].facts["proof"])
    assert two_arguments(caught.value)


@pytest.mark.parametrize("objective", Objective)
def test_where_no_wafer_is_of_use_nothing_is_placed(objective):
    """Not by chance of a first rule: an empty model would fail."""
    problem = Problem((Item((0,), 1, 3), Item((1,), 1, 3)), (ONE,), (Wafer(0), Wafer(2)), previous=(0, 1))
    with pytest.raises(InfeasibleError) as caught:
        place(problem, (objective,))
    assert two_arguments(caught.value)


def test_room_that_fits_in_no_integer_is_refused():
    items = (Item((0,), 0, 1, state_bytes=1 << 30),)
    limits = ((Objective.ROOM, 1 << 35),)
    with pytest.raises(InfeasibleError):
        place(Problem(items, (), (Wafer(10),), previous=(0,), thresholds=limits), (Objective.BOTTLENECK,))


def test_a_wafer_may_be_filled_to_the_last_tile():
    problem = Problem((Item((0,), 4, 5), Item((1,), 4, 5)), (ONE,), equal_wafers(1, 10))
    assert place(problem).assignment == (0, 0)
    with pytest.raises(InfeasibleError):
        place(replace(problem, wafers=equal_wafers(1, 9)))


def test_what_is_learnt_of_some_layers_holds_for_all_like_them():
    items = tuple(Item((n,), 4, 1, alike=7) for n in range(3))
    chain, strands = (ONE, Flow(1, (2,), 1)), (Flow(0, (2,), 1),)
    for flows in (chain, strands):
        assert set(place(Problem(items, flows, equal_wafers(3, 10), ((7, 7),))).assignment) == {0, 1, 2}
        with pytest.raises(InfeasibleError):
            place(Problem(items, flows, equal_wafers(2, 10), ((7, 7),)))


def test_an_item_that_does_not_fit_alone_fits_nowhere():
    problem = Problem((Item((0,), 4, 5, 0), Item((1,), 4, 5, 1)), (ONE,), equal_wafers(2, 10), ((1,),))
    with pytest.raises(InfeasibleError):
        place(problem)


PROGRAM = """
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import place
from partitioner.solver.problem import Flow, Item, Problem, equal_wafers

items = tuple(Item((n,), 5 + n * n % 7, 1 + n % 3, n) for n in range(9))
chain = tuple(Flow(n, (n + 1, n + 2), 1 + n % 4) for n in range(7)) + (Flow(7, (8,), 1),)
strands = tuple(Flow(n, (n + 3,), 2) for n in range(6))
apart = ((0, 1, 2), (3, 3))
for _ in range(5):
    for flows in (chain, strands):
        print(place(Problem(items, flows, equal_wafers(3, 12), apart)))
"""


def test_the_same_problem_gives_the_same_placement_in_every_run():
    """Twenty runs, in processes with four hash seeds."""
    printed: Counter[str] = Counter()
    for seed in ("0", "1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        printed.update(done.stdout.splitlines())
    assert sorted(printed.values()) == [20, 20]
