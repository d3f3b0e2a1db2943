"""Splitting a block into its operators: each product with its weight a piece, and attention with its cache one.

Pieces stand in an order in which values only flow forward. What has no matrix of its own (norms, residual sums,
rotations, activations) joins the piece where the fewest bytes go from the pieces before it to those behind. For each
place in the order that is a minimum cut of the block's graph. The cut at one place lies inside that at the next (Gallo,
Grigoriadis and Tarjan, "A fast parametric maximum flow algorithm", 1989), so the cuts together are a division of the
block, and for this order none sends less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from ir.graph import Graph, Node
from ir.liveness import token_dependent
from ir.model import Cache
from ir.ops import OPS, Kind

_BEFORE, _BEHIND = "before", "behind"
_CORE = "core"
"""Attention itself, without its projections: "core attention" in Megatron-LM."""
_PRODUCTS = frozenset({"linear", "matmul", "grouped_linear", "convolution"})


@dataclass(frozen=True, slots=True)
class _Form:
    """All that decides how a block is split, by places of its nodes and numbers of their values: equal for equal
    layers.

    Attributes:
        reads: for each node the values that it reads.
        makers: for each value the node that makes it; ``None`` for what comes from another block.
        sizes: bytes of each value for one token.
        leaving: values that other blocks read.
        fixed: for each node the piece that it is certain to stand in.
    """

    reads: tuple[tuple[int, ...], ...]
    makers: tuple[int | None, ...]
    sizes: tuple[int, ...]
    leaving: frozenset[int]
    fixed: tuple[int | None, ...]


class Splitter:
    """Splits blocks of one graph; blocks of the same form are worked out once."""

    def __init__(self, graph: Graph, caches: Mapping[int, Cache]) -> None:
        self._graph = graph
        self._caches = caches
        self._depends = token_dependent(graph)
        self._known: dict[_Form, tuple[int, ...]] = {}

    def split(self, nodes: Sequence[int]) -> list[str]:
        """For each of a block's ``nodes`` (indices, in order) the name of its piece; pieces have different names.

        A block of at most one product or attention is a piece by itself, whose name is empty.
        """
        cores = self._cores(nodes)
        if len(cores) < 2:
            return [""] * len(nodes)
        form = self._form(nodes, cores)
        if form not in self._known:
            self._known[form] = _cut(form, len(cores))
        names = _unique([self._name(core) for core in cores])
        return [names[piece] for piece in self._known[form]]

    def _name(self, core: Sequence[int]) -> str:
        """What a piece is called that holds the nodes ``core``: the module of its product."""
        members = [self._graph.nodes[index] for index in core]
        if any(OPS[node.op].kind is Kind.STATE for node in members):
            return _CORE
        return members[0].origin.strip("/").replace("/", ".").rpartition(".")[2] or members[0].op

    # --- what stays whole -------------------------------------------------------------------------------------------

    def _cores(self, nodes: Sequence[int]) -> list[list[int]]:
        """What each piece is built around, in an order in which values flow forward: products by a stored matrix,
        which products of the same matrix share, look-ups, and attention with what recomputes keys and values.
        """
        inside = set(nodes)
        leader: dict[int, int] = {}
        first: dict[str, int] = {}
        for index in nodes:
            cache = self._caches.get(index)
            if OPS[self._graph.nodes[index].op].kind is Kind.STATE:
                # What is remembered is turned into keys and values where attention reads them.
                leader |= dict.fromkeys((index, *(cache.recompute if cache else ())), index)
        for index in nodes:
            for name in self._matrices(self._graph.nodes[index]):
                leader[index] = leader.get(first.setdefault(name, index), leader.get(index, index))
        quotient: nx.DiGraph[int] = nx.DiGraph()
        quotient.add_nodes_from(leader.get(index, index) for index in nodes)
        for index in nodes:
            makers = {self._graph.producer.get(name, -1) for name in self._graph.nodes[index].inputs} & inside
            quotient.add_edges_from((leader.get(maker, maker), leader.get(index, index)) for maker in makers)
        condensed = nx.condensation(quotient)
        where = condensed.graph["mapping"]
        members: dict[int, list[int]] = {}
        for index in nodes:
            members.setdefault(where[leader.get(index, index)], []).append(index)
        order = nx.lexicographical_topological_sort(condensed, key=lambda component: members[component][0])
        return [members[component] for component in order if not leader.keys().isdisjoint(members[component])]

    def _matrices(self, node: Node) -> list[str]:
        """The parameters of at least two axes behind what ``node`` multiplies by or looks up."""
        if node.op == "embedding":
            return [name for name in node.inputs[:1] if name in self._graph.parameter]
        if node.op not in _PRODUCTS:
            return []
        pending = [name for name in node.inputs if name not in self._depends]
        found: dict[str, None] = {}
        while pending:
            name = pending.pop()
            if name in self._graph.producer:
                pending += self._graph.nodes[self._graph.producer[name]].inputs
            elif len(self._graph.types[name].shape) > 1:
                found[name] = None
        return list(found)

    # --- where the rest goes ----------------------------------------------------------------------------------------

    def _form(self, nodes: Sequence[int], cores: Sequence[Sequence[int]]) -> _Form:
        graph, place = self._graph, {index: number for number, index in enumerate(nodes)}
        piece = {index: number for number, core in enumerate(cores) for index in core}
        members = [graph.nodes[index] for index in nodes]
        # The model's inputs are on every wafer.
        names = (name for node in members for name in (*node.inputs, *(value.name for value in node.results)))
        values = {name: number for number, name in enumerate(dict.fromkeys(n for n in names if n in graph.producer))}
        return _Form(
            reads=tuple(tuple(values[name] for name in node.inputs if name in values) for node in members),
            makers=tuple(place.get(graph.producer[name]) for name in values),
            sizes=tuple(graph.token_bytes[name] for name in values),
            leaving=frozenset(
                number
                for name, number in values.items()
                if graph.producer[name] in place and not place.keys() >= {*graph.consumers.get(name, ())}
            ),
            fixed=tuple(piece.get(index) for index in nodes),
        )


def _unique(names: Iterable[str]) -> list[str]:
    """The names, with a number behind those that others have too."""
    taken: Counter[str] = Counter()
    found: list[str] = []
    for name in names:
        found.append(f"{name}.{taken[name]}" if taken[name] else name)
        taken[name] += 1
    return found


def _cut(form: _Form, pieces: int) -> tuple[int, ...]:
    """The piece of each node: the number of places in the order of pieces that it stands behind."""
    behind = [0] * len(form.reads)
    for place in range(pieces - 1):
        # Of equally small cuts networkx gives the one nearest to where values go. Here they go to the first pieces, as
        # the network is turned around: what may stand in several pieces stands with what reads it.
        _, (_, before) = nx.minimum_cut(_network(form, place), _BEHIND, _BEFORE)
        for node in range(len(behind)):
            behind[node] += ("node", node) not in before
    return tuple(behind)


def _network(form: _Form, place: int) -> nx.DiGraph[object]:
    """A flow network, against the order of values, whose cuts divide the nodes behind piece number ``place``.

    A value is sent once, however many nodes behind the place read it; edges without capacity must not be cut.
    """
    network: nx.DiGraph[object] = nx.DiGraph()
    network.add_nodes_from((_BEFORE, _BEHIND, *(("node", node) for node in range(len(form.fixed)))))
    for node, piece in enumerate(form.fixed):
        if piece is not None:
            network.add_edge(*((("node", node), _BEFORE) if piece <= place else (_BEHIND, ("node", node))))
    for value, maker in enumerate(form.makers):
        network.add_edge(("value", value), _BEFORE if maker is None else ("node", maker), capacity=form.sizes[value])
    for node, values in enumerate(form.reads):
        for value in values:
            network.add_edge(("node", node), ("value", value))
            if form.makers[value] is not None:
                network.add_edge(("node", form.makers[value]), ("node", node))
    network.add_edges_from((_BEHIND, ("value", value)) for value in form.leaving)
    return network
