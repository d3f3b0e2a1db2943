"""What each attention node remembers: the smallest cut of the graph from which keys and values can be recomputed.

Keys and values are functions of one token each, so any set of values that all paths to them pass through can be cached
in their place. The cheapest set, in bytes per token, is a minimum vertex cut. It is sought between the layer's own
first products and the attention: what lies before them is the layer's input, and caching that would mean to repeat the
layer's projections for every remembered token. For grouped-query attention the cut is K and V themselves, for
multi-head latent attention (DeepSeek-V2, section 2.1) the latent and the shared rotary key.
"""

from __future__ import annotations

import networkx as nx

from ir.graph import Graph
from ir.model import Cache
from ir.ops import OPS, Kind
from ir.types import for_one_token
from partitioner.passes.origins import layer_of

_SOURCE, _SINK = "source", "sink"


def find_caches(graph: Graph) -> dict[int, Cache]:
    """The cache of every attention node that is causal, by the node's index.

    Attention over all tokens at once (an encoder's) has nothing to remember from step to step.
    """
    depends = token_dependent(graph)
    return {
        index: _find_cache(graph, index, depends)
        for index, node in enumerate(graph.nodes)
        if OPS[node.op].kind is Kind.STATE and node.attributes.get("causal")
    }


def token_dependent(graph: Graph) -> frozenset[str]:
    """Names of values that depend on an input of the graph (others are constants of the model)."""
    depends = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if depends.intersection(node.inputs):
            depends.update(value.name for value in node.results)
    return frozenset(depends)


def _find_cache(graph: Graph, attention: int, depends: frozenset[str]) -> Cache:
    node = graph.nodes[attention]
    wanted = tuple(dict.fromkeys(node.inputs[1:3]))
    layer = layer_of(node.origin)[0]
    inside, sources = _slice_back(graph, wanted, layer, depends)
    network = _network(graph, wanted, inside, sources, depends)
    # Of equally small cuts the one nearest to the sink leaves least to recompute: search on the reversed network.
    _, (_, source_side) = nx.minimum_cut(network.reverse(copy=False), _SINK, _SOURCE)
    values = tuple(
        name for name in _in_order(graph, inside) if (name, 0) in source_side and (name, 1) not in source_side
    )
    bytes_per_token = sum(_bytes(graph, name) for name in values)
    window = int(node.attributes["window"])
    return Cache(attention, values, _between(graph, wanted, values, depends), bytes_per_token, window)


def _slice_back(
    graph: Graph, wanted: tuple[str, ...], layer: str, depends: frozenset[str]
) -> tuple[set[str], set[str]]:
    """Values that ``wanted`` are computed from inside the layer, and those among them where the layer begins."""
    inside: set[str] = set()
    sources: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in inside or name not in depends:
            continue
        inside.add(name)
        index = graph.producer.get(name)
        producer = None if index is None else graph.nodes[index]
        foreign = producer is None or layer_of(producer.origin)[0] != layer
        if producer is None or (layer and foreign) or OPS[producer.op].kind is Kind.STATE:
            sources.add(name)
        else:
            pending.extend(producer.inputs)
    return inside, sources


def _network(
    graph: Graph, wanted: tuple[str, ...], inside: set[str], sources: set[str], depends: frozenset[str]
) -> nx.DiGraph[object]:
    """A flow network with an edge (name, 0) -> (name, 1) for each value; what must not be cut has no capacity limit."""
    network: nx.DiGraph[object] = nx.DiGraph()
    projected: set[str] = set()
    for name in _in_order(graph, inside):
        producer = None if name in sources else graph.nodes[graph.producer[name]]
        if producer is not None:
            operands = [operand for operand in dict.fromkeys(producer.inputs) if operand in depends]
            if OPS[producer.op].kind is Kind.MATRIX or projected.intersection(operands):
                projected.add(name)
            network.add_edges_from(((operand, 1), (name, 0)) for operand in operands)
        else:
            network.add_edge(_SOURCE, (name, 0))
        if name in projected or name in wanted:
            network.add_edge((name, 0), (name, 1), capacity=_bytes(graph, name))
        else:
            network.add_edge((name, 0), (name, 1))
    network.add_edges_from(((name, 1), _SINK) for name in wanted)
    return network


def _in_order(graph: Graph, names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (graph.producer.get(name, -1), name))


def _bytes(graph: Graph, name: str) -> int:
    return for_one_token(graph.types[name].bytes)


def _between(
    graph: Graph, wanted: tuple[str, ...], values: tuple[str, ...], depends: frozenset[str]
) -> tuple[int, ...]:
    """Indices of the nodes that compute ``wanted`` from ``values``."""
    found: set[int] = set()
    pending = [name for name in wanted if name not in values]
    while pending:
        index = graph.producer[pending.pop()]
        if index not in found:
            found.add(index)
            pending += [name for name in graph.nodes[index].inputs if name in depends and name not in values]
    return tuple(sorted(found))
