"""Tiny placement problems with whatever problems can have, and smaller ones like them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from random import Random

from ir.objective import Objective
from ir.rules import RuleKind
from partitioner.solver.dag.problem import DagProblem, Kind, Node
from partitioner.solver.problem import Curve, Flow, Item, Problem, Restriction, Wafer, equal_wafers
from partitioner.solver.score import MOST_USERS, faults, score


def draw_problem(draw: Random) -> Problem:
    wafers = draw.randint(1, 4)
    count = draw.randint(1, 6 if wafers < 4 else 5)
    users = draw.randint(1, 3)
    scale = draw.choice((1, 1, 1, 1 << 30))
    items = tuple(_item(draw, number, users, scale) for number in range(count))
    copies: list[Restriction] = []
    if draw.random() < 0.15 and count > 1:
        items, copies = _with_copies(draw, items)
    odd = [
        Wafer(
            draw.choice((0, 6, 10, 14, 25)),
            draw.choice((20 * scale, 30 * scale, 1 << 60, 0)),
            draw.choice((1000, 1000, 1500, 700)),
        )
        for _ in range(draw.randint(1, 3))
    ]
    even = equal_wafers(wafers, draw.randint(4, 25), draw.choice((1 << 60, 30 * scale)))
    offered = even if draw.random() < 0.4 else tuple(draw.choices(odd, k=wafers))
    plain = draw.random() < 0.35
    pairs = [pair for pair in combinations(range(wafers), 2) if draw.random() < 0.4]
    rules = [_rule(draw, len(items), wafers) for _ in range(draw.choice((0, 0, 1, 1, 2, 3)))]
    problem = Problem(
        items=items,
        flows=_flows(draw, len(items), scale),
        wafers=offered,
        misfits=tuple(
            tuple(sorted(draw.choices(range(4), k=draw.randint(1, 3)))) for _ in range(draw.choice((0, 0, 0, 1, 2)))
        ),
        restrictions=() if plain else (*copies, *rules),
        take_turns=draw.random() < 0.3,
        hand_over_fs=draw.choice((0, draw.randint(0, 20))),
        link_costs=tuple((*pair, draw.choice((2, 2, 3, 7))) for pair in pairs)
        if not plain and draw.random() < 0.4
        else (),
        users=users,
        previous=() if plain or draw.random() < 0.5 else _previous(draw, len(items), wafers),
    )
    if not plain and draw.random() < 0.35:
        problem = replace(problem, thresholds=_thresholds(draw, problem, scale))
    return problem


def _item(draw: Random, number: int, users: int, scale: int) -> Item:
    state = draw.choice((0, draw.randint(0, 3))) * scale
    weights = draw.randint(0, 12) * scale
    size = weights + state * users + draw.choice((0, draw.randint(0, 3)))
    latency = _curve(draw)
    slowest = latency if draw.random() < 0.3 else _curve(draw)
    return Item((number,), size, draw.randint(1, 6), draw.randint(0, 3), state, weights, latency, slowest)


def _curve(draw: Random) -> Curve:
    scale = draw.choice((1, 1, 1, 10**12))
    slopes = sorted((draw.randint(0, 9) * scale for _ in range(draw.randint(0, 3))), reverse=True)
    drops = tuple((draw.randint(1, 4), saved) for saved in slopes)
    return Curve(sum(tiles * saved for tiles, saved in drops) + draw.choice((0, draw.randint(0, 20))), drops)


def _with_copies(draw: Random, items: tuple[Item, ...]) -> tuple[tuple[Item, ...], list[Restriction]]:
    """One item twice, its curves shared."""
    chosen = draw.randrange(len(items))
    twice = items[chosen]
    pair = [replace(twice, latency=twice.latency.shared(2), slowest=twice.slowest.shared(2), copy=n) for n in range(2)]
    made = (*items[:chosen], *pair, *items[chosen + 1 :])
    return made, [Restriction(RuleKind.REPLICATE, ((chosen, chosen + 1),), count=2)]


def _flows(draw: Random, count: int, scale: int) -> tuple[Flow, ...]:
    kind = draw.choice(("chain", "chain", "skips", "graph", "graph", "none"))
    flows = []
    if kind in ("chain", "skips"):
        flows = [_flow(draw, n, (n + 1,), scale) for n in range(count - 1)]
    if kind in ("skips", "graph"):
        for source in range(count - 1):
            for _ in range(draw.choice((0, 0, 1, 1, 2))):
                targets = draw.sample(range(source + 1, count), draw.randint(1, min(3, count - 1 - source)))
                flows.append(_flow(draw, source, tuple(sorted(targets)), scale))
    draw.shuffle(flows)
    return tuple(flows)


def _flow(draw: Random, source: int, targets: tuple[int, ...], scale: int) -> Flow:
    return Flow(source, targets, draw.randint(0, 9) * scale, draw.choice((0, draw.randint(0, 30))))


def _rule(draw: Random, count: int, wafers: int) -> Restriction:
    kind = draw.choice([*RuleKind])
    items = draw.sample(range(count), draw.randint(1, count))
    if kind is not RuleKind.ORDER:
        items.sort()
    named = tuple(sorted(draw.sample(range(wafers), draw.randint(1, wafers))))
    groups: tuple[tuple[int, ...], ...] = (tuple(items),)
    if kind is RuleKind.ORDER:
        cuts = sorted(draw.sample(range(len(items) + 1), min(len(items) + 1, draw.randint(1, 2))))
        groups = tuple(tuple(sorted(items[a:b])) for a, b in zip((0, *cuts), (*cuts, len(items)), strict=True))
        if draw.random() < 0.7:
            flat = sorted(items)
            groups = tuple(tuple(flat[a:b]) for a, b in zip((0, *cuts), (*cuts, len(items)), strict=True))
    if kind is RuleKind.APART and draw.random() < 0.5:
        groups = tuple((item,) for item in items)
    if kind is RuleKind.REPLICATE and len(items) > 2:
        groups = (tuple(items[:2]), tuple(items[2:]))
    on_wafers = kind in (RuleKind.PIN, RuleKind.FORBID)
    return Restriction(kind, groups, named if on_wafers else (), draw.randint(1, 3))


def _previous(draw: Random, count: int, wafers: int) -> tuple[int | None, ...]:
    """Where items lay: in runs, or anywhere; on wafers that may be no more."""
    if draw.random() < 0.4:
        return tuple(draw.choice((None, *range(wafers + 1))) for _ in range(count))
    names = draw.sample(range(wafers + 1), wafers + 1)
    lay: list[int | None] = []
    while len(lay) < count:
        lay += [names.pop() if len(names) > 1 else names[0]] * draw.randint(1, 3)
    return tuple(None if draw.random() < 0.1 else wafer for wafer in lay[:count])


def _thresholds(draw: Random, problem: Problem, scale: int) -> tuple[tuple[Objective, int], ...]:
    found = []
    for _ in range(draw.choice((1, 1, 2))):
        objective = draw.choice([*Objective])
        limit = draw.choice((draw.randint(0, 30) * scale, draw.randint(0, 6)))
        for _ in range(20):
            placed = tuple(draw.randrange(len(problem.wafers)) for _ in problem.items)
            if not faults(problem, placed):
                limit = score(problem, placed, objective) + draw.choice((-1, 0, 0, 1))
                break
        found.append((objective, min(limit, MOST_USERS)))
    return tuple(found)


def draw_dag(draw: Random, most: int = 6) -> DagProblem:
    """Operators: groups, backward passes, memory, two kinds of machines, nodes that run on one kind alone."""
    count = draw.randint(1, most)
    first_backward = draw.randint(1, count) if draw.random() < 0.4 else count
    grouped = draw.random() < 0.5
    nodes = []
    for number in range(count):
        times = [
            None if draw.random() < 0.06 else draw.choice((0, draw.randint(1, 12), draw.randint(1, 40)))
            for _ in range(2)
        ]
        group = draw.randrange(count) if grouped and draw.random() < 0.5 else number + count
        charge = draw.choice((0, 1, draw.randint(1, 9)))
        nodes.append(Node(tuple(times), draw.choice((0, draw.randint(1, 5))), group, charge, number >= first_backward))
    density = draw.choice((0.2, 0.5))
    edges = [pair for pair in combinations(range(count), 2) if draw.random() < density]
    memory = draw.choice((None, 100, draw.randint(2, 9)))
    second = Kind("second", draw.randint(0, 1), draw.choice((None, draw.randint(2, 9))), charged=draw.random() < 0.5)
    return DagProblem(
        tuple(nodes), tuple(edges), (Kind("first", draw.randint(0, 3), memory), second), draw.random() < 0.5
    )


# --- smaller ones -----------------------------------------------------------------------------------------------------


def smaller(problem: Problem) -> Iterator[Problem]:
    """The problem with something left out, or nothing where there was something."""
    for item in range(len(problem.items)) if len(problem.items) > 1 else ():
        yield _without(problem, item)
    for name in ("flows", "misfits", "restrictions", "link_costs", "thresholds"):
        own = getattr(problem, name)
        for number in range(len(own)):
            yield replace(problem, **{name: own[:number] + own[number + 1 :]})
    last = len(problem.wafers) - 1
    named = {wafer for rule in problem.restrictions for wafer in rule.wafers}
    if last and last not in named.union(*(link[:2] for link in problem.link_costs)):
        yield replace(problem, wafers=problem.wafers[:-1])
    plain: dict[str, object] = {"previous": (), "hand_over_fs": 0, "take_turns": False, "users": 1}
    for name, value in plain.items():
        if getattr(problem, name) != value:
            yield replace(problem, **{name: value})
    for name, simpler in (("items", _simpler), ("flows", _cheaper), ("wafers", _usual)):
        own = getattr(problem, name)
        for number, thing in enumerate(own):
            for other in simpler(thing):
                yield replace(problem, **{name: (*own[:number], other, *own[number + 1 :])})


def _cheaper(flow: Flow) -> Iterator[Flow]:
    for name in ("bytes_per_token", "link_fs"):
        value = getattr(flow, name)
        for less in sorted({0, value // 2} - {value}):
            yield replace(flow, **{name: less})


def _usual(wafer: Wafer) -> Iterator[Wafer]:
    if wafer.slowness_permille != 1000:
        yield replace(wafer, slowness_permille=1000)


def _simpler(item: Item) -> Iterator[Item]:
    for name, least in (("bytes", 0), ("tiles", 1), ("state_bytes", 0), ("weight_bytes", 0)):
        value = getattr(item, name)
        if value > least:
            for less in sorted({least, max(least, value // 2), value - 1}):
                yield replace(item, **{name: less})
    for name in ("latency", "slowest"):
        curve = getattr(item, name)
        if curve != Curve():
            yield replace(item, **{name: Curve()})
            for number in range(len(curve.drops)):
                tiles, saved = curve.drops[number]
                drops = curve.drops[:number] + curve.drops[number + 1 :]
                yield replace(item, **{name: Curve(curve.time_fs - tiles * saved, drops)})
            least = sum(tiles * saved for tiles, saved in curve.drops)
            if curve.time_fs > least:
                yield replace(item, **{name: replace(curve, time_fs=least)})


def _without(problem: Problem, gone: int) -> Problem:
    def less(items: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(item - (item > gone) for item in items if item != gone)

    flows = tuple(
        replace(flow, source=flow.source - (flow.source > gone), targets=less(flow.targets))
        for flow in problem.flows
        if flow.source != gone and less(flow.targets)
    )
    rules = tuple(replace(rule, groups=tuple(map(less, rule.groups))) for rule in problem.restrictions)
    return replace(
        problem,
        items=problem.items[:gone] + problem.items[gone + 1 :],
        flows=flows,
        restrictions=rules,
        previous=problem.previous[:gone] + problem.previous[gone + 1 :] if problem.previous else (),
    )
