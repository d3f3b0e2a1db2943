"""What positions alone decide is computed where it is read: sending a position is cheaper than sending its sine.

Rotary tables, for example, are made once before the layers and read in each of them. On a cluster of wafers every stage
knows the position of the token that it works on, so each layer gets its own copy of the few nodes that make them.
"""

from __future__ import annotations

from dataclasses import replace

from ir.graph import Graph, Node, Value
from partitioner.passes.origins import layer_of


def localise(graph: Graph) -> Graph:
    """A graph with the same outputs in which layers compute such values themselves.

    A value is copied into a layer if it depends on no weight, and if the inputs that it depends on take fewer bytes for
    each token than the value. The original nodes stay; :func:`~partitioner.passes.simplify.simplify` drops the dead.
    """
    cheap = _cheaper_from_inputs(graph)
    nodes: list[Node] = []
    local: dict[tuple[str, str], str] = {}
    for node in graph.nodes:
        layer, _ = layer_of(node.origin)
        if layer:
            for name in node.inputs:
                if name in cheap and layer_of(graph.nodes[graph.producer[name]].origin)[0] != layer:
                    nodes += _copies(graph, name, layer, node.origin, local)
            node = replace(node, inputs=tuple(local.get((layer, name), name) for name in node.inputs))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _cheaper_from_inputs(graph: Graph) -> set[str]:
    """Values that take more bytes than the inputs that alone decide them."""
    inputs: dict[str, frozenset[str]] = {value.name: frozenset({value.name}) for value in graph.inputs}
    found: set[str] = set()
    for node in graph.nodes:
        if any(name not in inputs for name in node.inputs):
            continue  # it depends on a weight
        needed = frozenset().union(*(inputs[name] for name in node.inputs))
        inputs |= dict.fromkeys((value.name for value in node.results), needed)
        sent = sum(graph.token_bytes[name] for name in needed)
        found |= {value.name for value in node.results if needed and graph.token_bytes[value.name] > sent}
    return found


def _copies(graph: Graph, name: str, layer: str, origin: str, local: dict[tuple[str, str], str]) -> list[Node]:
    """Copies for ``layer`` of the nodes that compute ``name``, as far as it has none yet."""
    if (layer, name) in local or name not in graph.producer:
        return []
    node = graph.nodes[graph.producer[name]]
    before = [copy for operand in node.inputs for copy in _copies(graph, operand, layer, origin, local)]
    local |= {(layer, value.name): f"{layer}/{value.name}" for value in node.results}
    results = tuple(Value(local[layer, value.name], value.type) for value in node.results)
    inputs = tuple(local.get((layer, operand), operand) for operand in node.inputs)
    return [*before, replace(node, inputs=inputs, results=results, origin=origin)]
