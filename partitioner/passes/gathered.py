"""Products with weights that were gathered for each token: ``weight[chosen]`` times x is ``grouped_linear``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ir.graph import Graph, Node, Value
from ir.ops import OPS
from ir.types import Shape
from partitioner.passes.axes import (
    FEATURE,
    SLOT,
    TOKEN,
    Axes,
    are_all_tokens,
    axis,
    kind,
    of_kind,
    present,
    through_views,
)
from partitioner.passes.routing import Choice, Facts


@dataclass(frozen=True, slots=True)
class _Gathered:
    """A view of ``weight`` [experts, p, q] at the experts of a choice, and what its axes are."""

    weight: str
    choice: Choice
    axes: Axes


def product_with_gathered(graph: Graph, facts: Facts, node: Node) -> list[Node]:
    """The nodes that take the place of a ``matmul`` with gathered weights; the node itself if it is none."""
    for position in (0, 1):
        found = _gathered(graph, facts, node.inputs[position])
        made = _grouped(graph, node, found, position) if found else None
        if made:
            return made
    return [node]


def _gathered(graph: Graph, facts: Facts, name: str) -> _Gathered | None:
    views: list[Node] = []
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if node.op == "embedding":
            return _looked_up(graph, facts, node, views)
        if node.op not in ("reshape", "transpose"):
            return None
        views.append(node)
        name = node.inputs[0]
    return None


def _looked_up(graph: Graph, facts: Facts, node: Node, views: list[Node]) -> _Gathered | None:
    index = facts.get(node.inputs[1])
    table = graph.nodes[graph.producer[node.inputs[0]]] if node.inputs[0] in graph.producer else None
    if index is None or index.outside is not None or table is None or table.op != "reshape":
        return None
    weight = graph.parameter.get(table.inputs[0])
    if weight is None or len(weight.shape) != 3 or weight.shape[0] != index.choice.experts:
        return None
    if graph.types[node.inputs[0]].shape[0] != weight.shape[0]:
        return None
    rows = (*index.axes, (*axis("p", weight.shape[1]), *axis("q", weight.shape[2])))
    axes = through_views(rows, views)
    if axes is None:
        return None
    return _Gathered(weight.name, index.choice, axes)


def _grouped(graph: Graph, node: Node, found: _Gathered, position: int) -> list[Node] | None:
    x, shape, choice = node.inputs[1 - position], node.result.type.shape, found.choice
    if not len(found.axes) == len(shape) == len(graph.types[x].shape):
        return None
    # The weights' axis that is summed, and the one that is kept; x has but one row (or column).
    summed, kept = (-1, -2) if position == 0 else (-2, -1)
    given = graph.types[x].shape
    inputs = [label for label, _ in found.axes[summed]]
    if inputs not in (["p"], ["q"]) or given[summed] != 1:
        return None
    batch, width, one = found.axes[:-2], axis(FEATURE, given[kept]), found.axes[kept]
    inner = present((*batch, width, ()) if position == 0 else (*batch, (), width), given)
    result = (*batch, one, ()) if position == 0 else (*batch, (), one)
    outputs = "q" if inputs == ["p"] else "p"
    if not _in_order(inner, choice, FEATURE) or not _in_order(result, choice, outputs):
        return None
    if not of_kind(result, SLOT) and choice.active > 1:
        return None
    slots = choice.active if of_kind(inner, SLOT) else 1
    return _nodes(graph, node, found, x, (choice.count, slots, given[kept]), inputs)


def _in_order(axes: Axes, choice: Choice, last: str) -> bool:
    """Whether a value is [tokens, chosen, features] but for its shape."""
    atoms = [atom for one in axes for atom in one]
    order = {TOKEN: 0, SLOT: 1, last: 2}
    ranks = [order.get(kind(atom), 3) for atom in atoms]
    return ranks == sorted(ranks) and 3 not in ranks and are_all_tokens(of_kind(axes, TOKEN), choice.count)


def _nodes(graph: Graph, node: Node, found: _Gathered, x: str, narrow: Shape, inputs: list[str]) -> list[Node]:
    choice, name = found.choice, node.result.name
    origin = f"{node.origin}.experts".lstrip(".")
    types = dict(graph.types)
    made: list[Node] = []

    def add(op: str, result: str, *operands: str, **attributes: object) -> str:
        (type_,) = OPS[op].infer([types[operand] for operand in operands], attributes)
        types[result] = type_
        made.append(Node(op, operands, (Value(result, type_),), attributes, origin))
        return result

    rows = add("reshape", f"{name}/x", x, shape=narrow)
    indices = add("reshape", f"{name}/chosen", choice.indices, shape=(choice.count, choice.active))
    product = add("grouped_linear", f"{name}/product", rows, found.weight, indices, transposed=inputs == ["p"])
    add("reshape", name, product, shape=node.result.type.shape)
    return [*made[:-1], replace(made[-1], results=node.results)]
