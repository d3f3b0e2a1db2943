"""Lower bounds on the largest load of any placement, from arguments that need no search."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from partitioner.solver.dag.units import Classes, Units, merged

_ENDLESS = 1 << 60
_PRICES = 1 << 16
"""Steps between a price of nothing and the highest."""


def misfits(units: Units) -> Iterator[str]:
    """Why no placement can exist, as far as counting shows it."""
    largest = [
        max((limit for limit, k in zip(units.limits, units.kind_of, strict=True) if k == kind), default=-1)
        for kind in range(len(units.kinds))
    ]
    for unit, times in enumerate(units.times):
        if all(time is None or units.bytes[unit] > most for time, most in zip(times, largest, strict=True)):
            yield f"no machine can hold the group of node {units.members[unit][0]}"
            return
    unlimited = any(kind.machines and kind.bytes is None for kind in units.kinds)
    if not unlimited and sum(units.bytes) > sum(units.limits):
        yield "all machines together hold fewer bytes than the nodes have"


def counting_bound(units: Units) -> int:
    """Work over machines, each kind at a price: with the sum of prices 1, no placement beats the cheapest time of each
    unit (the dual of sharing all work in fractions).
    """
    kinds = [kind for kind, entry in enumerate(units.kinds) if entry.machines]
    prices = dict.fromkeys(kinds, _PRICES)
    best = _priced(units, prices)
    for step in (_PRICES // 2 >> halvings for halvings in range(16)):
        for kind in kinds:
            for changed in (prices[kind] - step, prices[kind] + step):
                value = _priced(units, prices | {kind: changed}) if changed > 0 else 0
                if value > best:
                    best, prices = value, prices | {kind: changed}
    return best


def _priced(units: Units, prices: dict[int, int]) -> int:
    total = 0
    for times in units.times:
        total += min((price * time for kind, price in prices.items() if (time := times[kind]) is not None), default=0)
    return -(-total // sum(units.kinds[kind].machines * price for kind, price in prices.items()))


def separation_bound(units: Units) -> int:
    """The machine that holds some unit holds a set around it, and of all such sets the least load is a minimum cut.

    The largest over units of the least over kinds.
    """
    bound = 0
    order = sorted(range(len(units)), key=lambda unit: -sum(units.nets[net][1] for net in units.nets_of[unit]))
    for unit in order:
        kinds = [k for k, entry in enumerate(units.kinds) if entry.machines and units.times[unit][k] is not None]
        at_least = [units.times[unit][kind] or 0 for kind in kinds if not units.kinds[kind].charged]
        if min(at_least, default=bound + 1) <= bound:
            continue
        at_least += [least_load(units, unit, kind) for kind in kinds if units.kinds[kind].charged]
        bound = max(bound, min(at_least, default=0))
    return bound


def least_load(units: Units, unit: int, kind: int, without: int = -1) -> int:
    """The least load of a machine of ``kind`` that holds ``unit`` but not ``without``, whatever else: a minimum cut."""
    return Cuts(units, kind).least_load(unit, without)


class Cuts:
    """Minimum cuts around units, for charged machines of one kind: a cut's arcs are times of what the machine holds and
    charges of nets across its border.
    """

    def __init__(self, units: Units, kind: int) -> None:
        self._tails: list[int] = []
        self._heads: list[int] = []
        self._capacities: list[int] = []
        self._sink = len(units) + 2 * len(units.nets)
        for unit, times in enumerate(units.times):
            time = times[kind]
            self._arc(unit, self._sink, _ENDLESS if time is None else time)
        for index, (pins, charge) in enumerate(units.nets):
            entry = len(units) + 2 * index
            if len(pins) == 2:
                self._arc(pins[0], pins[1], charge)
                self._arc(pins[1], pins[0], charge)
                continue
            self._arc(entry, entry + 1, charge)
            for pin in pins:
                self._arc(pin, entry, _ENDLESS)
                self._arc(entry + 1, pin, _ENDLESS)

    def _arc(self, tail: int, head: int, capacity: int) -> None:
        self._tails.append(tail)
        self._heads.append(head)
        self._capacities.append(capacity)

    def least_load(self, unit: int, without: int = -1) -> int:
        """The least load of a machine that holds ``unit`` but not ``without`` (-1: no such condition)."""
        import numpy as np
        from ortools.graph.python import max_flow

        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(np.array(self._tails), np.array(self._heads), np.array(self._capacities))
        if without >= 0:
            flow.add_arc_with_capacity(without, self._sink, _ENDLESS)
        return flow.optimal_flow() if flow.solve(unit, self._sink) == flow.OPTIMAL else 0


def held_together(units: Units, most: int) -> Units | None:
    """Units that any placement of loads up to ``most`` keeps together, as one; ``None`` if it shows that none exists.

    Two that share a net are apart only if the machines that hold them can hold the one without the other.
    """
    while True:
        classes = Classes(len(units))
        cuts = {k: Cuts(units, k) for k, entry in enumerate(units.kinds) if entry.machines and entry.charged}
        alone = [_hosts(units, cuts, unit, -1, most) for unit in range(len(units))]
        if not all(alone):
            return None
        for first, second in sorted({pair for pins, _ in units.nets for pair in pairwise(pins)}):
            if classes.find(first) == classes.find(second):
                continue
            left = _hosts(units, cuts, first, second, most) if alone[second] else set()
            right = _hosts(units, cuts, second, first, most) if left else set()
            if not _can_differ(units, left, right):
                classes.join((first, second))
        labels = classes.labels()
        if max(labels) + 1 == len(units):
            return units
        units = merged(units, labels)


def _hosts(units: Units, cuts: dict[int, Cuts], unit: int, without: int, most: int) -> set[int]:
    """The kinds of machines that may hold ``unit`` but not ``without`` with a load up to ``most``."""
    hosts = set()
    for kind, entry in enumerate(units.kinds):
        time = units.times[unit][kind]
        if not entry.machines or time is None or time > most:
            continue
        if kind not in cuts or cuts[kind].least_load(unit, without) <= most:
            hosts.add(kind)
    return hosts


def _can_differ(units: Units, left: set[int], right: set[int]) -> bool:
    """Whether two different machines have kinds of ``left`` and of ``right``."""
    return any(a != b or units.kinds[a].machines > 1 for a in left for b in right)
