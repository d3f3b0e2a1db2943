"""Each objective as an expression over a :class:`~partitioner.solver.model.Formulation`: the first half of each pair.

Minimised with the placement held fixed, an expression takes the value that ``partitioner.solver.score`` computes in
plain arithmetic, and ``require`` allows it; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from ir.objective import Objective
from partitioner.solver.model import Formulation
from partitioner.solver.problem import Curve

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

    Expression: TypeAlias = cp_model.LinearExpr | int
    Literal: TypeAlias = cp_model.IntVar


def expression(form: Formulation, objective: Objective) -> Expression:
    """What ``objective`` is of a placement; room, a quotient, is only ever required: see :func:`require`."""
    return _EXPRESSIONS[objective](form)


def require(form: Formulation, objective: Objective, value: int) -> None:
    """Allow only placements that are as good as ``value``."""
    if objective is Objective.ROOM:
        _require_room(form, value)
    else:
        form.model.add(expression(form, objective) <= value)


def _machines(form: Formulation) -> Expression:
    return sum(form.used)


def _balance(form: Formulation) -> Expression:
    sizes = [item.bytes for item in form.problem.items]
    most = form.model.new_int_var(0, sum(sizes), "balance")
    for stage in form.stages:
        form.model.add(form.load(stage, sizes) <= most)
    return most


def _moves(form: Formulation) -> Expression:
    kind_of = {wafer: kind for kind, wafers in enumerate(form.kinds) for wafer in wafers}
    terms: list[Expression] = []
    for number, (item, before) in enumerate(zip(form.problem.items, form.problem.previous, strict=False)):
        if before is not None:
            kind = kind_of.get(before)
            stays: Expression = 0 if kind is None else form.at(number)[kind]
            terms.append(item.weight_bytes * (1 - stays))
    return sum(terms)


# --- between wafers ---------------------------------------------------------------------------------------------------


def _costs(form: Formulation) -> list[int]:
    """What links cost, from the least on, each once; 0 is staying."""
    return [0, *sorted({1, *form.problem.link_cost.values()} - {0})]


def _cost(form: Formulation, one: int, other: int) -> int:
    """Of the link of wafers of two kinds."""
    return form.problem.link_cost.get((form.kinds[one][0], form.kinds[other][0]), 1)


def _paid(form: Formulation, source: int, targets: Sequence[int], stage: int, name: str) -> Expression:
    """What sending from item ``source`` to ``stage`` costs, in ordinary links; nothing if none of ``targets`` is there.

    One literal for each step of the cost: it must hold if a target lies on the stage, and the source neither there nor
    on a wafer from which the link costs less.
    """
    total: list[Expression] = []
    costs = _costs(form)
    for less, cost in pairwise(costs):
        pays = form.model.new_bool_var(f"{name}_{cost}")
        for unless in _exemptions(form, source, stage, cost):
            for target in targets:
                form.model.add_bool_or(~form.on[target][stage], form.on[source][stage], pays, *unless)
        total.append((cost - less) * pays)
    return sum(total)


def _exemptions(form: Formulation, source: int, stage: int, cost: int) -> Iterator[list[Literal]]:
    """For each kind of wafer that the stage can be: literals of which one must hold for links to cost less."""
    kinds = range(len(form.kinds))
    cheaper = [[other for other in kinds if _cost(form, other, kind) < cost] for kind in kinds]
    if not any(cheaper):
        yield []
        return
    for kind, others in enumerate(cheaper):
        if len(others) < len(kinds):
            yield [~form.is_kind[stage][kind], *(form.at(source)[other] for other in others)]


def _traffic(form: Formulation) -> Expression:
    """A value is sent once to each wafer that reads it and does not hold its source."""
    return sum(
        flow.bytes_per_token * _paid(form, flow.source, flow.targets, stage, f"sent_{number}_{stage}")
        for number, flow in enumerate(form.problem.flows)
        for stage in form.stages
        if flow.bytes_per_token
    )


def _longest_way(form: Formulation) -> Expression:
    """The most that any path through the graph spends between wafers, in femtoseconds."""
    problem = form.problem
    ways: dict[tuple[int, int], int] = {}
    for flow in problem.flows:
        for target in flow.targets:
            pair = (flow.source, target)
            ways[pair] = max(ways.get(pair, 0), problem.hand_over_fs + flow.link_fs)
    most = _costs(form)[-1] * max(ways.values(), default=0)
    most *= len(problem.items) if problem.free else len(form.stages)
    if not most:
        return 0
    spent = [form.model.new_int_var(0, most, f"spent_{item}") for item in range(len(problem.items))]
    longest = form.model.new_int_var(0, most, "longest_way")
    for (source, target), way in ways.items():
        name = f"way_{source}_{target}"
        pays = sum(_paid(form, source, (target,), stage, f"{name}_{stage}") for stage in form.stages)
        form.model.add(spent[target] >= spent[source] + way * pays)
        form.model.add(longest >= spent[target])
    return longest


# --- times ------------------------------------------------------------------------------------------------------------


def _times(form: Formulation, curves: Sequence[Curve], name: str) -> list[Expression]:
    """Femtoseconds of each item on tiles of its own, with a share of its wafer's spare tiles: at least what its curve
    says, whose pieces are lines, and none above another where the curve is, as it is convex.
    """
    items = form.problem.items
    tiles = [form.wafer(kind).tiles for kind in range(len(form.kinds))]
    extra: list[list[Expression]] = [[] for _ in form.stages]
    times: list[Expression] = []
    for number, (item, curve) in enumerate(zip(items, curves, strict=True)):
        most = min(sum(piece for piece, _ in curve.drops), max(tiles, default=0) - item.tiles)
        spare: Expression = 0
        if most > 0 and curve.drops:
            here = [form.model.new_int_var(0, most, f"{name}_spare_{number}_{stage}") for stage in form.stages]
            for stage, part in enumerate(here):
                form.model.add(part <= most * form.on[number][stage])
                extra[stage].append(part)
            spare = sum(here)
        times.append(_time(form, number, curve, spare, f"{name}_{number}"))
    needs = [item.tiles for item in items]
    for stage in form.stages:
        if extra[stage]:
            form.model.add(form.load(stage, needs) + sum(extra[stage]) <= form.of_stage(stage, tiles))
    return times


def _time(form: Formulation, item: int, curve: Curve, spare: Expression, name: str) -> Expression:
    """The time of one item with ``spare`` tiles more than it needs, on a wafer as slow as where it lies."""
    if not curve.time_fs:
        return 0
    if len(form.slownesses) == 1 and not curve.drops:
        return curve.slowed(form.slownesses[0]).time_fs
    time = form.model.new_int_var(0, curve.slowed(form.slownesses[-1]).time_fs, name)
    for slowness in form.slownesses:
        slowed = curve.slowed(slowness)
        where = _on_wafers_as_slow(form, item, slowness)
        left, before = slowed.time_fs, 0
        for piece, saved in slowed.drops:
            form.model.add(time >= left - saved * (spare - before)).only_enforce_if(*where)
            left, before = left - piece * saved, before + piece
        form.model.add(time >= left).only_enforce_if(*where)
    return time


def _on_wafers_as_slow(form: Formulation, item: int, slowness: int) -> list[Literal]:
    """One literal that ``item`` lies on a wafer as slow as that; none where all are."""
    if len(form.slownesses) == 1:
        return []
    holds = form.model.new_bool_var(f"slow_{item}_{slowness}")
    for kind, literal in enumerate(form.at(item)):
        if form.wafer(kind).slowness_permille == slowness:
            form.model.add_implication(literal, holds)
    return [holds]


def _latency(form: Formulation) -> Expression:
    return sum(_times(form, [item.latency for item in form.problem.items], "latency")) + _longest_way(form)


def _bottleneck(form: Formulation) -> Expression:
    slowest = form.slownesses[-1]
    items = form.problem.items
    most = sum(max(item.latency.slowed(slowest).time_fs, item.slowest.slowed(slowest).time_fs) for item in items)
    most += sum(flow.link_fs for flow in form.problem.flows) * _costs(form)[-1]
    longest = form.model.new_int_var(0, most, "bottleneck")
    if form.problem.take_turns:
        _hold_in_turn(form, longest)
    else:
        for time in _times(form, [item.slowest for item in items], "slowest"):
            form.model.add(time <= longest)
    _hold_links(form, longest)
    return longest


def _hold_in_turn(form: Formulation, longest: Expression) -> None:
    """Each wafer works off its items one after the other, each on all of its tiles."""
    for kind in range(len(form.kinds)):
        wafer = form.wafer(kind)
        times = [
            item.latency.slowed(wafer.slowness_permille).time(wafer.tiles - item.tiles) for item in form.problem.items
        ]
        for stage in form.stages:
            where = [form.is_kind[stage][kind]] if form.is_kind else []
            form.model.add(form.load(stage, times) <= longest).only_enforce_if(*where)


def _hold_links(form: Formulation, longest: Expression) -> None:
    """Each link sends all that goes over it for a token, value after value."""
    flows = [flow for flow in form.problem.flows if flow.link_fs]
    follows = not form.problem.free
    for one in form.stages:
        for other in form.stages:
            if one == other or (follows and other < one):
                continue
            held: list[Expression] = []
            for number, flow in enumerate(flows):
                goes = form.model.new_bool_var(f"goes_{number}_{one}_{other}")
                for target in flow.targets:
                    form.model.add_bool_or(~form.on[flow.source][one], ~form.on[target][other], goes)
                held.append(flow.link_fs * goes)
            _hold_link(form, one, other, sum(held), longest)


def _hold_link(form: Formulation, one: int, other: int, held: Expression, longest: Expression) -> None:
    if not form.is_kind:
        form.model.add(held * _cost(form, 0, 0) <= longest)
        return
    least = min(_cost(form, a, b) for a in range(len(form.kinds)) for b in range(len(form.kinds)))
    form.model.add(least * held <= longest)
    for a, from_a in enumerate(form.is_kind[one]):
        for b, to_b in enumerate(form.is_kind[other]):
            if (cost := _cost(form, a, b)) > least:
                form.model.add(cost * held <= longest).only_enforce_if(from_a, to_b)


# --- room -------------------------------------------------------------------------------------------------------------


def _require_room(form: Formulation, users: int) -> None:
    """The caches of so many users fit beside the rest on every wafer that holds caches."""
    more = users - form.problem.users
    # What is larger than any wafer is as good as a byte too large, and might else not fit in 64 bits.
    too_large = 1 + max(form.wafer(kind).bytes for kind in range(len(form.kinds)))
    needs = [min(item.bytes + more * item.state_bytes, too_large) for item in form.problem.items]
    each = [item.state_bytes for item in form.problem.items]
    # A wafer that anything fits on would only make the numbers large.
    most = sum(max(0, need) for need in needs)
    offers = [min(form.wafer(kind).bytes, most) for kind in range(len(form.kinds))]
    for stage in form.stages if any(each) else ():
        form.model.add(form.load(stage, needs) <= form.of_stage(stage, offers))


_EXPRESSIONS: dict[Objective, Callable[[Formulation], Expression]] = {
    Objective.MACHINES: _machines,
    Objective.BALANCE: _balance,
    Objective.TRAFFIC: _traffic,
    Objective.LATENCY: _latency,
    Objective.BOTTLENECK: _bottleneck,
    Objective.MOVES: _moves,
}
