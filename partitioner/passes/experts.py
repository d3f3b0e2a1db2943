"""Recognising experts that a model writes out: loops over modules, and products with all of a stack of weights.

A sum over experts in which every term is zero unless the expert was chosen is a sum over the chosen experts alone. This
is proven (``routing``), and the sum's terms at the chosen experts are computed in place of all (``restrict``): products
with the experts' own weights become ``grouped_linear``, whose weights are stacked where the model keeps them apart.
Sums that cannot be proven to be zero elsewhere stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ir.graph import Graph, Node
from partitioner.passes.axes import (
    EXPERT,
    FEATURE,
    TOKEN,
    Axes,
    are_all_tokens,
    axis,
    kind,
    kinds,
    of_kind,
)
from partitioner.passes.gathered import product_with_gathered
from partitioner.passes.restrict import NotAGroupError, Restriction, Stacks
from partitioner.passes.routing import Choice, Facts, constant_of, routing_facts
from partitioner.passes.simplify import live_nodes


@dataclass(frozen=True)
class Grouped:
    """A graph whose experts are groups; ``stacks``: which of the model's weights each new one holds, in order."""

    graph: Graph
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Sum:
    """A sum over experts: the node that yields it, and what is added.

    ``factors`` are multiplied, each the name of one value or of one of each expert, with what their axes are;
    ``axes`` are those of the sum, ``beside`` what else the node adds.
    """

    node: Node
    choice: Choice
    factors: tuple[tuple[tuple[str, ...], Axes], ...]
    axes: Axes
    beside: tuple[str, ...] = ()


def group_experts(graph: Graph) -> Grouped:
    """A graph with the same outputs in which sums over experts are ``grouped_linear`` of the chosen ones."""
    facts = routing_facts(graph)
    if not facts:
        return Grouped(graph)
    stacks = Stacks(graph)
    sums = {found.node.result.name: found for found in _sums(graph, facts)}
    nodes: list[Node] = []
    for node in graph.nodes:
        found = sums.get(node.result.name)
        if found:
            nodes += _rewritten(graph, facts, stacks, found)
        else:
            nodes += product_with_gathered(graph, facts, node) if node.op == "matmul" else [node]
    if not any(node.op == "grouped_linear" for node in nodes):
        return Grouped(graph)
    live = live_nodes(nodes, graph.outputs)
    read = {name for node in live for name in node.inputs} | set(graph.outputs)
    gone = {name for names in stacks.mapping.values() for name in names} - read
    kept = [parameter for parameter in graph.parameters if parameter.name not in gone]
    made = [parameter for parameter in stacks.parameters if parameter.name in read]
    mapping = {parameter.name: stacks.mapping[parameter.name] for parameter in made}
    return Grouped(replace(graph, nodes=live, parameters=(*kept, *made)), mapping)


def _rewritten(graph: Graph, facts: Facts, stacks: Stacks, found: _Sum) -> list[Node]:
    """The nodes that take the sum's place; the sum itself where they cannot be had."""
    work = Restriction(graph, facts, found.choice, stacks, found.node)
    try:
        terms = [work.value(names, axes) for names, axes in found.factors]
        if not work.origin:
            return [found.node]
        term = terms[0]
        for factor in terms[1:]:
            term = work.add("mul", term, factor)
        total = _restored(work, work.add("sum", term, dims=(1,), keepdim=False), found)
    except NotAGroupError:
        return [found.node]
    for other in found.beside:
        total = work.add("add", other, total)
    if total != work.nodes[-1].result.name:
        total = work.add("reshape", total, shape=found.node.result.type.shape)
    *inside, last = work.nodes
    named = replace(last, results=(found.node.result,), origin=found.node.origin)
    return [*(replace(node, origin=work.origin) for node in inside), named]


def _restored(work: Restriction, name: str, found: _Sum) -> str:
    """The sum [tokens, *features] in the shape that it had."""
    atoms = [atom for one in found.axes for atom in one]
    order = sorted(range(len(atoms)), key=lambda i: kind(atoms[i]) != TOKEN)
    if order != list(range(len(atoms))):
        apart = work.reshape(name, tuple(atoms[i][1] for i in order))
        name = work.add("transpose", apart, permutation=tuple(order.index(i) for i in range(len(order))))
    return work.reshape(name, found.node.result.type.shape)


# --- sums over experts ----------------------------------------------------------------------------------------------


def _sums(graph: Graph, facts: Facts) -> Iterator[_Sum]:
    leaves: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op == "sum":
            found = _over_an_axis(node, facts)
        elif node.op == "matmul":
            found = _by_a_product(graph, node, facts)
        elif node.op == "add" and len(node.inputs) == 2:
            found = _of_terms(graph, node, facts, leaves)
        else:
            continue
        if found and _are_complete(found):
            leaves.pop(node.result.name, None)  # a further addend is no part of it
            yield found


def _are_complete(found: _Sum) -> bool:
    """Whether the sum has all tokens, and nothing but tokens and features."""
    others = {label for one in found.axes for label in kinds(one)} - {TOKEN, FEATURE}
    return not others and are_all_tokens(of_kind(found.axes, TOKEN), found.choice.count)


def _over_an_axis(node: Node, facts: Facts) -> _Sum | None:
    fact = facts.get(node.inputs[0])
    if fact is None or fact.outside != 0 or fact.expert is not None or len(node.attributes["dims"]) != 1:
        return None
    (dim,) = node.attributes["dims"]
    if fact.axes[dim] != axis(EXPERT, fact.choice.experts):
        return None
    after = ((),) if node.attributes["keepdim"] else ()
    axes = (*fact.axes[:dim], *after, *fact.axes[dim + 1 :])
    return _Sum(node, fact.choice, (((node.inputs[0],), fact.axes),), axes)


def _by_a_product(graph: Graph, node: Node, facts: Facts) -> _Sum | None:
    """Weights [..., 1, experts] times values [..., experts, width], or values [..., width, experts] times weights."""
    shape = node.result.type.shape
    for position in (0, 1):
        weights, values = node.inputs[position], node.inputs[1 - position]
        fact = facts.get(weights)
        if fact is None or fact.outside != 0 or len(fact.axes) != len(shape):
            continue
        summed, kept = (-1, -2) if position == 0 else (-2, -1)
        if fact.axes[summed] != axis(EXPERT, fact.choice.experts):
            continue
        if fact.axes[kept] or len(graph.types[values].shape) != len(shape):
            continue
        experts, width = fact.axes[summed], axis(FEATURE, shape[summed])
        batch = tuple(a or axis(FEATURE, size) for a, size in zip(fact.axes[:-2], shape[:-2], strict=True))
        inner = (width, experts) if position else (experts, width)
        axes = (width, ()) if position else ((), width)
        # Both with an axis for the experts, which is 1 once they are chosen.
        own = ((), experts) if not position else (experts, ())
        factors = (((values,), (*batch, *inner)), ((weights,), (*fact.axes[:-2], *own)))
        return _Sum(node, fact.choice, factors, (*batch, *axes))
    return None


def _of_terms(graph: Graph, node: Node, facts: Facts, leaves: dict[str, tuple[str, ...]]) -> _Sum | None:
    """A chain of additions that has come to one term of each expert."""
    parts = tuple(
        leaf
        for name in node.inputs
        for leaf in (leaves.get(name, (name,)) if len(graph.consumers.get(name, ())) == 1 else (name,))
    )
    leaves[node.result.name] = parts
    terms = {name: facts[name] for name in parts if name in facts and facts[name].expert is not None}
    choices = {fact.choice for fact in terms.values()}
    if len(choices) != 1:
        return None
    (choice,) = choices
    by_expert = {fact.expert: name for name, fact in terms.items() if fact.outside == 0}
    if len(terms) != choice.experts or by_expert.keys() != set(range(choice.experts)):
        return None
    names = tuple(by_expert[expert] for expert in range(choice.experts))
    fact = facts[names[0]]
    alike = all(facts[name].axes == fact.axes and graph.types[name] == node.result.type for name in names)
    beside = tuple(name for name in parts if name not in terms and constant_of(graph, name) != 0)
    return _Sum(node, choice, ((names, fact.axes),), fact.axes, beside) if alike else None
