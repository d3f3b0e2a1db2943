"""A graph as what a placement without order needs: units that stay together, and nets of units that share a value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from partitioner.solver.dag.problem import DagProblem, Kind

Net = tuple[tuple[int, ...], int]
"""Two or more units, ascending, and the charge on each machine that holds some of them but not all."""


@dataclass(frozen=True)
class Units:
    """Groups of nodes as single vertices of a hypergraph.

    Attributes:
        times: for each unit and kind; ``None`` where some node of the unit cannot run.
        bytes: for each unit.
        nets: with distinct sets of units; values with the same readers are one net.
        members: for each unit its nodes.
        kinds: those of the problem.
    """

    times: tuple[tuple[int | None, ...], ...]
    bytes: tuple[int, ...]
    nets: tuple[Net, ...]
    members: tuple[tuple[int, ...], ...]
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """For each machine the index of its kind."""
        return tuple(index for index, kind in enumerate(self.kinds) for _ in range(kind.machines))

    @cached_property
    def limits(self) -> tuple[int, ...]:
        """For each machine its bytes; where there is no limit, those of all units."""
        total = sum(self.bytes)
        limits = (self.kinds[kind].bytes for kind in self.kind_of)
        return tuple(total if limit is None else limit for limit in limits)

    @cached_property
    def charged(self) -> tuple[bool, ...]:
        """For each machine whether values that cross its border cost it."""
        return tuple(self.kinds[kind].charged for kind in self.kind_of)

    @cached_property
    def nets_of(self) -> tuple[tuple[int, ...], ...]:
        """For each unit the indices of its nets."""
        lists: list[list[int]] = [[] for _ in self.members]
        for index, (pins, _) in enumerate(self.nets):
            for pin in pins:
                lists[pin].append(index)
        return tuple(map(tuple, lists))

    @cached_property
    def is_roomy(self) -> bool:
        """Whether any machine holds everything, so that bytes never decide."""
        total = sum(self.bytes)
        return all(total <= limit for limit in self.limits)

    def of_nodes(self, machines: Sequence[int]) -> tuple[int, ...]:
        """A machine for each unit, from one for each node."""
        return tuple(machines[nodes[0]] for nodes in self.members)

    def to_nodes(self, machines: Sequence[int]) -> tuple[int, ...]:
        """A machine for each node, from one for each unit."""
        placed = [0] * sum(map(len, self.members))
        for nodes, machine in zip(self.members, machines, strict=True):
            for node in nodes:
                placed[node] = machine
        return tuple(placed)


def units_of(problem: DagProblem) -> Units:
    """The groups of ``problem`` as units, in the order of their first nodes."""
    numbers: dict[int, int] = {}
    unit_of = [numbers.setdefault(node.group, len(numbers)) for node in problem.nodes]
    singles = Units(
        tuple(node.times for node in problem.nodes),
        tuple(node.bytes for node in problem.nodes),
        tuple(_values(problem)),
        tuple((index,) for index in range(len(problem.nodes))),
        problem.kinds,
    )
    return merged(singles, unit_of)


def _values(problem: DagProblem) -> Iterable[Net]:
    pins: dict[int, set[int]] = defaultdict(set)
    for source, target in problem.edges:
        pins[source] |= {source, target}
    return ((tuple(sorted(nodes)), problem.nodes[source].charge) for source, nodes in sorted(pins.items()))


def merged(units: Units, label_of: Sequence[int]) -> Units:
    """Units with equal labels become one; labels are 0, 1, ... without gaps."""
    count = max(label_of, default=-1) + 1
    times: list[list[int | None]] = [[0] * len(units.kinds) for _ in range(count)]
    sizes, members = [0] * count, [[] for _ in range(count)]  # type: ignore[var-annotated]
    for unit, label in enumerate(label_of):
        sizes[label] += units.bytes[unit]
        members[label] += units.members[unit]
        for kind, time in enumerate(units.times[unit]):
            before = times[label][kind]
            times[label][kind] = None if before is None or time is None else before + time
    charges: dict[tuple[int, ...], int] = defaultdict(int)
    for pins, charge in units.nets:
        kept = tuple(sorted({label_of[pin] for pin in pins}))
        if len(kept) > 1 and charge:
            charges[kept] += charge
    return Units(
        tuple(map(tuple, times)),
        tuple(sizes),
        tuple(sorted(charges.items())),
        tuple(tuple(sorted(nodes)) for nodes in members),
        units.kinds,
    )


def loads_of(units: Units, machines: Sequence[int]) -> list[int]:
    """For each machine the time it computes and exchanges values; ``machines`` must be able to run what they hold."""
    loads = [0] * len(units.kind_of)
    for unit, machine in enumerate(machines):
        time = units.times[unit][units.kind_of[machine]]
        assert time is not None, "a unit lies where it cannot run"
        loads[machine] += time
    for pins, charge in units.nets:
        at = {machines[pin] for pin in pins}
        if len(at) > 1:
            for machine in at:
                loads[machine] += charge * units.charged[machine]
    return loads


def labels(roots: Sequence[int]) -> list[int]:
    """Numbers 0, 1, ... for the classes of a union-find forest's roots, in order of appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root, len(numbers)) for root in roots]


class Classes:
    """Union-find over ``count`` units."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, unit: int) -> int:
        """The representative of ``unit``'s class."""
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = self._parent[unit]
        return unit

    def join(self, pins: Sequence[int]) -> None:
        """Make one class of all ``pins``."""
        root = self.find(pins[0])
        for pin in pins[1:]:
            self._parent[self.find(pin)] = root

    def labels(self) -> list[int]:
        """Numbers 0, 1, ... of the classes, for each unit, in order of appearance."""
        return labels([self.find(unit) for unit in range(len(self._parent))])
