"""What each attention node remembers: the smallest cut of the graph from which keys and values can be recomputed.

Keys and values are functions of one token each, so any set of values that all paths to them pass through can be cached
in their place. The cheapest set, in bytes per token, is a minimum vertex cut. It is sought inside the attention's own
block, where the weights lie that recompute, and behind the block's first products: what lies before them is the layer's
input, and caching that would mean to repeat the layer's projections for every remembered token. For grouped-query
attention the cut is K and V themselves, for multi-head latent attention (DeepSeek-V2, section 2.1) the latent and the
shared rotary key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from ir.graph import Graph, Node
from ir.liveness import token_dependent
from ir.model import Cache
from ir.ops import OPS, Kind
from ir.types import symbols_of

_SOURCE, _SINK = "source", "sink"
_KEY, _VALUE, _TOKEN_AXIS = 1, 2, 2


def find_caches(graph: Graph, block_of: Sequence[int]) -> dict[int, Cache]:
    """The cache of every attention node that has something to remember, by the node's index.

    Attention over all tokens at once (an encoder's), or over a fixed number of them, has nothing to remember from step
    to step. ``block_of`` gives the block of each node; a cache lies in the block of its attention.
    """
    depends = token_dependent(graph)
    cuts: dict[object, tuple[int, ...]] = {}
    return {
        index: _find_cache(_Slice(graph, index, block_of, depends), cuts)
        for index, node in enumerate(graph.nodes)
        if OPS[node.op].kind is Kind.STATE and node.attributes["causal"] and _takes_any_number(graph, node)
    }


def _takes_any_number(graph: Graph, node: Node) -> bool:
    return "tokens" in symbols_of(graph.types[node.inputs[_KEY]].shape[_TOKEN_AXIS])


@dataclass(frozen=True, slots=True)
class _Slice:
    """What the keys and values of the node ``attention`` are computed from, inside its block."""

    graph: Graph
    attention: int
    block_of: Sequence[int]
    depends: frozenset[str]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Keys and values."""
        inputs = self.graph.nodes[self.attention].inputs
        return tuple(dict.fromkeys((inputs[_KEY], inputs[_VALUE])))

    def operands(self, name: str) -> list[str] | None:
        """What ``name`` is computed from inside the block; ``None`` where the block begins."""
        index = self.graph.producer.get(name)
        if index is None or self.block_of[index] != self.block_of[self.attention]:
            return None
        node = self.graph.nodes[index]
        if OPS[node.op].kind is Kind.STATE:
            return None
        return [operand for operand in dict.fromkeys(node.inputs) if operand in self.depends]

    def values(self) -> list[str]:
        """Everything that the keys and values are computed from, themselves included, in order of definition."""
        found: set[str] = set()
        pending = [name for name in self.wanted if name in self.depends]
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += self.operands(name) or []
        return sorted(found, key=lambda name: (self.graph.producer.get(name, -1), name))

    def bytes(self, name: str) -> int:
        """Bytes of a value for one token."""
        return self.graph.token_bytes[name]

    def form(self, names: list[str]) -> object:
        """What decides on the cut, with ``names``, all values in order, by their place: equal for equal layers."""
        place = {name: index for index, name in enumerate(names)}
        operands = [self.operands(name) for name in names]
        return tuple(
            (
                self.bytes(name),
                name in self.wanted,
                self.kind(name) is Kind.MATRIX,
                None if read is None else tuple(place[operand] for operand in read),
            )
            for name, read in zip(names, operands, strict=True)
        )

    def kind(self, name: str) -> Kind | None:
        """How the operator that computes ``name`` treats data; ``None`` for an input."""
        index = self.graph.producer.get(name)
        return None if index is None else OPS[self.graph.nodes[index].op].kind


def _find_cache(slice_: _Slice, cuts: dict[object, tuple[int, ...]]) -> Cache:
    """The cache of one attention; ``cuts`` remembers what was found for slices of the same form, as places in them."""
    names = slice_.values()
    form = slice_.form(names)
    if form not in cuts:
        # Of equally small cuts networkx gives the one nearest to the sink, which leaves least to recompute.
        _, (source_side, _) = nx.minimum_cut(_network(slice_), _SOURCE, _SINK)
        cut = [(name, 0) in source_side and (name, 1) not in source_side for name in names]
        cuts[form] = tuple(place for place, is_cut in enumerate(cut) if is_cut)
    values = tuple(names[place] for place in cuts[form])
    bytes_per_token = sum(slice_.bytes(name) for name in values)
    attributes = slice_.graph.nodes[slice_.attention].attributes
    window, chunk = int(attributes["window"]), int(attributes.get("chunk", 0))
    return Cache(
        slice_.attention, values, _between(slice_, values), bytes_per_token, window or chunk, chunked=bool(chunk)
    )


def _network(slice_: _Slice) -> nx.DiGraph[object]:
    """A flow network with an edge (name, 0) -> (name, 1) for each value; what must not be cut has no capacity limit."""
    network: nx.DiGraph[object] = nx.DiGraph()
    projected: set[str] = set()
    for name in slice_.values():
        operands = slice_.operands(name)
        if operands is None:
            network.add_edge(_SOURCE, (name, 0))
        else:
            kind = slice_.kind(name)
            if kind is Kind.MATRIX or projected.intersection(operands):
                projected.add(name)
            network.add_edges_from(((operand, 1), (name, 0)) for operand in operands)
        if name in projected or name in slice_.wanted:
            network.add_edge((name, 0), (name, 1), capacity=slice_.bytes(name))
        else:
            network.add_edge((name, 0), (name, 1))
    network.add_edges_from(((name, 1), _SINK) for name in slice_.wanted)
    return network


def _between(slice_: _Slice, values: tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the nodes that compute keys and values from ``values``."""
    found: set[int] = set()
    pending = [name for name in slice_.wanted if name not in values]
    while pending:
        name = pending.pop()
        index = slice_.graph.producer[name]
        if index not in found:
            found.add(index)
            pending += [operand for operand in slice_.operands(name) or [] if operand not in values]
    return tuple(sorted(found))
