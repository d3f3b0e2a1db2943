"""The best runs of a chain are the best of all placements, and what is called proven is proven by what was checked."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations, product
from math import prod
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ir.objective import Objective
from ir.rules import RuleKind
from partitioner.solver import runs as runs_module
from partitioner.solver.certificates import Claim, Potentials, no_placement, no_shortcut
from partitioner.solver.chain import best_runs, why_no_runs
from partitioner.solver.costs import costs, shared_out
from partitioner.solver.counting import counting_bound
from partitioner.solver.cuts import solve
from partitioner.solver.problem import Assignment, Curve, Flow, Item, Problem, Restriction, Wafer, equal_wafers
from partitioner.solver.runs import Chain, Thresholds, furthest
from partitioner.solver.score import faults, least_time, score

ROOT = Path(__file__).parent.parent
OBJECTIVES = tuple(objective for objective in Objective if objective is not Objective.MOVES)


# --- random problems, and all their placements ------------------------------------------------------------------------


def random_curve(random: Random) -> Curve:
    savings = sorted((random.randint(1, 20) for _ in range(random.randint(0, 3))), reverse=True)
    drops = tuple((random.randint(1, 4), saved) for saved in savings)
    return Curve(sum(tiles * saved for tiles, saved in drops) + random.randint(0, 30), drops)


def random_item(random: Random, number: int) -> Item:
    size = random.randint(0, 12)
    state = random.choice((0, random.randint(0, size)))
    curves = random_curve(random), random_curve(random)
    return Item((number,), size, random.randint(1, 6), random.randint(0, 3), state, size - state, *curves)


def random_chain(seed: int, skips: bool = False) -> tuple[Problem, list[Objective]]:
    """A chain on few wafers, often of several kinds, and some objectives; ``skips``: some values are read later too."""
    random = Random(seed)
    count = random.randint(1, 7)
    items = tuple(random_item(random, number) for number in range(count))
    flows = [Flow(n, (n + 1,), random.randint(0, 9), random.randint(0, 25)) for n in range(count - 1)]
    for source in random.choices(range(count - 1), k=random.randint(0, 3)) if skips and count > 1 else ():
        readers = random.sample(range(source + 1, count), random.randint(1, min(3, count - 1 - source)))
        flows.append(Flow(source, tuple(sorted(readers)), random.randint(0, 9), random.randint(0, 25)))
    sizes = (0, 8, 12, 16, 25), (20, 30, 1 << 60), (1000, 1500, 700)
    kinds = [Wafer(*map(random.choice, sizes)) for _ in range(random.randint(1, 3))]
    wafers = tuple(random.choices(kinds, k=random.randint(1, 4)))
    apart = (
        tuple(sorted(random.choices(range(4), k=random.randint(1, 3)))) for _ in range(random.choice((0, 0, 1, 2)))
    )
    problem = Problem(items, tuple(flows), wafers, tuple(apart), hand_over_fs=random.randint(0, 30))
    objectives = random.sample(OBJECTIVES, random.randint(1, len(OBJECTIVES)))
    return replace(problem, take_turns=random.random() < 0.3), objectives


def placements(problem: Problem) -> Iterator[Assignment]:
    """All contiguous placements without faults, on wafers that have tiles."""
    count, usable = len(problem.items), [n for n, wafer in enumerate(problem.wafers) if wafer.tiles]
    for used in range(1, min(count, len(usable)) + 1):
        for cuts, wafers in product(combinations(range(1, count), used - 1), permutations(usable, used)):
            ends = (*cuts, count)
            lengths = [end - start for start, end in zip((0, *cuts), ends, strict=True)]
            placed = tuple(w for w, length in zip(wafers, lengths, strict=True) for _ in range(length))
            if not faults(problem, placed):
                yield placed


def rank(problem: Problem, objectives: list[Objective], assignment: Assignment) -> tuple[int, ...]:
    return tuple(score(problem, assignment, o) * (-1 if o.is_maximum else 1) for o in objectives)


# --- the best of all --------------------------------------------------------------------------------------------------


def test_best_runs_are_the_best_of_all_placements_with_proof():
    none = 0
    for seed in range(300):
        problem, objectives = random_chain(seed)
        best = min((rank(problem, objectives, placed) for placed in placements(problem)), default=None)
        found = best_runs(problem, objectives)
        if best is None:
            assert found is None, seed
            none += 1
            continue
        assert found is not None, seed
        assert not faults(problem, found.assignment), seed
        assert found.values == tuple(score(problem, found.assignment, objective) for objective in objectives), seed
        assert rank(problem, objectives, found.assignment) == best, (seed, objectives)
        assert all(" and " in proof for proof in found.proofs), (seed, objectives, found)
    assert 50 < none < 200


def test_what_values_that_skip_items_leave_open_is_not_called_proven():
    proven = optimal = some = 0
    for seed in range(200):
        problem, objectives = random_chain(seed, skips=True)
        best = min((rank(problem, objectives, placed) for placed in placements(problem)), default=None)
        found = best_runs(problem, objectives)
        assert (found is None) == (best is None), seed
        if found and best:
            held = rank(problem, objectives, found.assignment)
            known = sum(1 for proof in found.proofs if proof)
            assert held[:known] == best[:known], (seed, objectives)
            assert not any(found.proofs[known:])
            some, proven, optimal = some + 1, proven + all(found.proofs), optimal + (held == best)
    assert proven > 0.85 * some
    assert optimal > 0.97 * some


def test_why_there_are_no_runs_takes_two_arguments():
    said = 0
    for seed in range(200):
        problem, objectives = random_chain(seed)
        reason = why_no_runs(problem)
        if best_runs(problem, objectives):
            assert not reason
        else:
            assert reason.count(" and "), seed
            said += 1
    assert said > 50
    items = tuple(Item((n,), 1, 5) for n in range(4))
    flows = tuple(Flow(n, (n + 1,), 1) for n in range(3))
    assert why_no_runs(Problem(items, flows, equal_wafers(3, 9))) == (
        "exact search over contiguous placements and 3 windows that no wafer can hold"
    )
    assert not why_no_runs(Problem(items, (), equal_wafers(3, 9))), "no chain"


def test_counting_bounds_hold_for_all_placements():
    met = 0
    for seed in range(120):
        problem, _ = random_chain(seed, skips=True)
        for placed in placements(problem):
            for objective in OBJECTIVES:
                value, bound = score(problem, placed, objective), counting_bound(problem, objective)
                assert value <= bound if objective.is_maximum else value >= bound, (seed, objective)
                met += value == bound
    assert met > 500


def test_runs_of_other_problems_are_placements_without_proof():
    items = tuple(Item((n,), 3, 2, weight_bytes=n) for n in range(5))
    graph = Problem(items, (Flow(0, (2,), 1), Flow(1, (3, 4), 1)), equal_wafers(3, 5))
    found = best_runs(graph, (Objective.BALANCE, Objective.TRAFFIC))
    assert found
    assert not faults(graph, found.assignment)
    assert found.proofs == ("", "")
    chain = replace(graph, flows=tuple(Flow(n, (n + 1,), 1) for n in range(4)))
    moved = replace(chain, previous=(1, 1, 0, 0, None))
    stays = best_runs(moved, (Objective.MACHINES, Objective.BALANCE, Objective.MOVES))
    assert stays
    others = ([order[wafer] for wafer in stays.assignment] for order in permutations(range(3)))
    assert stays.values[2] == min(score(moved, tuple(other), Objective.MOVES) for other in others)
    assert stays.proofs == ("", "", "")
    pinned = replace(chain, restrictions=(Restriction(RuleKind.FORBID, ((0,),), wafers=(0,)),))
    assert best_runs(pinned, (Objective.BALANCE,)) is None, "no runs that obey the rule were found"


def test_too_many_kinds_are_placed_without_proof(monkeypatch):
    monkeypatch.setattr(runs_module, "_MOST_STATES", 20)
    near = 0
    for seed in range(60):
        problem, objectives = random_chain(seed)
        kinds = {wafer for wafer in problem.wafers if wafer.tiles}
        counts = [min(problem.wafers.count(kind), len(problem.items)) for kind in kinds]
        found = best_runs(replace(problem, wafers=problem.wafers * 3), objectives)
        if prod(3 * count + 1 for count in counts) > 40 and found:
            near += 1
            assert not faults(replace(problem, wafers=problem.wafers * 3), found.assignment)
    assert near > 5


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_runs_cost_what_a_placement_of_two_wafers_pays():
    for seed in range(60):
        problem, _ = random_chain(seed, skips=True)
        problem = replace(problem, wafers=(Wafer(60, 1 << 60, 1300),) * 3, misfits=())
        chain, count = Chain(problem), len(problem.items)
        starts, ends = (np.array(side) for side in zip(*combinations(range(count + 1), 2), strict=True))
        sent = costs(chain, Objective.TRAFFIC, problem.wafers[0], starts, ends).tolist()
        time_fs = shared_out(chain, problem.wafers[0], starts, ends).time_fs.tolist()
        for start, end, size, taken in zip(starts.tolist(), ends.tolist(), sent, time_fs, strict=True):
            flows = [flow for flow in problem.flows if flow.source < start]
            assert size == sum(f.bytes_per_token for f in flows if any(start <= t < end for t in f.targets))
            spare = 60 - sum(item.tiles for item in problem.items[start:end])
            assert taken == least_time([item.latency.slowed(1300) for item in problem.items[start:end]], spare)


# --- certificates -----------------------------------------------------------------------------------------------------


def claims(seed: int) -> tuple[Claim, dict[tuple[int, ...], int]] | None:
    """That a chain has no better balance than the best, and how far wafers reach within that."""
    problem, _ = random_chain(seed)
    found = best_runs(problem, (Objective.BALANCE,))
    if not found:
        return None
    chain = Chain(problem)
    better = Thresholds(len(problem.wafers), balance=found.values[0] - 1)
    reached = furthest(chain.wafers, chain.reach(better), better.machines)
    return Claim(problem, better, chain.wafers.kinds), dict(zip(chain.wafers.states, reached, strict=True))


def test_windows_refuse_what_is_not_so():
    refused = 0
    for claim, reached in filter(None, map(claims, range(120))):
        assert no_placement(claim, reached)
        met = replace(claim.thresholds, balance=(claim.thresholds.balance or 0) + 1)
        assert not no_placement(replace(claim, thresholds=met), reached), "the best itself is no proof against it"
        for state, position in reached.items():
            if any(state) and position:
                nearer = reached | {state: position - 1}
                assert not no_placement(claim, nearer), "a window one item too small, which a wafer can hold"
                refused += 1
        assert len(reached) == 1 or not no_placement(claim, dict([*reached.items()][:1])), "states left out"
        assert not no_placement(replace(claim, kinds=claim.kinds[1:]), reached), "a kind of wafer left out"
    assert refused > 50


def test_a_window_a_byte_too_small_is_refused():
    items = tuple(Item((n,), size, 1) for n, size in enumerate((5, 5, 5, 5)))
    problem = Problem(items, tuple(Flow(n, (n + 1,), 1) for n in range(3)), equal_wafers(2, 9))
    table = {(0,): 0, (1,): 1, (2,): 2}
    assert no_placement(Claim(problem, Thresholds(2, balance=9), (problem.wafers[0],)), table) == 2
    assert not no_placement(Claim(problem, Thresholds(2, balance=10), (problem.wafers[0],)), table)
    assert not no_placement(Claim(problem, Thresholds(2, balance=9), (problem.wafers[0],)), table | {(2,): 4})


@pytest.mark.parametrize("sums", [("traffic",), ("latency",), ("traffic", "latency"), ("latency", "traffic")])
def test_potentials_refuse_what_is_not_so(sums):
    objectives = tuple(map(Objective, sums))
    refused = 0
    for seed in range(100):
        problem, _ = random_chain(seed)
        chain, everything = Chain(problem), Thresholds(len(problem.wafers))
        table = solve(chain, objectives, everything) if chain.wafers.kinds else None
        if table is None or not all(table.least):
            continue
        at = {state: table.sums[:, n].copy() for n, state in enumerate(chain.wafers.states)}
        for (_, potentials), low in zip(at.items(), table.low, strict=True):
            potentials[:, :low] = -(1 << 61)
        reach = [kind.tolist() for kind in chain.reach(everything)]
        claim = Claim(problem, everything, chain.wafers.kinds, objectives, table.least)
        witness = lambda kind, starts, ends, chain=chain: shared_out(chain, kind, starts, ends).prices  # noqa: E731
        assert no_shortcut(claim, Potentials(at, reach), witness), seed
        more = (*table.least[:-1], table.least[-1] + 1)
        assert not no_shortcut(replace(claim, least=more), Potentials(at, reach), witness), "no more than that"
        higher = {state: potentials.copy() for state, potentials in at.items()}
        for state, potentials in higher.items():
            potentials[-1, -1] += any(state)
        assert not no_shortcut(replace(claim, least=more), Potentials(higher, reach), witness), "a short cut to the end"
        if len(problem.items) > 1 and any(kind[0] > 1 for kind in reach):
            shorter = [[min(end, start + 1) for start, end in enumerate(kind)] for kind in reach]
            assert not no_shortcut(claim, Potentials(at, shorter), witness), "runs left out"
            refused += 1
    assert refused > 5


# --- scale ------------------------------------------------------------------------------------------------------------


def large_chain(count: int, wafers: int, seed: int = 1) -> Problem:
    """Items of sizes that differ, which fill nine tenths of the wafers' tiles."""
    random, tiles = Random(seed), 900_000
    mean = tiles * wafers * 0.9 / count
    items = []
    for number in range(count):
        size = max(1, int(mean * random.lognormvariate(-0.3, 0.8)))
        steps = [(max(1, int(mean * random.uniform(0.1, 0.6))), 1000 >> power) for power in range(3)]
        curve = Curve(sum(more * saved for more, saved in steps) + random.randint(10**6, 10**7), tuple(steps))
        items.append(Item((number,), size * 48_000 - random.randint(0, 47_000), size, number, 0, 0, curve, curve))
    flows = tuple(Flow(n, (n + 1,), random.randint(1000, 20_000), 10**5) for n in range(count - 1))
    return Problem(tuple(items), flows, equal_wafers(wafers, tiles), hand_over_fs=10**6)


@pytest.mark.parametrize("names", ["balance,traffic", "latency", "bottleneck,machines"])
def test_a_thousand_items_are_placed_on_fifty_wafers_with_proof(names):
    problem = large_chain(1000, 50)
    began = time.process_time()
    found = best_runs(problem, [Objective(name) for name in names.split(",")])
    assert time.process_time() - began < 8, "a second on an idle machine"
    assert found
    assert not faults(problem, found.assignment)
    assert all(found.proofs)


def test_the_same_problem_has_the_same_runs_under_any_hash_seed():
    script = (
        "from tests.test_chain import random_chain, best_runs\n"
        "print([best_runs(*random_chain(seed, skips=True)) for seed in range(40)])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(answers) == 1


def test_chains_need_no_solver():
    script = "import partitioner.solver.chain, sys; print(any(name.startswith('ortools') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False"
