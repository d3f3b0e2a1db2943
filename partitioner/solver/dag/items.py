"""A contiguous problem as items in order: groups and cycles are one item each, and so is what gains nothing apart.

A placement lets nothing flow back along the machines, so the nodes of the first machines are always a *prefix*: a set
of items with all that must come before them (an ideal of the order).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from partitioner.solver.dag.problem import DagProblem, Kind


@dataclass(frozen=True, slots=True)
class Item:
    """Nodes that share a machine: their time on each kind (``None``: cannot run), their bytes, their indices."""

    times: tuple[int | None, ...]
    bytes: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """What each charged machine pays that holds some of the items in the bit set ``pins``, but not all."""

    charge: int
    pins: int


@dataclass(frozen=True)
class ItemGraph:
    """Items in topological order; ``before[i]`` and ``after[i]`` are bit sets of the neighbours of item i in it."""

    items: tuple[Item, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    values: tuple[Value, ...]
    kinds: tuple[Kind, ...]

    def place(self, machine_of_item: Iterable[int]) -> tuple[int, ...]:
        """For each node the machine of its item."""
        placed = {n: m for item, m in zip(self.items, machine_of_item, strict=True) for n in item.nodes}
        return tuple(placed[node] for node in range(len(placed)))


def bits(number: int) -> Iterator[int]:
    """Positions of the ones of a bit set, from below."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def item_graph(problem: DagProblem, *, onward: bool) -> ItemGraph:
    """Items of groups and of cycles between them. ``onward``: backward values go on along the machines, not back."""
    item_of = [node.group for node in problem.nodes]
    names = {group: number for number, group in enumerate(dict.fromkeys(item_of))}
    item_of = [names[group] for group in item_of]
    after = _order(problem, item_of, len(names), onward=onward)
    component = _components(after)
    item_of = [component[item] for item in item_of]
    members: list[list[int]] = [[] for _ in range(max(item_of, default=-1) + 1)]
    for node, item in enumerate(item_of):
        members[item].append(node)
    items = tuple(_item(problem, nodes) for nodes in members)
    pins: dict[int, int] = {}
    for source, target in problem.edges:
        pins[source] = pins.get(source, 1 << item_of[source]) | 1 << item_of[target]
    values = _values((problem.nodes[source].charge, touched) for source, touched in pins.items())
    return _graph(items, _order(problem, item_of, len(items), onward=onward), values, problem.kinds)


def _order(problem: DagProblem, item_of: list[int], count: int, *, onward: bool) -> list[int]:
    """For each item the bit set of those that may not stand before it."""
    after = [0] * count
    for source, target in problem.edges:
        backward = problem.nodes[source].backward
        if backward == problem.nodes[target].backward and item_of[source] != item_of[target]:
            first, second = (target, source) if backward and not onward else (source, target)
            after[item_of[first]] |= 1 << item_of[second]
    return after


def _components(after: list[int]) -> list[int]:
    """The strong component of each vertex, numbered in topological order (Tarjan 1972, without recursion)."""
    count = len(after)
    index, low, component = [-1] * count, [0] * count, [-1] * count
    stack: list[int] = []
    found = visited = 0
    for root in range(count):
        path = [(root, bits(after[root]))] if index[root] < 0 else []
        while path:
            vertex, rest = path[-1]
            if index[vertex] < 0:
                index[vertex] = low[vertex] = visited
                visited += 1
                stack.append(vertex)
            for target in rest:
                if index[target] < 0:
                    path.append((target, bits(after[target])))
                    break
                if component[target] < 0:
                    low[vertex] = min(low[vertex], index[target])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[vertex])
                if low[vertex] == index[vertex]:
                    while component[vertex] < 0:
                        component[stack.pop()] = found
                    found += 1
    return [found - 1 - number for number in component]


def _item(problem: DagProblem, nodes: list[int]) -> Item:
    members = [problem.nodes[node] for node in nodes]
    times = (_sum(node.times[kind] for node in members) for kind in range(len(problem.kinds)))
    return Item(tuple(times), sum(node.bytes for node in members), tuple(nodes))


def _sum(times: Iterable[int | None]) -> int | None:
    total = 0
    for time in times:
        if time is None:
            return None
        total += time
    return total


def _values(charged: Iterable[tuple[int, int]]) -> tuple[Value, ...]:
    """Values between items, those of the same pins as one, without those that cost nothing or never cross a border."""
    charges: dict[int, int] = defaultdict(int)
    for charge, pins in charged:
        if charge and pins & (pins - 1):
            charges[pins] += charge
    return tuple(Value(charge, pins) for pins, charge in sorted(charges.items()))


def _graph(items: tuple[Item, ...], after: list[int], values: tuple[Value, ...], kinds: tuple[Kind, ...]) -> ItemGraph:
    """Renumber the items topologically: always the lowest that is free, so that neighbours get neighbouring numbers."""
    count = len(items)
    before = [0] * count
    for item in range(count):
        for target in bits(after[item]):
            before[target] |= 1 << item
    order, placed = [], 0
    ready = [item for item in reversed(range(count)) if not before[item]]
    while ready:
        item = ready.pop()
        order.append(item)
        placed |= 1 << item
        ready.extend(t for t in reversed(list(bits(after[item]))) if not before[t] & ~placed)
    number = {item: position for position, item in enumerate(order)}

    def renumbered(mask: int) -> int:
        return sum(1 << number[item] for item in bits(mask))

    return ItemGraph(
        tuple(items[item] for item in order),
        tuple(renumbered(before[item]) for item in order),
        tuple(renumbered(after[item]) for item in order),
        _values((value.charge, renumbered(value.pins)) for value in values),
        kinds,
    )


def memory_is_loose(graph: ItemGraph) -> bool:
    """Whether every machine could hold everything, so that bytes never matter."""
    total = sum(item.bytes for item in graph.items)
    return all(kind.bytes is None or total <= kind.bytes for kind in graph.kinds if kind.machines)


def weightless(graph: ItemGraph) -> ItemGraph:
    """A relaxation: items that take no time on any kind weigh nothing. Its value is a lower bound of the graph's."""
    items = (replace(i, bytes=i.bytes if any(t != 0 for t in i.times) else 0) for i in graph.items)
    return replace(graph, items=tuple(items))


def merged(graph: ItemGraph, *, with_bytes: bool) -> ItemGraph:
    """Join items to a neighbour where no placement is the worse for it.

    Moving item n to the machine of m frees both machines of the values that join n and m alone, and may charge each of
    them for the values of n that m has no part in; a value that touches both costs no more anywhere. So if n's
    time and those further charges are no more than what is freed, on every kind of machine, and everything before n is
    before m and everything after it after m, then n may as well lie with m.

    ``with_bytes``: also join items that weigh something. With memory that binds this may lose the best placement
    (all placements of the joined graph remain placements of the given one).
    """
    while True:
        found = _joint(graph, with_bytes=with_bytes)
        if not found:
            return graph
        graph = _joined(graph, found)


def _joint(graph: ItemGraph, *, with_bytes: bool) -> dict[int, int]:
    """Pairs n -> m to join, each item in one of them."""
    ancestors, descendants = _closures(graph)
    touching: list[list[Value]] = [[] for _ in graph.items]
    for value in graph.values:
        for pin in bits(value.pins):
            touching[pin].append(value)
    found: dict[int, int] = {}
    busy = 0
    for n, item in enumerate(graph.items):
        if busy >> n & 1 or (item.bytes and not with_bytes):
            continue
        near = graph.before[n] | graph.after[n]
        for value in touching[n]:
            near |= value.pins
        for m in bits(near & ~(busy | 1 << n)):
            follows, precedes = ancestors[m] | 1 << m, descendants[m] | 1 << m
            in_order = not graph.before[n] & ~follows and not graph.after[n] & ~precedes
            if in_order and _gains_nothing_apart(graph, n, m, touching[n]):
                found[n] = m
                # Pairs are judged one by one: what one of them touches must not change under another.
                busy |= near | 1 << n | 1 << m
                break
    return found


def _gains_nothing_apart(graph: ItemGraph, n: int, m: int, touching: list[Value]) -> bool:
    both = 1 << n | 1 << m
    freed = sum(value.charge for value in touching if value.pins == both)
    further = sum(value.charge for value in touching if not value.pins >> m & 1)
    for kind, own, other in zip(graph.kinds, graph.items[n].times, graph.items[m].times, strict=True):
        if kind.machines and other is not None and (own is None or own + (further - freed) * kind.charged > 0):
            return False
    return further <= freed


def _closures(graph: ItemGraph) -> tuple[list[int], list[int]]:
    """For each item all that come before it, and all that come after."""
    count = len(graph.items)
    ancestors, descendants = [0] * count, [0] * count
    for item in range(count):
        for source in bits(graph.before[item]):
            ancestors[item] |= ancestors[source] | 1 << source
    for item in reversed(range(count)):
        for target in bits(graph.after[item]):
            descendants[item] |= descendants[target] | 1 << target
    return ancestors, descendants


def _joined(graph: ItemGraph, joints: dict[int, int]) -> ItemGraph:
    keep = [vertex for vertex in range(len(graph.items)) if vertex not in joints]
    number = {vertex: position for position, vertex in enumerate(keep)}
    for source, target in joints.items():
        number[source] = number[target]
    items = [graph.items[vertex] for vertex in keep]
    for source, target in joints.items():
        own, other = graph.items[source], items[number[target]]
        times = tuple(_sum(pair) for pair in zip(own.times, other.times, strict=True))
        items[number[target]] = Item(times, own.bytes + other.bytes, (*other.nodes, *own.nodes))
    after = [0] * len(items)
    for vertex, mask in enumerate(graph.after):
        after[number[vertex]] |= _mapped(mask, number)
    after = [mask & ~(1 << vertex) for vertex, mask in enumerate(after)]
    values = _values((value.charge, _mapped(value.pins, number)) for value in graph.values)
    return _graph(tuple(items), after, values, graph.kinds)


def _mapped(mask: int, number: dict[int, int]) -> int:
    found = 0
    for item in bits(mask):
        found |= 1 << number[item]
    return found
