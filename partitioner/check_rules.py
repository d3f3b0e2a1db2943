"""The checker of a user's rules: whether a plan keeps those that it states, derived from its blocks alone.

A rule on a block is one on all blocks that must share its wafer; such a whole counts as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise

from ir.diagnostics import Diagnostic, Fact
from ir.model import Model
from ir.plan import PlacedBlock, Plan, pairs
from ir.rules import Rule, RuleKind, names

Wholes = Mapping[str, int]
"""For each block, by name, the number of the whole that it is a part of."""
_MOST_RULES = 1000


def broken_rules(plan: Plan, model: Model) -> Iterator[Diagnostic]:
    """What is wrong with the rules of ``plan``, whose blocks are those of ``model``: those that it breaks, and those
    that speak of what does not exist.
    """
    if not plan.rules:
        return
    if len(plan.rules) > _MOST_RULES:
        yield Diagnostic("W0516", "the plan has more rules than a user can give", facts={"rules": len(plan.rules)})
        return
    wholes = wholes_of(model)
    known = [block.name for block in model.blocks]
    sound = []
    for rule in plan.rules:
        reason = _meaningless(rule, known, plan.machine.systems)
        if reason:
            yield Diagnostic("W0516", f"a rule of the plan makes no sense: {reason}", str(rule))
        else:
            sound.append(rule)
    for rule in sound:
        lies = {block.name: block.wafer for block in plan.blocks}
        if _BROKEN[rule.kind](rule, plan, wholes):
            facts: dict[str, Fact] = {name: lies[name] for name in _parts(rule.blocks, lies, wholes)[:10]}
            yield Diagnostic("W0516", "the plan breaks a rule", str(rule), facts)
    order = [rule for rule in sound if rule.kind is RuleKind.ORDER]
    flows = _routes(plan, model)
    if order and _has_order(flows) and not _has_order([*flows, *_asked_routes(order, plan, wholes)]):
        yield Diagnostic("W0516", "the pipeline breaks a rule of order", "; ".join(map(str, order)))


def free_blocks(plan: Plan, model: Model) -> frozenset[str]:
    """Names of the blocks that values may flow back to and from, as a rule says so."""
    rules = (rule for rule in plan.rules[:_MOST_RULES] if rule.kind is RuleKind.FREE)
    patterns = [pattern for rule in rules for pattern in rule.blocks]
    known = [block.name for block in model.blocks]
    return frozenset(_parts(patterns, known, wholes_of(model))) if patterns else frozenset()


def wholes_of(model: Model) -> Wholes:
    """Blocks that share a wafer whatever the placement: those of a group, and those on a path between two of them."""
    leader = list(range(len(model.blocks)))
    for group in model.together:
        leader = [group[0] if block in group else own for block, own in enumerate(leader)]
    while True:
        sorter: TopologicalSorter[int] = TopologicalSorter()
        for edge in model.edges:
            source, target = leader[edge.source], leader[edge.target]
            if source != target:
                sorter.add(target, source)
        try:
            sorter.prepare()
        except CycleError as error:
            circle = set(error.args[1])
            leader = [min(circle) if own in circle else own for own in leader]
        else:
            return {block.name: own for block, own in zip(model.blocks, leader, strict=True)}


def _meaningless(rule: Rule, known: Sequence[str], systems: int) -> str:
    """Why a rule could be no user's; nothing if it could."""
    unknown = [pattern for pattern in rule.blocks if not any(names(pattern, name) for name in known)]
    if unknown or not rule.blocks:
        return f"no block is named {unknown[0]!r}" if unknown else "it names no block"
    if (rule.kind in (RuleKind.PIN, RuleKind.FORBID)) != bool(rule.wafers):
        return "it has no wafers, or should have none"
    if not all(0 <= wafer < systems for wafer in rule.wafers):
        return "it names a wafer that does not exist"
    counted = rule.kind in (RuleKind.AT_MOST, RuleKind.REPLICATE)
    return "" if (rule.count >= 1) == counted and rule.count >= 0 else "its count is wrong"


def _parts(patterns: Iterable[str], known: Iterable[str], wholes: Wholes) -> list[str]:
    """The blocks that ``patterns`` name, and those that share their wafer."""
    known, patterns = [*known], [*patterns]
    named = {wholes[name] for name in known if any(names(pattern, name) for pattern in patterns)}
    return [name for name in known if wholes[name] in named]


def _wafers(rule: Rule, plan: Plan, wholes: Wholes) -> list[int]:
    """The wafer of each copy of each whole that ``rule`` names."""
    parts = set(_parts(rule.blocks, plan.copies, wholes))
    found = {(wholes[block.name], block.copy): block.wafer for block in plan.blocks if block.name in parts}
    return list(found.values())


def _shared(rule: Rule, plan: Plan, wholes: Wholes) -> bool:
    """Whether parts of two patterns share a wafer, or two of the only one."""
    if len(rule.blocks) == 1:
        return max(Counter(_wafers(rule, plan, wholes)).values()) > 1
    groups = [_of(plan.blocks, set(_parts([pattern], plan.copies, wholes))) for pattern in rule.blocks]
    return any(one & other for one, other in combinations(groups, 2))


def _replicated(rule: Rule, plan: Plan, wholes: Wholes) -> bool:
    parts = set(_parts(rule.blocks, plan.copies, wholes))
    copies = (own for name, own in plan.copies.items() if name in parts)
    return any(len(own) != rule.count or len({block.wafer for block in own}) != rule.count for own in copies)


_BROKEN: Mapping[RuleKind, Callable[[Rule, Plan, Wholes], bool]] = {
    RuleKind.PIN: lambda rule, plan, wholes: not set(_wafers(rule, plan, wholes)) <= set(rule.wafers),
    RuleKind.FORBID: lambda rule, plan, wholes: bool(set(_wafers(rule, plan, wholes)) & set(rule.wafers)),
    RuleKind.APART: _shared,
    RuleKind.TOGETHER: lambda rule, plan, wholes: len(set(_wafers(rule, plan, wholes))) > 1,
    RuleKind.AT_MOST: lambda rule, plan, wholes: max(Counter(_wafers(rule, plan, wholes)).values()) > rule.count,
    RuleKind.REPLICATE: _replicated,
    RuleKind.ORDER: lambda _rule, _plan, _wholes: False,  # all rules of order together: one pipeline must keep them
    RuleKind.FREE: lambda _rule, _plan, _wholes: False,  # it allows, and asks nothing
}


# --- the order of the pipeline ----------------------------------------------------------------------------------------


def _routes(plan: Plan, model: Model) -> list[tuple[int, int]]:
    """Pairs of wafers between which values flow that must go on along the pipeline."""
    free, copies = free_blocks(plan, model), plan.copies
    ends = ((model.blocks[edge.source].name, model.blocks[edge.target].name) for edge in model.edges)
    placed = ((copies.get(one, ()), copies.get(other, ())) for one, other in ends if not {one, other} & free)
    return [(a.wafer, b.wafer) for one, other in placed for a, b in pairs(one, other)]


def _asked_routes(rules: Iterable[Rule], plan: Plan, wholes: Wholes) -> Iterator[tuple[int, int]]:
    for rule in rules:
        groups = [set(_parts([pattern], plan.copies, wholes)) for pattern in rule.blocks]
        wafers = [_of(plan.blocks, group) for group in groups]
        yield from ((a, b) for before, after in pairwise(wafers) for a in before for b in after)


def _of(blocks: Iterable[PlacedBlock], group: set[str]) -> set[int]:
    return {block.wafer for block in blocks if block.name in group}


def _has_order(routes: Iterable[tuple[int, int]]) -> bool:
    """Whether wafers have an order in which every route goes on."""
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for source, target in routes:
        if source != target:
            sorter.add(target, source)
    try:
        sorter.prepare()
    except CycleError:
        return False
    return True
