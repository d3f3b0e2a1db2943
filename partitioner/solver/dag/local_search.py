"""Simulated annealing over machines for units, with the load above a target as the energy.

After Kirkpatrick, Gelatt and Vecchi, "Optimization by Simulated Annealing" (Science, 1983). A unit that moves changes
the loads of two machines alone: the one it leaves and the one it enters. A target just under the best value asks for
a better one, and leaves all machines below it free to trade.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random

from partitioner.solver.dag.units import Classes, Units, loads_of


class State:
    """A placement under change, with the loads and free bytes of all machines kept up to date."""

    def __init__(self, units: Units, machines: Sequence[int]) -> None:
        self.units = units
        self.at = list(machines)
        self.loads = loads_of(units, machines)
        self.free = list(units.limits)
        self._pins = [[0] * len(units.kind_of) for _ in units.nets]
        self._span = [0] * len(units.nets)
        self._nets = [[(net, units.nets[net][1]) for net in nets] for nets in units.nets_of]
        for unit, machine in enumerate(machines):
            self.free[machine] -= units.bytes[unit]
            for net in units.nets_of[unit]:
                self._span[net] += not self._pins[net][machine]
                self._pins[net][machine] += 1

    def change(self, unit: int, target: int) -> tuple[int, int] | None:
        """By how much the loads of ``unit``'s machine and of ``target`` grow if it moves; ``None`` if it cannot."""
        units, source = self.units, self.at[unit]
        times = units.times[unit]
        time = times[units.kind_of[target]]
        if time is None or self.free[target] < units.bytes[unit]:
            return None
        left = entered = 0
        for net, charge in self._nets[unit]:
            row = self._pins[net]
            if self._span[net] == 1:
                left += charge
                entered += charge
                continue
            if not row[target]:
                entered += charge
            if row[source] == 1:
                left -= charge
                if row[target] and self._span[net] == 2:
                    entered -= charge
        charged = units.charged
        before = times[units.kind_of[source]] or 0
        return left * charged[source] - before, entered * charged[target] + time

    def move(self, unit: int, target: int, change: tuple[int, int]) -> None:
        """Move ``unit``, with what ``change`` said of it."""
        source = self.at[unit]
        self.at[unit] = target
        self.loads[source] += change[0]
        self.loads[target] += change[1]
        self.free[source] += self.units.bytes[unit]
        self.free[target] -= self.units.bytes[unit]
        for net, _ in self._nets[unit]:
            row = self._pins[net]
            row[source] -= 1
            self._span[net] += (not row[target]) - (not row[source])
            row[target] += 1


def clusters(units: Units, levels: int = 6) -> list[tuple[int, ...]]:
    """Sets of units held together by nets at least as dear as some level; single units first."""
    found: dict[tuple[int, ...], None] = {(unit,): None for unit in range(len(units))}
    charges = sorted({charge for _, charge in units.nets}, reverse=True)
    for level in charges[:: max(1, len(charges) // levels)]:
        classes = Classes(len(units))
        for pins, charge in units.nets:
            if charge >= level:
                classes.join(pins)
        sets: dict[int, list[int]] = {}
        for unit, label in enumerate(classes.labels()):
            sets.setdefault(label, []).append(unit)
        found.update(dict.fromkeys(tuple(members) for members in sets.values() if len(members) < len(units)))
    return list(found)


def anneal(
    units: Units, start: Sequence[int], target: int, most: int, moves: int, random: Random, hot: float = 0.02
) -> Iterator[tuple[int, ...]]:
    """Placements whose largest load is at most ``most``, each with a smaller one than the last.

    Loads are to be at most ``target``, which may be too little. ``start`` may exceed the limits in load, not in bytes;
    ``moves`` are tried; the temperature falls from ``hot`` times the target to a thousandth of that.
    """
    state = State(units, start)
    neighbours = _neighbours(units)
    sets = [members for members in clusters(units) if len(members) > 1]
    machines = len(units.kind_of)
    heat = hot * max(target, 1)
    cooling = 0.001 ** (1 / max(moves, 1))
    for _ in range(moves):
        heat *= cooling
        if sets and random.random() < 0.1:
            _try_set(state, sets[int(random.random() * len(sets))], target, heat, random)
        else:
            unit = int(random.random() * len(units))
            near = neighbours[unit]
            if near and random.random() < 0.8:
                goal = state.at[near[int(random.random() * len(near))]]
            else:
                goal = int(random.random() * machines)
            if goal != state.at[unit]:
                _try(state, unit, goal, target, heat, random)
        if max(state.loads) <= most:
            most = max(state.loads) - 1
            target = min(target, most)
            yield tuple(state.at)


def _neighbours(units: Units) -> list[tuple[int, ...]]:
    return [
        tuple(sorted({pin for net in nets for pin in units.nets[net][0] if len(units.nets[net][0]) <= 16} - {unit}))
        for unit, nets in enumerate(units.nets_of)
    ]


def _try(state: State, unit: int, goal: int, target: int, heat: float, random: Random) -> None:
    change = state.change(unit, goal)
    if change is None:
        return
    left, entered = state.loads[state.at[unit]], state.loads[goal]
    growth = max(0, left + change[0] - target) - max(0, left - target)
    growth += max(0, entered + change[1] - target) - max(0, entered - target)
    if growth <= 0 or random.random() < math.exp(-growth / heat):
        state.move(unit, goal, change)


def _try_set(state: State, members: tuple[int, ...], target: int, heat: float, random: Random) -> None:
    """Move what one machine holds of ``members`` to another; undone unless it is accepted."""
    first = members[int(random.random() * len(members))]
    source, goal = state.at[first], int(random.random() * len(state.loads))
    if source == goal:
        return
    before = _excess(state, source, goal, target)
    moved = []
    for unit in members:
        if state.at[unit] == source and (change := state.change(unit, goal)):
            state.move(unit, goal, change)
            moved.append(unit)
    growth = _excess(state, source, goal, target) - before
    if growth > 0 and random.random() >= math.exp(-growth / heat):
        for unit in moved:
            change = state.change(unit, source)
            assert change is not None, "what it held fits again"
            state.move(unit, source, change)


def _excess(state: State, source: int, goal: int, target: int) -> int:
    return max(0, state.loads[source] - target) + max(0, state.loads[goal] - target)
