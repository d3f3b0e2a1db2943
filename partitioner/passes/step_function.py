"""From the graph of an export to a step function: attention owns its cache, and positions are an input.

An export with a cache reads what it remembers (``past`` tokens of each user) and joins the new keys and values to it.
The step function of a plan says the same without: its attention remembers. An export computes positions by counting
from what it remembers, and the step function is told them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ir.builder import GraphBuilder
from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Graph, Node
from ir.types import Dim, Size, symbols_of
from partitioner.passes import positions
from partitioner.passes.attention import recognise_attention
from partitioner.passes.chosen import group_chosen
from partitioner.passes.positions import take_positions
from partitioner.passes.rows import fold_rows
from partitioner.passes.simplify import simplify
from partitioner.passes.uniform import fold_uniform
from partitioner.passes.unsort import undo_orders

USERS, TOKENS, PAST = (Dim.symbol(name) for name in ("users", "tokens", "past"))


@dataclass(frozen=True, slots=True)
class StepFunction:
    """A step's graph, and which of the export's outputs (indices) it has; those for the cache are left out."""

    graph: Graph
    outputs: tuple[int, ...]


def step_function(graph: Graph, ids: str, pasts: frozenset[str]) -> StepFunction:
    """The step that ``graph`` computes: ``ids`` names its token ids [users, tokens], ``pasts`` the inputs of the cache.

    Raises:
        UnsupportedModelError: W0310, what is remembered is read by something else than attention.
    """
    orders = tuple(value.name for value in graph.inputs if value.name.startswith("any_order"))
    graph = simplify(undo_orders(group_chosen(simplify(fold_uniform(graph))), orders))
    graph = recognise_attention(graph)
    graph, kept = _own_cache(graph, ids, pasts)
    graph = simplify(graph)
    graph = simplify(take_positions(graph, ids, TOKENS, PAST))
    graph = simplify(fold_uniform(_without_past(graph, pasts)))
    if any(value.name == positions.NAME for value in graph.inputs):
        graph = simplify(fold_uniform(fold_rows(graph, positions.NAME)))
    read = {name for node in graph.nodes for name in node.inputs} | {ids}
    return StepFunction(replace(graph, inputs=tuple(v for v in graph.inputs if v.name in read)), kept)


def _own_cache(graph: Graph, ids: str, pasts: frozenset[str]) -> tuple[Graph, tuple[int, ...]]:
    """Attention reads new keys and values alone; what it remembers is no output, nor what no token decides."""
    joined = {
        node.result.name: node.inputs[1]
        for node in graph.nodes
        if node.op == "concat" and len(node.inputs) == 2 and node.inputs[0] in pasts
        if _is_remembered(graph, node.result.name)
    }
    nodes = (replace(node, inputs=tuple(joined.get(n, n) for n in node.inputs)) for node in graph.nodes)
    graph = replace(graph, nodes=tuple(nodes))
    decided = _computed_from(graph, ids)
    kept = tuple(
        index
        for index, name in enumerate(graph.outputs)
        if name in decided and name not in joined and not _is_remembered(graph, name)
    )
    kept = kept or tuple(range(len(graph.outputs)))
    return replace(graph, outputs=tuple(graph.outputs[index] for index in kept)), kept


def _computed_from(graph: Graph, ids: str) -> set[str]:
    found = {ids}
    for node in graph.nodes:
        if found.intersection(node.inputs):
            found.update(value.name for value in node.results)
    return found - {ids}


def _is_remembered(graph: Graph, name: str) -> bool:
    """Whether all that is computed from a value are keys and values of attention."""
    pending, seen, is_read = [name], {name}, False
    while pending:
        value = pending.pop()
        for reader in graph.consumers.get(value, ()):
            node = graph.nodes[reader]
            if node.op == "attention":
                if value not in node.inputs[1:3] or value == node.inputs[0]:
                    return False
                is_read = True
            else:
                fresh = {result.name for result in node.results} - seen
                seen |= fresh
                pending += fresh
    return is_read


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
