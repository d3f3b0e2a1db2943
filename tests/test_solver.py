"""Placements are the best there are: every claim of the solver against the enumeration of all placements."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.diagnostics import InfeasibleError, TimeLimitError
from partitioner.solver import place as placing
from partitioner.solver.chain import bottleneck, counting_bound, fill, least_traffic, smallest_bottleneck, traffic
from partitioner.solver.cpsat import Answer, Limits, solve_bottleneck, solve_traffic
from partitioner.solver.place import place
from partitioner.solver.problem import Flow, Item, Problem, equal_wafers

ROOT = Path(__file__).parent.parent
LIMITS = Limits()
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
            place(problem, limits=LIMITS)
        assert caught.value.diagnostics[0].facts["proof"].count(";") >= 1, "one argument alone is no proof"
        return
    solution = place(problem, limits=LIMITS)
    assert allowed(problem, solution.assignment)
    assert (fullest(problem, solution.assignment), sent(problem, solution.assignment)) == best
    assert tuple(score.value for score in solution.scores) == best
    assert solution.scores[0].gap == 0, "small problems are solved to the end"
    assert solution.scores[0].proof
    assert place(problem, limits=LIMITS) == solution


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
    filled, least = fill(problem, most), least_traffic(problem, most)
    assert (filled is None) == (least is None) == (not within)
    if filled and least:
        assert filled in within
        assert least in within
        assert sent(problem, least) == min(sent(problem, w) for w in within)
    found = smallest_bottleneck(problem)
    assert (found is None) == (not every)
    if found:
        assert found[1] in every
        assert found[0] == fullest(problem, found[1]) == min(fullest(problem, w) for w in every)


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
    assert bottleneck(problem, wafers) == fullest(problem, wafers)
    assert traffic(problem, wafers) == sent(problem, wafers)
    best = best_of_all(problem)
    assert best is None or counting_bound(problem) <= best[0]


# --- what a solver's word is worth ----------------------------------------------------------------------------------


def split_problem() -> Problem:
    """Two strands that join: no chain, best at 7 bytes, above the counting bound of 6."""
    items = tuple(Item((n,), size, 1) for n, size in enumerate((4, 3, 4, 1)))
    return Problem(items, (Flow(0, (3,), 5), Flow(1, (3,), 2), Flow(2, (3,), 1)), equal_wafers(2, 10))


def lying(answer_to_first: Answer):
    """CP-SAT that gives a wrong answer wherever presolve runs, and the right one without."""

    def solve(problem, limits, hint, *, presolve=True):
        return answer_to_first if presolve else solve_bottleneck(problem, limits, hint, presolve=False)

    return solve


def test_a_wrong_optimum_is_not_called_optimal(monkeypatch):
    problem = split_problem()
    assert best_of_all(problem)[0] == 7
    monkeypatch.setattr(placing, "solve_bottleneck", lying(Answer("OPTIMAL", (0, 0, 0, 1), 11, 11)))
    solution = place(problem, limits=LIMITS)
    assert solution.scores[0].proof == ""
    assert solution.scores[0].bound == counting_bound(problem) == 6


def test_a_wrong_infeasible_does_not_hide_a_placement(monkeypatch):
    problem = split_problem()
    monkeypatch.setattr(placing, "solve_bottleneck", lying(Answer("INFEASIBLE", None, -1, 0)))
    solution = place(problem, limits=LIMITS)
    assert allowed(problem, solution.assignment)
    assert solution.scores[0].proof == ""


def test_a_wrong_infeasible_is_not_called_proven(monkeypatch):
    """Items that fit in pairs, but not as runs in their order, so that only CP-SAT can tell."""
    problem = Problem(tuple(Item((n,), 1, tiles) for n, tiles in enumerate((6, 6, 4, 4))), (), equal_wafers(2, 10))
    assert best_of_all(problem) == (2, 0)
    assert smallest_bottleneck(problem) is None
    assert place(problem, limits=LIMITS).scores[0].value == 2
    monkeypatch.setattr(placing, "solve_bottleneck", lying(Answer("INFEASIBLE", None, -1, 0)))
    with pytest.raises(TimeLimitError) as caught:
        place(problem, limits=LIMITS)
    assert caught.value.diagnostics[0].code == "W0402"


def test_an_optimum_that_a_second_search_beats_is_not_called_optimal(monkeypatch):
    """Runs in order reach 8 bytes and the wrong search agrees; without presolve 6 are found."""
    problem = Problem(tuple(Item((n,), size, 1) for n, size in enumerate((4, 4, 2, 2))), (), equal_wafers(2, 10))
    assert (smallest_bottleneck(problem)[0], best_of_all(problem)[0]) == (8, 6)
    monkeypatch.setattr(placing, "solve_bottleneck", lying(Answer("OPTIMAL", (0, 0, 1, 1), 8, 8)))
    solution = place(problem, limits=LIMITS)
    assert solution.scores[0].proof == ""
    assert solution.scores[0].bound == 6


def test_a_contradiction_between_two_searches_proves_nothing(monkeypatch):
    chain = replace(split_problem(), flows=tuple(Flow(n, (n + 1,), 1) for n in range(3)))
    best = best_of_all(chain)[0]
    assert place(chain, limits=LIMITS).scores[0].proof
    for wrong in (
        Answer("OPTIMAL", (0, 0, 0, 1), 11, 11),
        Answer("INFEASIBLE", None, -1, 0),
        Answer("UNKNOWN", None, -1, 0),
    ):
        monkeypatch.setattr(placing, "solve_bottleneck", lying(wrong))
        solution = place(chain, limits=LIMITS)
        assert (solution.scores[0].value, solution.scores[0].proof) == (best, "")


def test_a_wrong_infeasible_does_not_hide_what_exact_search_finds(monkeypatch):
    chain = replace(split_problem(), flows=tuple(Flow(n, (n + 1,), 1) for n in range(3)))
    monkeypatch.setattr(placing, "solve_bottleneck", lying(Answer("INFEASIBLE", None, -1, 0)))
    assert place(chain, limits=LIMITS).scores[0].value == best_of_all(chain)[0]


def test_bounds_stay_below_values_when_time_runs_out():
    items = tuple(Item((n,), 7 + n * n % 11, 1) for n in range(24))
    flows = tuple(Flow(n, (n + 2,), 1 + n % 3) for n in range(22))
    problem = Problem(items, flows, equal_wafers(5, 100))
    for seconds in (0.0001, 0.01):
        try:
            solution = place(problem, limits=Limits(deterministic_time=seconds))
        except TimeLimitError:
            continue
        assert allowed(problem, solution.assignment)
        assert solution.scores[0].bound <= solution.scores[0].value
        assert (solution.scores[0].bound == solution.scores[0].value) == bool(solution.scores[0].proof)


def test_bounds_of_the_search_are_never_above_its_values():
    problem = split_problem()
    first = solve_bottleneck(problem, LIMITS, None)
    assert first.bound <= first.value == 7
    second = solve_traffic(problem, LIMITS, first.assignment, first.value)
    assert second.bound <= second.value == best_of_all(problem)[1]


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
        place(problem, limits=LIMITS)
    (fault,) = caught.value.diagnostics
    assert fault.code == "W0401"
    assert argument in fault.facts["proof"]
    assert ";" in fault.facts["proof"]


def test_a_wafer_may_be_filled_to_the_last_tile():
    problem = Problem((Item((0,), 4, 5), Item((1,), 4, 5)), (ONE,), equal_wafers(1, 10))
    assert place(problem, limits=LIMITS).assignment == (0, 0)
    with pytest.raises(InfeasibleError):
        place(replace(problem, wafers=equal_wafers(1, 9)), limits=LIMITS)


def test_what_is_learnt_of_some_layers_holds_for_all_like_them():
    items = tuple(Item((n,), 4, 1, alike=7) for n in range(3))
    chain, strands = (ONE, Flow(1, (2,), 1)), (Flow(0, (2,), 1),)
    for flows in (chain, strands):
        assert set(place(Problem(items, flows, equal_wafers(3, 10), ((7, 7),)), limits=LIMITS).assignment) == {0, 1, 2}
        with pytest.raises(InfeasibleError):
            place(Problem(items, flows, equal_wafers(2, 10), ((7, 7),)), limits=LIMITS)


def test_an_item_that_does_not_fit_alone_fits_nowhere():
    problem = Problem((Item((0,), 4, 5, 0), Item((1,), 4, 5, 1)), (ONE,), equal_wafers(2, 10), ((1,),))
    with pytest.raises(InfeasibleError):
        place(problem, limits=LIMITS)


PROGRAM = """
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import place
from partitioner.solver.problem import Flow, Item, Problem, equal_wafers

items = tuple(Item((n,), 5 + n * n % 7, 1 + n % 3, n) for n in range(9))
chain = tuple(Flow(n, (n + 1, n + 2), 1 + n % 4) for n in range(7)) + (Flow(7, (8,), 1),)
strands = tuple(Flow(n, (n + 3,), 2) for n in range(6))
apart = ((0, 1, 2), (3, 3))
for flows in (chain, strands):
    print(place(Problem(items, flows, equal_wafers(3, 12), apart)))
"""


def test_the_same_problem_gives_the_same_placement_in_every_process():
    printed = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    assert printed.pop().count("Solution(") == 2
