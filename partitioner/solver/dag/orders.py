"""Best cuts of a linear order of units: each machine takes a run of it. First answers for a search.

Dynamic programming over cut points, after the linear-order variant of Tarnawski et al. (NeurIPS 2020, section 5.1.2);
what a run exchanges with the rest is counted for all runs at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from statistics import fmean

import numpy as np
import numpy.typing as npt

from partitioner.solver.dag.units import Units

Matrix = npt.NDArray[np.int64]
NEVER = 1 << 62
"""More than any load."""


def cut_orders(units: Units, edges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """The best placements of runs of some orders of the units, where there are any.

    ``edges`` are the problem's, of nodes.
    """
    for order in dict.fromkeys(_orders(units, edges)):
        found = cut(units, order)
        if found:
            yield found


def _orders(units: Units, edges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """Units by their first, last or mean node in orders along the edges, and by a walk along nets."""
    count = sum(map(len, units.members))
    onward = depth_first(count, edges)
    back = depth_first(count, [(target, source) for source, target in edges])[::-1]
    measures: tuple[Callable[[list[int]], float], ...] = (min, max, fmean)
    for order in (list(range(count)), onward, back):
        place = {node: index for index, node in enumerate(order)}
        for measure in measures:
            at = [measure([place[node] for node in nodes]) for nodes in units.members]
            yield tuple(sorted(range(len(units)), key=at.__getitem__))
    yield _walk(units)


def depth_first(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """A topological order of ``count`` nodes that goes on with what the last node made ready."""
    entering, leaving = [0] * count, [[] for _ in range(count)]  # type: ignore[var-annotated]
    for source, target in edges:
        entering[target] += 1
        leaving[source].append(target)
    ready, order = [node for node in reversed(range(count)) if not entering[node]], []
    while ready:
        node = ready.pop()
        order.append(node)
        for target in leaving[node]:
            entering[target] -= 1
            if not entering[target]:
                ready.append(target)
    return order


def _walk(units: Units) -> tuple[int, ...]:
    """Units so that each shares the dearest nets with those shortly before it (a depth-first walk)."""
    seen, order = [False] * len(units), []
    for root in range(len(units)):
        stack = [root]
        while stack:
            unit = stack.pop()
            if seen[unit]:
                continue
            seen[unit] = True
            order.append(unit)
            for net in sorted(units.nets_of[unit], key=lambda net: units.nets[net][1]):
                pins = units.nets[net][0]
                stack += [pin for pin in pins if not seen[pin]] if len(pins) <= 16 else []
    return tuple(order)


def exchanges(units: Units, order: Sequence[int]) -> Matrix:
    """``[start, end]``: charge of the nets between the run ``order[start:end]`` and the rest."""
    count = len(order)
    place = {unit: position for position, unit in enumerate(order)}
    change = np.zeros((count + 2, count + 2), np.int64)

    def add(starts: tuple[int, int], ends: tuple[int, int], charge: int) -> None:
        """To all runs with first <= start < last of each pair."""
        for (row, sign), (column, other) in product(((starts[0], 1), (starts[1], -1)), ((ends[0], 1), (ends[1], -1))):
            change[row, column] += sign * other * charge

    for pins, charge in units.nets:
        places = sorted(place[pin] for pin in pins)
        add((0, count + 1), (0, count + 1), charge)
        for before, after in pairwise([-1, *places, count]):
            add((before + 1, count + 1), (0, after + 1), -charge)  # no pin at or after start, before end
        add((0, places[0] + 1), (places[-1] + 1, count + 1), -charge)
    # Runs without pins lie in one gap each: a gap's rectangle also holds empty runs (start > end), never read.
    return change.cumsum(0).cumsum(1)[: count + 1, : count + 1]


def _run_loads(units: Units, order: Sequence[int], kind: int) -> Matrix:
    """``[start, end]``: load of a machine of ``kind`` with the run ``order[start:end]``, ``NEVER`` if it cannot be."""
    times = [units.times[unit][kind] for unit in order]
    total = np.cumsum([0, *(time or 0 for time in times)])
    barred = np.cumsum([0, *(time is None for time in times)])
    size = np.cumsum([0, *(units.bytes[unit] for unit in order)])
    loads = total[None, :] - total[:, None]
    if units.kinds[kind].charged:
        loads = loads + exchanges(units, order)
    limit = units.kinds[kind].bytes
    never = barred[None, :] > barred[:, None]
    if limit is not None:
        never |= size[None, :] - size[:, None] > limit
    never |= np.tri(len(order) + 1, k=-1, dtype=bool)
    np.fill_diagonal(loads, 0)
    return np.where(never, NEVER, loads)


def cut(units: Units, order: Sequence[int]) -> tuple[int, ...] | None:
    """A machine for each unit, one run of ``order`` for each, with the least largest load; ``None`` if none exists."""
    loads = [_run_loads(units, order, kind) for kind in range(len(units.kinds))]
    shape = tuple(kind.machines + 1 for kind in units.kinds)
    best = np.full((*shape, len(order) + 1), NEVER, np.int64)
    came = np.zeros((*shape, len(order) + 1, 2), np.int64)  # kind, start
    best[(0,) * len(shape)][0] = 0
    for used in product(*map(range, shape)):
        for kind, count in enumerate(used):
            if not count:
                continue
            before = (*used[:kind], count - 1, *used[kind + 1 :])
            options = np.maximum(best[before][:, None], loads[kind])
            start = options.argmin(0)
            value = options[start, np.arange(len(order) + 1)]
            better = value < best[used]
            best[used][better] = value[better]
            came[used][better] = np.stack([np.full(len(start), kind), start], 1)[better]
    return _trace(units, order, best, came)


def _trace(units: Units, order: Sequence[int], best: Matrix, came: Matrix) -> tuple[int, ...] | None:
    count = len(order)
    used = np.unravel_index(best[..., count].argmin(), best.shape[:-1])
    if best[(*used, count)] >= NEVER:
        return None
    first = [units.kind_of.index(kind) if entry.machines else 0 for kind, entry in enumerate(units.kinds)]
    counts, machines, end = [int(number) for number in used], [0] * count, count
    while any(counts):
        kind, start = (int(number) for number in came[(*counts, end)])
        counts[kind] -= 1
        for unit in order[start:end]:
            machines[unit] = first[kind] + counts[kind]
        end = start
    return tuple(machines)
