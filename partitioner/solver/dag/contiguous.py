"""Contiguous placements: the proven optimum of a graph on machines in a row.

The searches are in :mod:`partitioner.solver.dag.exact`.
"""

from __future__ import annotations

from partitioner.solver.dag.exact import Answer, Progress, allowance, quiet, solve
from partitioner.solver.dag.items import item_graph
from partitioner.solver.dag.prefixes import Work
from partitioner.solver.dag.problem import DagProblem, Placement
from partitioner.solver.dag.score import broken_rules, largest_load


def place_contiguous(
    problem: DagProblem, time_limit_s: float = 60.0, progress: Progress = quiet, work: Work | None = None
) -> Placement:
    """The best placement along an order of the machines, proven by two arguments where ``status`` says so.

    Times and charges must add up to less than 2**51 units, so that sums of them are exact. ``time_limit_s`` buys an
    amount of work, whatever the clock says: the same problem gives the same placement (but where CP-SAT takes longer
    than the limit). Ctrl-C keeps the best so far; ``work``, where it is given instead of the limit, says so.

    Raises:
        ValueError: the units are too fine.
    """
    total = sum(sum(t or 0 for t in node.times) + 2 * node.charge for node in problem.nodes)
    if total * (1 + sum(None in node.times for node in problem.nodes)) >= 1 << 51:
        raise ValueError(f"times and charges add up to {total} units; choose coarser ones")
    if sum(node.bytes for node in problem.nodes) >= 1 << 53:
        raise ValueError("sizes add up to more bytes than sums are exact for")
    if not problem.nodes:
        return Placement((), 0, 0, "optimal", "there is nothing to place; any placement of nothing is as good")
    work = work or allowance(time_limit_s)
    graphs = [item_graph(problem, onward=onward) for onward in (False, True)]
    graphs = graphs[:1] if graphs[0] == graphs[1] else graphs
    answers = tuple(solve(graph, work, progress) for graph in graphs)
    possible = [answer for answer in answers if answer.stages or not answer.is_proven]
    if not possible:
        return Placement((), -1, min(answer.bound for answer in answers), "infeasible", "; ".join(answers[0].proofs))
    bound = min(answer.bound for answer in possible)
    placed = [answer for answer in answers if answer.stages]
    if not placed:
        return Placement((), -1, bound, "unknown", "")
    best = min(placed, key=lambda answer: answer.value)
    machines = _machines(problem, best)
    if broken_rules(problem, machines) or largest_load(problem, machines) != best.value:
        raise AssertionError("a placement is not what the search took it for")
    proven = bound >= best.value and all(answer.is_proven for answer in answers)
    status = "optimal" if proven else "feasible"
    return Placement(machines, best.value, min(bound, best.value), status, "; ".join(best.proofs) if proven else "")


def _machines(problem: DagProblem, answer: Answer) -> tuple[int, ...]:
    """For each node its machine: stages take the machines of their kind in turn."""
    free = [iter([m for m, own in enumerate(problem.kind_of) if own == kind]) for kind in range(len(problem.kinds))]
    machine_of = {node: machine for kind, nodes in answer.stages for machine in (next(free[kind]),) for node in nodes}
    return tuple(machine_of[node] for node in range(len(problem.nodes)))
