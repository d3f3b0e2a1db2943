"""What a placement of a graph is worth, and which rules it breaks: plain Python that shares nothing with solvers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

from partitioner.solver.dag.problem import DagProblem


def loads(problem: DagProblem, machines: Sequence[int]) -> tuple[int, ...]:
    """For each machine its load: the times of its nodes, and the charge of each value that crosses its border, once.

    ``machines`` gives a machine for each node. A node on a machine that cannot run it adds nothing;
    :func:`broken_rules` names it.
    """
    kinds = [problem.kinds[kind] for kind in problem.kind_of]
    found = [0] * problem.machines
    holders: list[set[int]] = [{machine} for machine in machines]
    for source, target in problem.edges:
        holders[source].add(machines[target])
    for node, machine, held in zip(problem.nodes, machines, holders, strict=True):
        found[machine] += node.times[problem.kind_of[machine]] or 0
        if len(held) > 1:
            for holder in held:
                found[holder] += node.charge if kinds[holder].charged else 0
    return tuple(found)


def largest_load(problem: DagProblem, machines: Sequence[int]) -> int:
    """The objective: the load of the machine that is held longest; 0 for an empty graph."""
    return max(loads(problem, machines), default=0)


def broken_rules(problem: DagProblem, machines: Sequence[int]) -> list[str]:
    """One sentence for each rule that ``machines`` breaks; none for a placement that may be used."""
    if len(machines) != len(problem.nodes) or not all(0 <= machine < problem.machines for machine in machines):
        return ["each node needs one of the machines"]
    broken = [*_misplaced(problem, machines), *_overfull(problem, machines)]
    if problem.contiguous and not is_ordered(problem, machines):
        broken.append("no order of machines lets all values flow along it")
    return broken


def _misplaced(problem: DagProblem, machines: Sequence[int]) -> Iterable[str]:
    holders: dict[int, int] = {}
    for index, (node, machine) in enumerate(zip(problem.nodes, machines, strict=True)):
        if node.times[problem.kind_of[machine]] is None:
            yield f"node {index} cannot run on machine {machine}"
        if holders.setdefault(node.group, machine) != machine:
            yield f"node {index} is apart from its group {node.group}"


def _overfull(problem: DagProblem, machines: Sequence[int]) -> Iterable[str]:
    held = [0] * problem.machines
    for node, machine in zip(problem.nodes, machines, strict=True):
        held[machine] += node.bytes
    for machine, kind in enumerate(problem.kind_of):
        limit = problem.kinds[kind].bytes
        if limit is not None and held[machine] > limit:
            yield f"machine {machine} holds {held[machine]} bytes of at most {limit}"


def is_ordered(problem: DagProblem, machines: Sequence[int]) -> bool:
    """Whether machines have an order in which no forward value goes back, and backward ones all go back, or all on."""
    forward, backward = set(), set()
    for source, target in problem.edges:
        if machines[source] == machines[target]:
            continue
        passes = problem.nodes[source].backward, problem.nodes[target].backward
        if passes == (False, False):
            forward.add((machines[source], machines[target]))
        elif passes == (True, True):
            backward.add((machines[target], machines[source]))
    onward = {(target, source) for source, target in backward}
    return _is_acyclic(forward | backward) or _is_acyclic(forward | onward)


def _is_acyclic(edges: set[tuple[int, int]]) -> bool:
    """Whether some order of the vertices follows all ``edges``."""
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for source, target in edges:
        sorter.add(target, source)
    try:
        sorter.prepare()
    except CycleError:
        return False
    return True
