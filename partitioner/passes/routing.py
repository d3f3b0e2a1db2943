"""What is known of values that come from a choice of experts: where they are constant.

A router chooses, for each token, the k experts of greatest score. A fact about a value says which of its axes are
tokens and which are experts, and what the value is for every expert that the token did not choose. Facts are found by
one sweep over the graph; each rule holds for all inputs, so what is built on facts is an identity, except that zero
times an infinite number counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ir.graph import Graph, Node
from ir.ops import ELEMENT_BY_ELEMENT, OPS, torch_dtype
from ir.types import Shape, Size, product
from partitioner.passes.axes import EXPERT, FEATURE, SLOT, TOKEN, Axes, Axis, axis, kinds, present, regroup

_HELD_BY = {"sum": 0, "mean": 0, "amax": None, "amin": None}
"""Reductions that leave a constant as it is: any, or only this one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice that ``indices`` [*tokens, active] names, of ``experts`` experts, all different for one token."""

    indices: str
    tokens: Shape
    experts: int
    active: int

    @property
    def count(self) -> Size:
        """Number of tokens."""
        return product(self.tokens)


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a value.

    Attributes:
        choice: the choice that it comes from.
        axes: what its axes stand for.
        outside: its value wherever the token did not choose the expert; ``None`` if it is the chosen index itself.
        expert: the one expert that it speaks of, where no axis stands for experts.
        exact: it is not zero exactly where the expert was chosen.
        by_slot: it is ``outside`` wherever the slot of its own axis does not hold the expert.
    """

    choice: Choice
    axes: Axes
    outside: float | None
    expert: int | None = None
    exact: bool = False
    by_slot: bool = False


Facts = dict[str, Fact]


def routing_facts(graph: Graph) -> Facts:
    """Facts by name of value."""
    facts: Facts = {}
    for node in graph.nodes:
        if node.op in ("topk", "argmax"):
            facts |= _choice(graph, node)
            continue
        fact = _fact(graph, node, facts) if facts else None
        if fact is not None and all(a or s == 1 for a, s in zip(fact.axes, node.result.type.shape, strict=True)):
            facts[node.result.name] = fact
    return facts


def constant_of(graph: Graph, name: str) -> float | None:
    """The number that all elements of a value are."""
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if node.op == "full":
            return float(node.attributes["value"])
        if node.op == "constant" and len(set(node.attributes["values"])) == 1:
            return float(node.attributes["values"][0])
        if node.op not in ("reshape", "transpose", "expand", "slice", "cast"):
            return None
        (name,) = node.inputs
    return None


def _choice(graph: Graph, node: Node) -> Facts:
    scores = graph.types[node.inputs[0]].shape
    dim = node.attributes["dim"] if node.op == "topk" else node.attributes["dims"][0]
    experts = scores[-1] if scores else None
    if dim != len(scores) - 1 or not isinstance(experts, int):
        return {}
    indices = node.results[-1]
    active = node.attributes["k"] if node.op == "topk" else 1
    choice = Choice(indices.name, scores[:-1], experts, active)
    tokens = tuple(axis(f"{TOKEN}{number}", size) for number, size in enumerate(scores[:-1]))
    own = (axis(SLOT, active),) if len(indices.type.shape) == len(scores) else ()
    return {indices.name: Fact(choice, (*tokens, *own), None)}


def _fact(graph: Graph, node: Node, facts: Facts) -> Fact | None:
    known = [facts[name] for name in node.inputs if name in facts]
    if not known or any(fact.choice != known[0].choice for fact in known):
        return None
    if node.op in ("eq", "ne"):
        return _comparison(graph, node, facts)
    if node.op in ELEMENT_BY_ELEMENT:
        return _elementwise(graph, node, facts)
    rule = _RULES.get(node.op)
    return rule(graph, node, facts) if rule else None


# --- comparisons and element-wise operators -------------------------------------------------------------------------


def _comparison(graph: Graph, node: Node, facts: Facts) -> Fact | None:
    """A chosen index against a number, or against all experts' numbers."""
    index = next((facts[name] for name in node.inputs if name in facts and facts[name].outside is None), None)
    if index is None:
        return _elementwise(graph, node, facts)
    differs = node.op == "ne"
    if "scalar" in node.attributes:
        expert = node.attributes["scalar"]
        inside = expert == int(expert) and 0 <= expert < index.choice.experts
        return (
            replace(index, outside=float(differs), expert=int(expert), exact=not differs, by_slot=True)
            if inside
            else None
        )
    other = next((name for name in node.inputs if name not in facts), "")
    constant = constant_of(graph, other)
    if constant is not None and graph.types[other].elements == 1:
        return replace(index, outside=float(differs), expert=int(constant), exact=not differs, by_slot=True)
    numbers = _numbers_of_experts(graph, other, index.choice.experts)
    if numbers is None:
        return None
    name = node.inputs[0] if node.inputs[0] != other else node.inputs[1]
    shape = node.result.type.shape
    axes = _merge(
        [
            present(index.axes, _padded(graph.types[name].shape, shape)),
            present(numbers, _padded(graph.types[other].shape, shape)),
        ],
        shape,
    )
    return Fact(index.choice, axes, float(differs), None, not differs, by_slot=True) if axes else None


def _numbers_of_experts(graph: Graph, name: str, experts: int) -> Axes | None:
    """The axes of a value that is 0, 1, ... along one of them."""
    views: list[Node] = []
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        counted = node.op == "arange" and (node.attributes["start"], node.attributes["step"]) == (0, 1)
        if counted or (node.op == "constant" and node.attributes["values"] == tuple(range(experts))):
            if node.result.type.elements != experts:
                return None
            axes: Axes | None = tuple(axis(EXPERT, size) for size in node.result.type.shape)
            for view in reversed(views):
                axes = _view(view, axes) if axes else None
            return axes
        if node.op not in ("reshape", "transpose", "expand", "cast"):
            return None
        views.append(node)
        (name,) = node.inputs
    return None


def _view(node: Node, axes: Axes) -> Axes | None:
    if node.op == "reshape":
        return regroup(axes, node.result.type.shape)
    if node.op == "transpose":
        return tuple(axes[i] for i in node.attributes["permutation"])
    if node.op == "expand":
        shape = node.result.type.shape
        padded = ((),) * (len(shape) - len(axes)) + axes
        return tuple(a or axis(FEATURE, size) for a, size in zip(padded, shape, strict=True))
    return axes


def _padded(shape: Shape, like: Shape) -> Shape:
    return (1,) * (len(like) - len(shape)) + tuple(shape)


def _merge(given: Sequence[Axes], shape: Shape) -> Axes | None:
    """The axes of a value of ``shape`` that several were broadcast to; ``None`` where they contradict each other."""
    result: list[Axis] = []
    for position, size in enumerate(shape):
        candidates = [axes[position] for axes in given if axes[position]]
        telling = [one for one in candidates if kinds(one) != {FEATURE}]
        if any(kinds(one) != kinds(telling[0]) or _roots(one) != _roots(telling[0]) for one in telling):
            return None
        result.append((telling or candidates or [axis(FEATURE, size)])[0])
    return tuple(result)


def _roots(given: Axis) -> list[str]:
    return list(dict.fromkeys(label.split(".")[0] for label, _ in given))


def _elementwise(graph: Graph, node: Node, facts: Facts) -> Fact | None:
    shape = node.result.type.shape
    known = [(name, facts[name]) for name in node.inputs if name in facts]
    first = known[0][1]
    if any(fact.outside is None for _, fact in known):
        return replace(first, outside=None) if node.op == "cast" else None
    experts = {fact.expert for _, fact in known}
    axes = _merge([present(fact.axes, _padded(graph.types[name].shape, shape)) for name, fact in known], shape)
    outside = _outside(graph, node, facts)
    if axes is None or outside is None or len(experts) > 1:
        return None
    zero = node.op in ("ne", "gt") and node.attributes.get("scalar") == 0
    exact = first.exact and len(node.inputs) == 1 and (node.op == "cast" or zero)
    return Fact(first.choice, axes, outside, first.expert, exact, _by_slot(graph, node, facts))


def _by_slot(graph: Graph, node: Node, facts: Facts) -> bool:
    """Whether the result is constant wherever a slot does not hold the expert."""
    if node.op in ("mul", "logical_and", "bitwise_and"):
        return any(facts[name].by_slot and facts[name].outside == 0 for name in node.inputs if name in facts)
    settled = [facts[name].by_slot if name in facts else constant_of(graph, name) is not None for name in node.inputs]
    if node.op == "where" and settled[0] and node.inputs[0] in facts:
        return settled[1 if facts[node.inputs[0]].outside else 2]
    return all(settled)


def _outside(graph: Graph, node: Node, facts: Facts) -> float | None:
    """The result for an expert that was not chosen; ``None`` where it is not the same for all."""
    operands = [facts[name].outside if name in facts else constant_of(graph, name) for name in node.inputs]
    if node.op in ("mul", "logical_and", "bitwise_and") and 0 in operands:
        return 0.0
    if node.op == "div" and operands[0] == 0:
        return 0.0
    if node.op == "where" and operands[0] is not None:
        return operands[1] if operands[0] else operands[2]
    if node.op == "masked_fill" and operands[1] is not None:
        return float(node.attributes["value"]) if operands[1] else operands[0]
    if any(operand is None for operand in operands):
        return None
    return _evaluate(graph, node, operands)


def _evaluate(graph: Graph, node: Node, operands: Sequence[float | None]) -> float:
    import torch

    types = [graph.types[name] for name in node.inputs]
    tensors = [torch.tensor(o).to(torch_dtype(torch, t.dtype)) for o, t in zip(operands, types, strict=True)]
    result: Any = OPS[node.op].reference(torch, tensors, node.attributes)
    return float(result)


# --- other operators ------------------------------------------------------------------------------------------------


def _first(node: Node, facts: Facts) -> Fact | None:
    return facts.get(node.inputs[0])


def _viewed(_graph: Graph, node: Node, facts: Facts) -> Fact | None:
    fact = facts[node.inputs[0]]
    axes = _view(node, fact.axes)
    return replace(fact, axes=axes) if axes is not None else None


def _slice(_graph: Graph, node: Node, facts: Facts) -> Fact | None:
    fact, dim = facts[node.inputs[0]], node.attributes["dim"]
    size = node.result.type.shape[dim]
    whole = kinds(fact.axes[dim])
    if fact.outside is None or TOKEN in whole or len(fact.axes[dim]) > 1:
        return None
    if EXPERT in whole:
        named = fact.axes[dim] == axis(EXPERT, fact.choice.experts) and size == 1
        return replace(fact, axes=_with(fact.axes, dim, ()), expert=node.attributes["start"]) if named else None
    label = SLOT if SLOT in whole else FEATURE
    return replace(fact, axes=_with(fact.axes, dim, axis(label, size)), exact=fact.exact and label == FEATURE)


def _with(axes: Axes, position: int, one: Axis) -> Axes:
    return (*axes[:position], one, *axes[position + 1 :])


def _concat(graph: Graph, node: Node, facts: Facts) -> Fact | None:
    parts = [facts.get(name) for name in node.inputs]
    dim, first = node.attributes["dim"], parts[0]
    if first is None or any(part is None or part.outside is None or part.outside != first.outside for part in parts):
        return None
    experts = [part.expert for part in parts if part]
    each_one = all(graph.types[name].shape[dim] == 1 for name in node.inputs)
    if each_one and experts == list(range(first.choice.experts)):
        return Fact(first.choice, _with(first.axes, dim, axis(EXPERT, len(experts))), first.outside)
    alike = all(part and part.axes[:dim] == first.axes[:dim] and part.expert == first.expert for part in parts)
    if not alike or any(kinds(part.axes[dim]) - {FEATURE} for part in parts if part):
        return None
    return replace(first, axes=_with(first.axes, dim, axis(FEATURE, node.result.type.shape[dim])), exact=False)


def _scatter(graph: Graph, node: Node, facts: Facts) -> Fact | None:
    """Something written, into a constant, at the chosen experts."""
    index, dim = facts.get(node.inputs[1]), node.attributes["dim"]
    outside, shape = constant_of(graph, node.inputs[0]), node.result.type.shape
    if index is None or index.outside is not None or outside is None or shape[dim] != index.choice.experts:
        return None
    given = graph.types[node.inputs[1]].shape
    fits = all(a == b for i, (a, b) in enumerate(zip(given, shape, strict=True)) if i != dim)
    if not fits or kinds(index.axes[dim]) - {SLOT}:
        return None
    by_slot = not index.axes[dim]
    return Fact(index.choice, _with(index.axes, dim, axis(EXPERT, shape[dim])), outside, by_slot=by_slot)


def _softmax(_graph: Graph, node: Node, facts: Facts) -> Fact | None:
    fact = facts[node.inputs[0]]
    over_experts = fact.axes[node.attributes["dim"]] == axis(EXPERT, fact.choice.experts)
    return replace(fact, outside=0.0, exact=False) if over_experts and fact.outside == -math.inf else None


def _reduce(_graph: Graph, node: Node, facts: Facts) -> Fact | None:
    fact, dims = facts[node.inputs[0]], node.attributes["dims"]
    away = {label for dim in dims for label in kinds(fact.axes[dim])}
    if fact.outside is None or away & {TOKEN, EXPERT} or _HELD_BY[node.op] not in (None, fact.outside):
        return None
    keeps = node.attributes["keepdim"]
    axes = tuple(() if i in dims else one for i, one in enumerate(fact.axes) if keeps or i not in dims)
    exact = fact.exact and fact.outside == 0 and node.op in ("sum", "amax")
    return replace(fact, axes=axes, exact=exact, by_slot=fact.by_slot and SLOT not in away)


def _linear(_graph: Graph, node: Node, facts: Facts) -> Fact | None:
    fact = _first(node, facts)
    if fact is None or fact.outside != 0 or len(node.inputs) > 2 or kinds(fact.axes[-1]) - {FEATURE}:
        return None
    return replace(fact, axes=(*fact.axes[:-1], axis(FEATURE, node.result.type.shape[-1])), exact=False)


def _matmul(graph: Graph, node: Node, facts: Facts) -> Fact | None:
    """Zero times anything; what is summed over must be no token and no expert."""
    shape = node.result.type.shape
    for position, other in ((0, 1), (1, 0)):
        fact = facts.get(node.inputs[position])
        if fact is None or fact.outside != 0 or node.inputs[other] in facts:
            continue
        summed, kept = (-1, -2) if position == 0 else (-2, -1)
        if kinds(fact.axes[summed]) - {FEATURE, SLOT}:
            continue
        own = _padded(graph.types[node.inputs[position]].shape, shape)
        axes = list(present(fact.axes, own))
        axes[summed] = axis(FEATURE, shape[summed])
        axes[kept] = fact.axes[kept]
        batch = tuple(a or axis(FEATURE, size) for a, size in zip(axes[:-2], shape[:-2], strict=True))
        by_slot = fact.by_slot and SLOT not in kinds(fact.axes[summed])
        return replace(fact, axes=(*batch, *axes[-2:]), exact=False, by_slot=by_slot)
    return None


_RULES = {
    **dict.fromkeys(("reshape", "transpose", "expand"), _viewed),
    **dict.fromkeys(_HELD_BY, _reduce),
    "slice": _slice,
    "concat": _concat,
    "scatter": _scatter,
    "softmax": _softmax,
    "linear": _linear,
    "matmul": _matmul,
}
