"""From the graph of an export to a step function: attention owns its cache, and positions are an input.

An export with a cache reads what it remembers (``past`` tokens of each user) and joins the new keys and values to it.
The step function of a plan says the same without: its attention remembers. An export computes positions by counting
from what it remembers, and the step function is told them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Graph, Node
from ir.types import Dim, Size, symbols_of
from partitioner.frontends.builder import GraphBuilder
from partitioner.passes.attention import recognise_attention
from partitioner.passes.positions import take_positions
from partitioner.passes.simplify import simplify
from partitioner.passes.uniform import fold_uniform
from partitioner.passes.unsort import undo_orders

USERS, TOKENS, PAST = (Dim.symbol(name) for name in ("users", "tokens", "past"))


def step_function(graph: Graph, ids: str, pasts: frozenset[str]) -> Graph:
    """The step that ``graph`` computes: ``ids`` names its token ids [users, tokens], ``pasts`` the inputs of the cache.

    Raises:
        UnsupportedModelError: W0310, what is remembered is read by something else than attention.
    """
    orders = tuple(value.name for value in graph.inputs if value.name.startswith("any_order"))
    graph = simplify(undo_orders(simplify(fold_uniform(graph)), orders))
    graph = recognise_attention(graph)
    graph = simplify(_own_cache(graph, pasts))
    graph = simplify(take_positions(graph, ids, TOKENS, PAST))
    return simplify(fold_uniform(_without_past(graph, pasts)))


def _own_cache(graph: Graph, pasts: frozenset[str]) -> Graph:
    """Attention reads new keys and values alone; keys and values are no outputs."""
    joined = {
        node.result.name: node.inputs[1]
        for node in graph.nodes
        if node.op == "concat" and len(node.inputs) == 2 and node.inputs[0] in pasts
    }
    remembered = {name for node in graph.nodes if node.op == "attention" for name in node.inputs[1:3]}
    nodes = tuple(
        replace(node, inputs=(node.inputs[0], *(joined.get(n, n) for n in node.inputs[1:3]), *node.inputs[3:]))
        if node.op == "attention"
        else node
        for node in graph.nodes
    )
    dropped = remembered | joined.keys() | set(joined.values())
    outputs = tuple(name for name in graph.outputs if name not in dropped)
    return replace(graph, nodes=nodes, outputs=outputs) if outputs else graph


def _without_past(graph: Graph, pasts: frozenset[str]) -> Graph:
    """The graph for users of whom nothing is remembered yet: the step of all, once attention remembers."""
    inputs = tuple(value for value in graph.inputs if value.name not in pasts)
    for node in graph.nodes:
        read = pasts.intersection(node.inputs)
        if read:
            name = min(read)
            message = f"{node.op} reads what is remembered in {name}; only attention may"
            help_ = ("export the model without its cache (use_cache=False)",)
            raise UnsupportedModelError(Diagnostic("W0310", message, node.origin, help=help_))
    if not pasts:
        return graph
    return rebuilt(replace(graph, inputs=inputs), lambda node, _builder: _forget(node))


def _forget(node: Node) -> Node:
    attributes = {
        name: tuple(_now(item) for item in value) if isinstance(value, tuple) else value
        for name, value in node.attributes.items()
    }
    return replace(node, attributes=attributes)


def _now(size: Any) -> Any:
    """A size when nothing is remembered."""
    if not isinstance(size, Dim) or "past" not in symbols_of(size):
        return size
    total: Size = 0
    for symbols, count in size.terms:
        if "past" not in symbols:
            term: Size = count
            for symbol in symbols:
                term = term * Dim.symbol(symbol)
            total = total + term
    return total


def rebuilt(graph: Graph, change: Callable[[Node, GraphBuilder], Node]) -> Graph:
    """The graph with every node changed, and the types of all results inferred again.

    Raises:
        UnsupportedModelError: W0303, a changed node does not fit its operands.
    """
    builder = GraphBuilder(graph.name)
    for value in graph.inputs:
        builder.input(value.name, value.type)
    for parameter in graph.parameters:
        builder.parameter(parameter.name, parameter.type, parameter.encoding)
    for original in graph.nodes:
        node = change(original, builder)
        builder.add(node.op, node.inputs, node.origin, [v.name for v in node.results], **node.attributes)
    return builder.finish(graph.outputs)
