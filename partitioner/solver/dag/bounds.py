"""Lower bounds on the largest load of any placement, from arguments that need no search."""

from __future__ import annotations

from collections.abc import Iterator

from partitioner.solver.dag.units import Units

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
    cuts = {k: Cuts(units, k) for k, entry in enumerate(units.kinds) if entry.machines and entry.charged}
    order = sorted(range(len(units)), key=lambda unit: -sum(units.nets[net][1] for net in units.nets_of[unit]))
    for unit in order:
        kinds = [k for k, entry in enumerate(units.kinds) if entry.machines and units.times[unit][k] is not None]
        at_least = [units.times[unit][kind] or 0 for kind in kinds if not units.kinds[kind].charged]
        if min(at_least, default=bound + 1) <= bound:
            continue
        at_least += [cuts[kind].least_load(unit) for kind in kinds if kind in cuts]
        bound = max(bound, min(at_least, default=0))
    return bound


class Cuts:
    """Minimum cuts around units, for charged machines of one kind: a cut's arcs are times of what the machine holds and
    charges of nets across its border.
    """

    def __init__(self, units: Units, kind: int) -> None:
        self._arcs: list[tuple[int, int, int]] = []
        self._sink = len(units) + 2 * len(units.nets)
        for unit, times in enumerate(units.times):
            time = times[kind]
            self._arcs.append((unit, self._sink, _ENDLESS if time is None else time))
        for index, (pins, charge) in enumerate(units.nets):
            if len(pins) == 2:
                self._arcs += [(pins[0], pins[1], charge), (pins[1], pins[0], charge)]
                continue
            entry = len(units) + 2 * index
            self._arcs.append((entry, entry + 1, charge))
            self._arcs += [arc for pin in pins for arc in ((pin, entry, _ENDLESS), (entry + 1, pin, _ENDLESS))]

    def least_load(self, unit: int) -> int:
        """The least load of a machine that holds ``unit``, whatever else it holds."""
        import numpy as np
        from ortools.graph.python import max_flow

        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(*np.array(self._arcs).T.copy())
        return flow.optimal_flow() if flow.solve(unit, self._sink) == flow.OPTIMAL else 0
