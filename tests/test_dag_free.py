"""Placements of graphs whose machines may hold any nodes, against all placements there are."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from random import Random

import pytest

from partitioner.solver.dag.bounds import counting_bound, misfits, separation_bound
from partitioner.solver.dag.combining import combine
from partitioner.solver.dag.contiguous import place_contiguous
from partitioner.solver.dag.covers import _Cover, cover_bounds
from partitioner.solver.dag.free import place_free
from partitioner.solver.dag.frontier import pricing
from partitioner.solver.dag.orders import cut, exchanges
from partitioner.solver.dag.problem import DagProblem, Kind, Node
from partitioner.solver.dag.score import broken_rules, largest_load
from partitioner.solver.dag.units import loads_of, units_of
from partitioner.solver.running import Effort


def a_problem(seed: int, most_nodes: int = 7) -> DagProblem:
    """A random graph: groups, nodes that some kind cannot run, tight bytes, dear and free values, a CPU or none."""
    random = Random(seed)
    count = random.randint(1, most_nodes)
    nodes = []
    for _ in range(count):
        time = random.choice([0, random.randint(1, 20), random.randint(1, 20)])
        times = (None if random.random() < 0.1 else time, None if random.random() < 0.1 else 3 * time)
        nodes.append(Node(times, random.randint(0, 9), random.randrange(count), random.choice([0, 1, 3, 30])))
    edges = [(u, v) for u in range(count) for v in range(u + 1, count) if random.random() < 0.35]
    limit = random.choice([None, random.randint(5, 25)])
    cpu = Kind("cpu", random.randint(0, 1), random.choice([None, 12]), charged=random.random() < 0.2)
    return DagProblem(tuple(nodes), tuple(edges), (Kind("acc", random.randint(1, 3), limit), cpu), contiguous=False)


def all_values(problem: DagProblem) -> list[int]:
    """The largest loads of all placements that keep the rules."""
    groups = sorted({node.group for node in problem.nodes})
    values = []
    for chosen in product(range(problem.machines), repeat=len(groups)):
        at = dict(zip(groups, chosen, strict=True))
        machines = [at[node.group] for node in problem.nodes]
        if not broken_rules(problem, machines):
            values.append(largest_load(problem, machines))
    return values


@pytest.mark.parametrize("block", range(10))
def test_places_as_well_as_any(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        problem = a_problem(seed, 6)
        values = all_values(problem)
        found = place_free(problem, 2.0)
        if not values:
            assert (found.status, found.machines) == ("infeasible", ()), seed
            assert found.proof
            continue
        assert not broken_rules(problem, found.machines), seed
        assert found.value == largest_load(problem, found.machines) == min(values), seed
        assert found.bound == found.value and found.status == "optimal", seed


def test_bounds_hold() -> None:
    for seed in range(1000, 1300):
        problem = a_problem(seed)
        units, values = units_of(problem), all_values(problem)
        if list(misfits(units)):
            assert not values, seed
            continue
        least = min(values, default=1 << 60)
        assert counting_bound(units) <= least, seed
        assert separation_bound(units) <= least, seed


def test_loads_of_units_are_loads_of_nodes() -> None:
    for seed in range(3000, 3200):
        problem = a_problem(seed)
        units = units_of(problem)
        random = Random(seed)
        machines = [random.randrange(problem.machines) for _ in range(len(units))]
        if any(units.times[u][units.kind_of[d]] is None for u, d in enumerate(machines)):
            continue
        assert max(loads_of(units, machines)) == largest_load(problem, units.to_nodes(machines)), seed


def test_runs_of_an_order_exchange_what_their_machines_do() -> None:
    for seed in range(100):
        units = replace(units_of(a_problem(seed)), kinds=(Kind("acc", 2, None), Kind("cpu", 0, None)))
        units = replace(units, times=tuple((0, 0) for _ in units.times))
        found = exchanges(units, range(len(units)))
        for start in range(len(units)):
            for end in range(start + 1, len(units) + 1):
                inside = [int(start <= unit < end) for unit in range(len(units))]
                assert found[start, end] == loads_of(units, inside)[1], (seed, start, end)


def test_cuts_of_an_order_are_the_best_runs() -> None:
    for seed in range(100):
        problem = a_problem(seed, 5)
        units = units_of(problem)
        found = cut(units, range(len(units)))
        best = 1 << 60
        for machines in product(range(problem.machines), repeat=len(units)):
            changes = sum(a != b for a, b in pairwise(machines))
            if changes + 1 == len(set(machines)) and not broken_rules(problem, units.to_nodes(machines)):
                best = min(best, largest_load(problem, units.to_nodes(machines)))
        assert (max(loads_of(units, found)) if found else 1 << 60) == best, seed


def test_the_same_under_every_hash_seed() -> None:
    script = (
        "from tests.test_dag_free import a_problem, larger\n"
        "from partitioner.solver.dag.free import place_free\n"
        "print(place_free(larger(5), 0.3))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1


def larger(seed: int, count: int = 40) -> DagProblem:
    """A chain with skips, too large to try all placements."""
    random = Random(seed)
    nodes = [Node((t, 10 * t), 1, i, random.randint(1, 30)) for i in range(count) if (t := random.randint(1, 99))]
    edges = {(i, i + 1) for i in range(count - 1)}
    edges |= {(i, i + random.randint(2, 4)) for i in range(0, count - 4, 3)}
    kinds = (Kind("acc", 4, None), Kind("cpu", 1, None, charged=False))
    return DagProblem(tuple(nodes), tuple(sorted(edges)), kinds, contiguous=False)


def test_starts_are_not_lost() -> None:
    problem = larger(1)
    start = [min(3, i // 10) for i in range(40)]
    assert place_free(problem, 0.1, starts=[start]).value <= largest_load(problem, start)


def test_ctrl_c_keeps_the_best() -> None:
    seen: list[tuple[int, int]] = []

    def stop(value: int, bound: int) -> None:
        seen.append((value, bound))
        if len(seen) == 4:
            raise KeyboardInterrupt

    problem = larger(2)
    found = place_free(problem, 5.0, stop)
    assert found.status == "feasible"
    assert (found.value, found.bound) == seen[-1]
    assert largest_load(problem, found.machines) == found.value


def test_an_empty_graph_and_no_machine() -> None:
    kinds = (Kind("acc", 2, 10),)
    assert place_free(DagProblem((), (), kinds, contiguous=False)).status == "optimal"
    alone = DagProblem((Node((1,), 11, 0, 0),), (), kinds, contiguous=False)
    assert place_free(alone).status == "infeasible"
    assert place_free(replace(alone, kinds=(Kind("acc", 0, None),))).status == "infeasible"


def test_a_sweep_finds_the_least_load_of_each_profit() -> None:
    for seed in range(4000, 4200):
        problem = a_problem(seed)
        units = units_of(problem)
        random = Random(seed)
        profits = [random.randint(0, 5) for _ in range(len(units))]
        found = pricing(units, 0, 100)
        assert found is not None
        cap = random.randint(0, sum(profits) + 2)
        cover = _Cover(units, {0: found})
        least = [1 << 60] * (cap + 1)
        for chosen in product((0, 1), repeat=len(units)):
            held = tuple(unit for unit, is_in in enumerate(chosen) if is_in)
            if all(units.times[unit][0] is not None for unit in held):
                profit = min(cap, sum(profits[unit] for unit in held))
                least[profit] = min(least[profit], cover.load((0, held)))
        for weigh in (found, found.exactly()):
            table = weigh.least_loads(profits, cap)
            assert [int(load) if load < weigh.never else 1 << 60 for load in table] == least, seed
            for profit, load in enumerate(least):
                if load < 1 << 60:
                    content = weigh.content(profit)
                    assert min(cap, sum(profits[unit] for unit in content)) == profit, seed
                    assert cover.load((0, content)) == load, seed


def test_covers_bound_all_placements() -> None:
    better = 0
    for seed in range(5000, 5200):
        problem = a_problem(seed)
        units, values = units_of(problem), all_values(problem)
        if not values:
            continue
        before = counting_bound(units)
        for step, _ in zip(cover_bounds(units, min(values), before, []), range(20), strict=False):
            assert step.bound <= min(values), seed
            better += step.bound > before
    assert better > 100


def test_contents_of_the_best_placement_are_put_together_again() -> None:
    combined = 0
    for seed in range(6000, 6150):
        problem = a_problem(seed, 5)
        units = units_of(problem)
        able = (
            (largest_load(problem, nodes), machines)
            for machines in product(range(problem.machines), repeat=len(units))
            if not broken_rules(problem, nodes := units.to_nodes(machines))
        )
        value, best = min(able, default=(0, ()))
        held = [(units.kind_of[d], tuple(u for u, at in enumerate(best) if at == d)) for d in set(best)]
        if not best:
            continue
        found, _ = combine(units, held, value, Effort(1.0))
        if not found:
            continue
        assert max(loads_of(units, found)) == value, seed
        assert not broken_rules(problem, units.to_nodes(found)), seed
        combined += 1
    assert combined > 80


def test_is_never_worse_than_contiguous() -> None:
    for seed in range(6):
        problem = larger(seed)
        contiguous = place_contiguous(replace(problem, contiguous=True), 5.0)
        found = place_free(problem, 0.2)
        assert contiguous.status == "optimal"
        assert found.bound <= found.value <= contiguous.value


def test_what_takes_no_time_at_all_is_placed():
    """No heat is left to anneal with where the largest load is to be 0."""
    nodes = (Node((0, 12), 0, 0, 3), Node((0, 1), 0, 1, 1))
    kinds = (Kind("first", 2, 7), Kind("second", 1, None, charged=False))
    for edges in ((), ((0, 1),)):
        placement = place_free(DagProblem(nodes, edges, kinds, contiguous=False), 2.0)
        assert (placement.status, placement.value, placement.bound) == ("optimal", 0, 0)
