"""Large-neighbourhood search: the fullest machine shares its units anew with one or two others, each time exactly.

After Shaw, "Using constraint programming and local search methods to solve vehicle routing problems" (CP 1998).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from partitioner.solver.dag.parts import Part
from partitioner.solver.dag.units import Units, loads_of
from partitioner.solver.running import Effort

_MOST_LITERALS = 4000

Contents = tuple[tuple[int, ...], ...]
"""What each of some machines holds."""
Tried = dict[Contents, int]
"""How many efforts were spent on machines with these contents."""


def share_anew(
    units: Units, start: Sequence[int], efforts: Sequence[Effort], tried: Tried
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Placements, each as good as the last or better, and the deterministic seconds that it took.

    Ends where no pair or triple with the fullest machine is better, as far as ``efforts`` show, from the first, with
    which all are tried, to the last. ``tried`` is kept up to date.
    """
    best = tuple(start)
    while choice := _untried(units, best, tried, len(efforts)):
        free, contents, level = choice
        found = Part(units, best, free).solve(efforts[level])
        tried[contents] = len(efforts) if found.status in ("OPTIMAL", "INFEASIBLE") else level + 1
        if found.machines:
            loads, new = loads_of(units, best), loads_of(units, found.machines)
            if max(new[machine] for machine in free) < max(loads[machine] for machine in free):
                best = found.machines
        yield best, found.work_s


def _untried(
    units: Units, machines: Sequence[int], tried: Tried, levels: int
) -> tuple[tuple[int, ...], Contents, int] | None:
    """The fullest machine with the emptiest other ones, fewest first, and the least effort that was not tried."""
    loads = loads_of(units, machines)
    held: list[list[int]] = [[] for _ in loads]
    for unit, machine in enumerate(machines):
        held[machine].append(unit)
    top = max(range(len(loads)), key=loads.__getitem__)
    others = _distinct(units, held, [machine for machine in range(len(loads)) if machine != top])
    choices = []
    for size in (1, 2):
        for rest in sorted(combinations(others, size), key=lambda rest: sum(loads[machine] for machine in rest)):
            free = (top, *rest)
            contents = tuple(tuple(held[machine]) for machine in free)
            if sum(map(len, contents)) * len(free) <= _MOST_LITERALS and tried.get(contents, 0) < levels:
                choices.append((free, contents, tried.get(contents, 0)))
    return min(choices, key=lambda choice: choice[2], default=None)


def _distinct(units: Units, held: Sequence[Sequence[int]], machines: Sequence[int]) -> list[int]:
    """``machines`` with one empty machine of each kind at most."""
    chosen: dict[tuple[int, int], int] = {}
    for machine in machines:
        chosen.setdefault((units.kind_of[machine], -1 if not held[machine] else machine), machine)
    return list(chosen.values())
