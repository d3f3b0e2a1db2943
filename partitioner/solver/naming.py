"""Which wafer takes which group of items, so that the fewest bytes of weights move: a matching of greatest weight.

Where wafers of one size and speed are told apart by nothing else, a placement is one of groups of items, and any wafer
that is large enough can take a group. Given the groups, the weight kept is that of a matching of groups and wafers
(J. Edmonds, "Maximum matching and a polyhedron with 0,1-vertices", 1965; by networkx).
"""

from __future__ import annotations

from collections import Counter

from partitioner.solver.problem import Assignment, Problem, Wafer
from partitioner.solver.score import by_wafer


def renamed(problem: Problem, assignment: Assignment) -> Assignment:
    """``assignment`` with wafers that are equal in size and speed exchanged, so that the fewest bytes move."""
    import networkx as nx

    named = list(assignment)
    held = by_wafer(assignment)
    kinds: dict[Wafer, list[int]] = {}
    for number, wafer in enumerate(problem.wafers):
        kinds.setdefault(wafer, []).append(number)
    for members in kinds.values():
        groups = [held[wafer] for wafer in members if wafer in held]
        graph: nx.Graph[tuple[str, int]] = nx.Graph()
        for group, items in enumerate(groups):
            for was, kept in sorted(_kept(problem, items).items()):
                if was in members and kept:
                    graph.add_edge(("group", group), ("wafer", was), weight=kept)
        pairs = [dict(pair) for pair in nx.max_weight_matching(graph)]
        taken = {pair["group"]: pair["wafer"] for pair in pairs}
        spare = iter(number for number in members if number not in taken.values())
        for group, items in enumerate(groups):
            takes = taken[group] if group in taken else next(spare)
            for item in items:
                named[item] = takes
    return tuple(named)


def _kept(problem: Problem, items: list[int]) -> Counter[int]:
    """[wafer] -> bytes of weights of ``items`` that lay there."""
    found: Counter[int] = Counter()
    for item in items:
        was = problem.previous[item]
        if was is not None:
            found[was] += problem.items[item].weight_bytes
    return found
