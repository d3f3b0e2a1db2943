"""Contiguous placements of graphs: exact against brute force, the same for every hash seed, and as published."""

import itertools
import random
from pathlib import Path

import pytest

from partitioner.solver.dag.contiguous import place_contiguous
from partitioner.solver.dag.problem import DagProblem, Kind, Node
from partitioner.solver.dag.score import broken_rules, largest_load

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT.parent / "shared" / "device-placement"


def some_problem(seed):
    """Up to seven nodes: groups, backward passes, memory, CPUs, nodes that run nowhere, things that take no time."""
    draw = random.Random(seed)
    count = draw.randint(1, 7)
    training = draw.random() < 0.4
    first_backward = draw.randint(1, count) if training else count
    grouped = draw.random() < 0.5
    nodes = []
    for index in range(count):
        accelerator = None if draw.random() < 0.08 else draw.choice((0, 0, draw.randint(1, 12)))
        cpu = None if draw.random() < 0.05 else draw.choice((0, (accelerator or 1) * 4, draw.randint(0, 30)))
        group = draw.randrange(count) if grouped and draw.random() < 0.5 else index + count
        held = draw.choice((0, 0, draw.randint(1, 5)))
        nodes.append(
            Node((accelerator, cpu), held, group, draw.choice((0, 1, draw.randint(1, 9))), index >= first_backward)
        )
    pairs = itertools.combinations(range(count), 2)
    edges = [pair for pair in pairs if draw.random() < draw.choice((0.2, 0.5))]
    memory = draw.choice((None, 100, draw.randint(2, 9)))
    kinds = (Kind("accelerator", draw.randint(0, 3), memory), Kind("cpu", draw.randint(0, 1), None, charged=False))
    return DagProblem(tuple(nodes), tuple(edges), kinds, contiguous=True)


def brute_force(problem):
    """The least largest load over all assignments that break no rule; ``None`` if every one breaks some."""
    everywhere = itertools.product(range(problem.machines), repeat=len(problem.nodes))
    good = (machines for machines in everywhere if not broken_rules(problem, machines))
    return min((largest_load(problem, machines) for machines in good), default=None)


@pytest.mark.parametrize("batch", range(10))
def test_the_optimum_of_small_graphs_is_that_of_brute_force(batch):
    statuses = set()
    for seed in range(batch * 50, batch * 50 + 50):
        problem = some_problem(seed)
        best = brute_force(problem)
        placement = place_contiguous(problem)
        statuses.add(placement.status)
        if best is None:
            assert placement.status == "infeasible", seed
        else:
            assert (placement.status, placement.value, placement.bound) == ("optimal", best, best), seed
            assert largest_load(problem, placement.machines) == best
            assert not broken_rules(problem, placement.machines)
        assert "; " in placement.proof, "two arguments"
    assert statuses == {"optimal", "infeasible"}
