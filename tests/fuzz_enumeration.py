"""All placements of a tiny problem and what they are worth, worked out by ways that the solver does not use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations, product

from ir.objective import Objective
from ir.rules import RuleKind
from partitioner.solver.dag.problem import DagProblem
from partitioner.solver.problem import Assignment, Curve, Problem, Restriction
from partitioner.solver.score import MOST_USERS

Rank = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """What a wafer is with a set of items: whether it may hold them, and its part of each objective."""

    allowed: bool
    bytes: int
    work_fs: int
    held_fs: int
    room: int


class Enumeration:
    """All placements of a problem, and their values."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._known: dict[tuple[int, tuple[int, ...]], Held] = {}

    @cached_property
    def placements(self) -> list[Assignment]:
        """Those that are allowed."""
        every = product(range(len(self.problem.wafers)), repeat=len(self.problem.items))
        return [placed for placed in every if self.allows(placed)]

    def allows(self, placed: Assignment) -> bool:
        """Whether capacities, misfits, the pipeline, rules and thresholds allow it."""
        problem = self.problem
        if not all(0 <= wafer < len(problem.wafers) for wafer in placed):
            return False
        return (
            all(self._held(wafer, placed).allowed for wafer in set(placed))
            and all(_keeps(rule, placed) for rule in problem.restrictions)
            and self.in_order(placed)
            and all(self.reaches(placed, objective, limit) for objective, limit in problem.thresholds)
        )

    def reaches(self, placed: Assignment, objective: Objective, limit: int) -> bool:
        """Whether it is as good as ``limit``."""
        sign = -1 if objective.is_maximum else 1
        return sign * self.value(placed, objective) <= sign * limit

    def in_order(self, placed: Assignment) -> bool:
        """Whether wafers can be taken away one by one, each with nothing left before it."""
        left = set(placed)
        arrows = {(placed[one], placed[other]) for one, other in self._before if placed[one] != placed[other]}
        while left:
            first = [wafer for wafer in left if not any(b == wafer and a in left for a, b in arrows)]
            if not first:
                return False
            left.difference_update(first)
        return True

    @cached_property
    def _before(self) -> list[tuple[int, int]]:
        rules = self.problem.restrictions
        free = {item for rule in rules if rule.kind is RuleKind.FREE for group in rule.groups for item in group}
        found = [
            (flow.source, target)
            for flow in self.problem.flows
            for target in flow.targets
            if flow.source not in free and target not in free
        ]
        for rule in rules:
            if rule.kind is RuleKind.ORDER:
                for number in range(len(rule.groups) - 1):
                    found += [(a, b) for a in rule.groups[number] for b in rule.groups[number + 1]]
        return found

    def _held(self, wafer: int, placed: Assignment) -> Held:
        items = tuple(item for item, where in enumerate(placed) if where == wafer)
        key = wafer, items
        if key not in self._known:
            self._known[key] = self._hold(wafer, items)
        return self._known[key]

    def _hold(self, wafer: int, numbers: Sequence[int]) -> Held:
        problem, offered = self.problem, self.problem.wafers[wafer]
        items = [problem.items[number] for number in numbers]
        size, spare = sum(item.bytes for item in items), offered.tiles - sum(item.tiles for item in items)
        if spare < 0 or size > offered.bytes or self._is_misfit([item.alike for item in items]):
            return Held(allowed=False, bytes=0, work_fs=0, held_fs=0, room=0)
        slow = offered.slowness_permille
        works = [item.latency.slowed(slow) for item in items]
        saved = sorted((s for curve in works for tiles, s in curve.drops for _ in range(tiles)), reverse=True)
        work_fs = sum(curve.time_fs for curve in works) - sum(saved[:spare])
        if problem.take_turns:
            held_fs = 0
            for item, curve in zip(items, works, strict=True):
                own = [s for tiles, s in curve.drops for _ in range(tiles)]
                held_fs += curve.time_fs - sum(own[: offered.tiles - item.tiles])
        else:
            held_fs = _slowest([item.slowest.slowed(slow) for item in items], spare)
        state = sum(item.state_bytes for item in items)
        room = MOST_USERS if not state else problem.users + (offered.bytes - size) // state
        return Held(allowed=True, bytes=size, work_fs=work_fs, held_fs=held_fs, room=room)

    def _is_misfit(self, alike: Sequence[int]) -> bool:
        return any(all(alike.count(kind) >= misfit.count(kind) for kind in misfit) for misfit in self.problem.misfits)

    def _cost(self, one: int, other: int) -> int:
        if one == other:
            return 0
        return next((c for a, b, c in self.problem.link_costs if {a, b} == {one, other}), 1)

    def value(self, placed: Assignment, objective: Objective) -> int:
        """What ``objective`` is of a placement that capacities allow."""
        return getattr(self, f"_{objective.value}")(placed)

    def _of_wafers(self, placed: Assignment) -> list[Held]:
        return [self._held(wafer, placed) for wafer in sorted(set(placed))]

    def _machines(self, placed: Assignment) -> int:
        return len(set(placed))

    def _balance(self, placed: Assignment) -> int:
        return max(held.bytes for held in self._of_wafers(placed))

    def _room(self, placed: Assignment) -> int:
        return min(MOST_USERS, *(held.room for held in self._of_wafers(placed)))

    def _moves(self, placed: Assignment) -> int:
        pairs = zip(self.problem.items, self.problem.previous, placed, strict=False)
        return sum(item.weight_bytes for item, was, now in pairs if was is not None and was != now)

    def _traffic(self, placed: Assignment) -> int:
        flows = self.problem.flows
        sent = {(n, placed[flow.source], placed[to]) for n, flow in enumerate(flows) for to in flow.targets}
        return sum(flows[n].bytes_per_token * self._cost(one, other) for n, one, other in sent)

    def _latency(self, placed: Assignment) -> int:
        work_fs = sum(held.work_fs for held in self._of_wafers(placed))
        return work_fs + max(self._way(placed, item) for item in range(len(placed)))

    def _bottleneck(self, placed: Assignment) -> int:
        return max(*(held.held_fs for held in self._of_wafers(placed)), self._busiest_link(placed))

    def _way(self, placed: Assignment, item: int) -> int:
        ways = [
            self._way(placed, flow.source)
            + self._cost(placed[flow.source], placed[item]) * (self.problem.hand_over_fs + flow.link_fs)
            for flow in self.problem.flows
            if item in flow.targets
        ]
        return max(ways, default=0)

    def _busiest_link(self, placed: Assignment) -> int:
        busiest = 0
        for one in set(placed):
            for other in set(placed) - {one}:
                over = [
                    flow.link_fs
                    for flow in self.problem.flows
                    if placed[flow.source] == one and any(placed[target] == other for target in flow.targets)
                ]
                busiest = max(busiest, sum(over) * self._cost(one, other))
        return busiest

    def rank(self, placed: Assignment, objectives: Sequence[Objective]) -> Rank:
        """The smaller, the better."""
        return tuple((-1 if goal.is_maximum else 1) * self.value(placed, goal) for goal in objectives)

    def best(self, objectives: Sequence[Objective]) -> Rank | None:
        """The least rank; ``None`` where there is no placement."""
        return min((self.rank(placed, objectives) for placed in self.placements), default=None)


def _slowest(curves: list[Curve], spare: int) -> int:
    """Tile after tile to whatever is slowest."""
    times = [curve.time_fs for curve in curves]
    saves = [[saved for tiles, saved in curve.drops for _ in range(tiles)] for curve in curves]
    for _ in range(spare):
        worst = times.index(max(times))
        if not saves[worst] or not saves[worst][0]:
            break
        times[worst] -= saves[worst].pop(0)
    return max(times)


def _keeps(rule: Restriction, placed: Assignment) -> bool:
    where = [placed[item] for item in sorted({item for group in rule.groups for item in group})]
    match rule.kind:
        case RuleKind.PIN:
            return all(wafer in rule.wafers for wafer in where)
        case RuleKind.FORBID:
            return not any(wafer in rule.wafers for wafer in where)
        case RuleKind.APART:
            return all(one != other for one, other in combinations(where, 2))
        case RuleKind.TOGETHER:
            return all(one == other for one, other in combinations(where, 2))
        case RuleKind.AT_MOST:
            return all(where.count(wafer) <= rule.count for wafer in where)
        case RuleKind.REPLICATE:
            return all(placed[a] != placed[b] for own in rule.groups for a, b in combinations(sorted(set(own)), 2))
        case _:
            return True


def namings(problem: Problem, placed: Assignment) -> Iterator[Assignment]:
    """The placement with equal wafers exchanged, in all ways."""
    used = sorted(set(placed))
    for names in permutations(range(len(problem.wafers)), len(used)):
        if all(problem.wafers[a] == problem.wafers[b] for a, b in zip(used, names, strict=True)):
            name_of = dict(zip(used, names, strict=True))
            yield tuple(name_of[wafer] for wafer in placed)


# --- graphs of operators ----------------------------------------------------------------------------------------------


def largest_load(problem: DagProblem, machines: Sequence[int]) -> int | None:
    """What the machine that is held longest is held for; ``None`` where a rule is broken."""
    nodes, kinds, loads = problem.nodes, [problem.kinds[kind] for kind in problem.kind_of], []
    if any(
        nodes[a].group == nodes[b].group and machines[a] != machines[b] for a, b in combinations(range(len(nodes)), 2)
    ):
        return None
    if problem.contiguous and not any(_flows_along(problem, machines, onward) for onward in (False, True)):
        return None
    for machine, kind in enumerate(kinds):
        own = [node for node, where in enumerate(machines) if where == machine]
        times = [nodes[node].times[problem.kind_of[machine]] for node in own]
        if None in times or (kind.bytes is not None and sum(nodes[node].bytes for node in own) > kind.bytes):
            return None
        crossing = {a for a, b in problem.edges if machines[a] != machines[b] and machine in (machines[a], machines[b])}
        loads.append(sum(times) + sum(nodes[node].charge for node in crossing if kind.charged))
    return max(loads, default=0)


def _flows_along(problem: DagProblem, machines: Sequence[int], onward: bool) -> bool:
    """Whether some order of the machines has forward values go on, and backward ones go on or, not ``onward``, back."""
    arrows = set()
    for a, b in problem.edges:
        passes = {problem.nodes[a].backward, problem.nodes[b].backward}
        if len(passes) == 1 and machines[a] != machines[b]:
            turned = passes == {True} and not onward
            arrows.add((machines[b], machines[a]) if turned else (machines[a], machines[b]))
    used = sorted({machine for arrow in arrows for machine in arrow})
    return any(all(order.index(a) < order.index(b) for a, b in arrows) for order in permutations(used))


def least_of_all(problem: DagProblem) -> int | None:
    """The least largest load; ``None`` if every placement breaks a rule."""
    every = product(range(problem.machines), repeat=len(problem.nodes))
    loads = (largest_load(problem, machines) for machines in every)
    return min((load for load in loads if load is not None), default=None)
