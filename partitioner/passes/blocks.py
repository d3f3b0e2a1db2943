"""Cutting a graph into blocks: where they begin is read off the operators, how far they reach off the module paths.

Attention, routed experts, embeddings and matrix products seed blocks. Nodes without a product of their own (norms,
residual sums, activations) join a seeded block: inside a module of their own the one that reads them, else the one
that they read. Coarser and finer granularities follow from these blocks: those of a layer keep together, or each is
split into its operators (:mod:`partitioner.passes.split`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import networkx as nx

from ir.graph import Graph, Node
from ir.liveness import live_bytes, token_dependent
from ir.model import Block, BlockKind, Cache, Edge, Granularity, Model
from ir.ops import OPS, Kind
from ir.types import for_one_token, symbols_of
from partitioner.passes.cache import find_caches
from partitioner.passes.origins import layer_of
from partitioner.passes.split import Splitter


@dataclass(frozen=True, slots=True)
class _Key:
    """Nodes with the same key make one block."""

    layer: str
    part: str
    kind: BlockKind
    piece: str = ""


_MIXTURE = (BlockKind.ROUTER, BlockKind.SHARED_EXPERT, BlockKind.EXPERTS)


def find_blocks(graph: Graph, granularity: Granularity = Granularity.HALVES) -> Model:
    """The model that ``graph`` makes: blocks in topological order, edges, caches, and what must stay together.

    ``granularity`` says what the blocks are and which of them share a wafer; ``auto`` is the halves.
    """
    keys = _merge_cycles(graph, _join_rest(graph, _seeds(graph)))
    members = _members(keys)
    number = {key: place for place, key in enumerate(members)}
    caches = find_caches(graph, [number[key] for key in keys])
    if granularity is Granularity.OPS:
        keys = _split(graph, keys, caches)
        members = _members(keys)
    order = _topological(graph, keys, members)
    names = _names(order)
    layers = {path: number for number, path in enumerate(dict.fromkeys(key.layer for key in order if key.layer))}
    position = {key: number for number, key in enumerate(order)}
    block_of = [position[key] for key in keys]
    depends = token_dependent(graph)
    blocks = tuple(
        _block(graph, names[key], key, layers.get(key.layer), members[key], caches, depends) for key in order
    )
    together = _together(order, by_layer=granularity is Granularity.LAYERS)
    cut_as = Granularity.HALVES if granularity is Granularity.AUTO else granularity
    return Model(graph, blocks, _edges(graph, block_of), together, cut_as)


def _members(keys: list[_Key]) -> dict[_Key, list[int]]:
    """The nodes of each key, in order."""
    members: defaultdict[_Key, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return members


def _split(graph: Graph, keys: list[_Key], caches: dict[int, Cache]) -> list[_Key]:
    """Finer keys: blocks that may be on several wafers, into their operators. A cache was sought in the whole block
    and stays what it was.
    """
    splitter = Splitter(graph, caches)
    finer = list(keys)
    for key, nodes in _members(keys).items():
        if key.kind not in _MIXTURE:
            for index, piece in zip(nodes, splitter.split(nodes), strict=True):
                finer[index] = replace(key, piece=piece)
    return finer


# --- which node belongs where ---------------------------------------------------------------------------------------


def _seeds(graph: Graph) -> dict[int, _Key]:
    """Nodes whose block is certain: those in modules that hold a product, attention or an embedding."""
    parts: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    seeds: dict[int, _Key] = {}
    for index, node in enumerate(graph.nodes):
        layer, rest = layer_of(node.origin)
        if layer:
            parts[layer, rest.split(".")[0]].append(index)
        elif node.op == "embedding" and node.inputs[0] in graph.parameter:
            seeds[index] = _Key("", node.origin, BlockKind.EMBEDDING)
        elif OPS[node.op].kind in (Kind.MATRIX, Kind.STATE):
            kind = BlockKind.HEAD if _reaches_output_alone(graph, index) else BlockKind.OTHER
            seeds[index] = _Key("", node.origin, kind)
    for (layer, part), nodes in parts.items():
        seeds |= _seed_part(graph, layer, part, nodes)
    outside = [index for index, node in enumerate(graph.nodes) if not layer_of(node.origin)[0]]
    return seeds | _seed_mixtures(graph, outside)


def _seed_mixtures(graph: Graph, outside: list[int]) -> dict[int, _Key]:
    """Mixtures of experts outside of numbered layers: each is a layer of its own, named after its module. Of one that
    is the whole model, or stands beside all else, the router is told by data flow.
    """
    seeds: dict[int, _Key] = {}
    products = [index for index in outside if graph.nodes[index].op == "grouped_linear"]
    for container in dict.fromkeys(graph.nodes[index].origin for index in products):
        module = container.rpartition(".")[0]
        within = f"{module or container}."
        nodes = {index for index in outside if f"{graph.nodes[index].origin}.".startswith(within)}
        if not module:
            own = [index for index in products if graph.nodes[index].origin == container]
            nodes |= _routing(graph, own, {*outside})
        seeds |= _seed_moe(graph, module or container or graph.name, sorted(nodes))
    return seeds


def _routing(graph: Graph, products: list[int], inside: set[int]) -> set[int]:
    """What the experts' indices are computed by, back to the nearest product."""
    found: set[int] = set()
    pending = [graph.producer[name] for i in products for name in graph.nodes[i].inputs[2:3] if name in graph.producer]
    while pending:
        index = pending.pop()
        if index in inside and index not in found:
            found.add(index)
            if OPS[graph.nodes[index].op].kind is not Kind.MATRIX:
                pending += [graph.producer[name] for name in graph.nodes[index].inputs if name in graph.producer]
    return found


def _seed_part(graph: Graph, layer: str, part: str, nodes: list[int]) -> dict[int, _Key]:
    """The blocks of one direct child of a layer."""
    ops = {graph.nodes[index].op for index in nodes}
    if "grouped_linear" in ops:
        return _seed_moe(graph, layer, nodes)
    if any(OPS[op].kind is Kind.STATE for op in ops):
        return dict.fromkeys(nodes, _Key(layer, part, BlockKind.ATTENTION))
    if any(OPS[op].kind is Kind.MATRIX for op in ops):
        return dict.fromkeys(nodes, _Key(layer, part, BlockKind.DENSE_MLP))
    if any(_looks_up(graph, index) for index in nodes):
        return dict.fromkeys(nodes, _Key(layer, part, BlockKind.EMBEDDING))
    return {}


def _looks_up(graph: Graph, index: int) -> bool:
    """Whether a node reads rows of a stored table."""
    node = graph.nodes[index]
    return node.op == "embedding" and node.inputs[0] in graph.parameter


def _seed_moe(graph: Graph, layer: str, nodes: list[int]) -> dict[int, _Key]:
    """Router, routed experts and shared expert of one mixture of experts, told apart by how data flows."""
    inside = set(nodes)
    products = [index for index in nodes if graph.nodes[index].op == "grouped_linear"]
    module = graph.nodes[products[0]].origin
    routed = {index for index in nodes if f"{graph.nodes[index].origin}.".startswith(f"{module}.")}
    # What lies between two of the experts' products is theirs, wherever it is written.
    routed |= {
        index for index in _ancestors(graph, products, inside) if _ancestors(graph, [index], inside) & {*products}
    }
    router = _ancestors(graph, routed, inside) - routed
    keys = {index: _Key(layer, "router", BlockKind.ROUTER) for index in router}
    rest = [index for index in nodes if index not in router | routed]
    for index in rest:
        path = layer_of(graph.nodes[index].origin)[1]
        has_product = any(
            OPS[graph.nodes[other].op].kind is Kind.MATRIX for other in rest if _same_child(graph, index, other)
        )
        if has_product and "." in path:
            keys[index] = _Key(layer, "shared_expert", BlockKind.SHARED_EXPERT)
    return {index: keys.get(index, _Key(layer, "experts", BlockKind.EXPERTS)) for index in nodes}


def _same_child(graph: Graph, a: int, b: int) -> bool:
    """Whether two nodes stand in the same child of the mixture's module."""
    paths = [layer_of(graph.nodes[index].origin)[1].split(".")[:2] for index in (a, b)]
    return paths[0] == paths[1]


def _ancestors(graph: Graph, start: Iterable[int], inside: set[int]) -> set[int]:
    found: set[int] = set()
    pending = list(start)
    while pending:
        operands = {graph.producer[name] for name in graph.nodes[pending.pop()].inputs if name in graph.producer}
        fresh = (operands & inside) - found
        found |= fresh
        pending.extend(fresh)
    return found


def _reaches_output_alone(graph: Graph, index: int) -> bool:
    """Whether nothing but cheap operations lies between a node and the graph's outputs."""
    pending, seen = [index], {index}
    while pending:
        for value in graph.nodes[pending.pop()].results:
            for reader in graph.consumers.get(value.name, ()):
                if OPS[graph.nodes[reader].op].kind in (Kind.MATRIX, Kind.STATE):
                    return False
                if reader not in seen:
                    seen.add(reader)
                    pending.append(reader)
    return True


def _join_rest(graph: Graph, seeds: dict[int, _Key]) -> list[_Key]:
    """A key for every node: the others go with those that read them, or with those that they read."""
    keys = dict(seeds)
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        layer, part = layer_of(node.origin)
        if index not in keys and (part or not layer):
            readers = [r for value in node.results for r in graph.consumers.get(value.name, ())]
            beside = [r for r in readers if r in keys and layer_of(graph.nodes[r].origin)[0] == layer]
            # Between layers, what a layer reads (a residual sum) belongs to the one before it.
            if beside and (layer or len(beside) == len(readers)):
                keys[index] = keys[min(beside)]
    outside = (key for _, key in sorted(seeds.items()) if not key.layer)
    fallback = next(outside, _Key("", graph.name, BlockKind.OTHER))
    last_seed = {key: index for index, key in sorted(seeds.items())}
    for index, node in enumerate(graph.nodes):
        made = [graph.producer[name] for name in node.inputs if name in graph.producer]
        read = [keys[other] for other in made if other in keys]
        if index not in keys and read:
            keys[index] = max(read, key=lambda key: last_seed.get(key, -1))
    # What is computed from weights alone stands with its first reader.
    for index in reversed(range(len(graph.nodes))):
        if index not in keys:
            readers = [r for value in graph.nodes[index].results for r in graph.consumers.get(value.name, ())]
            keys[index] = keys[min(readers)] if readers else fallback
    return [keys[index] for index in range(len(graph.nodes))]


# --- order ----------------------------------------------------------------------------------------------------------


def _quotient(graph: Graph, keys: list[_Key]) -> nx.DiGraph[_Key]:
    quotient: nx.DiGraph[_Key] = nx.DiGraph()
    quotient.add_nodes_from(keys)
    for index, node in enumerate(graph.nodes):
        sources = {keys[graph.producer[name]] for name in node.inputs if name in graph.producer}
        quotient.add_edges_from((source, keys[index]) for source in sources if source != keys[index])
    return quotient


def _merge_cycles(graph: Graph, keys: list[_Key]) -> list[_Key]:
    """Blocks that need each other's values become one, named after its first."""
    merged: dict[_Key, _Key] = {}
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    for component in nx.strongly_connected_components(_quotient(graph, keys)):
        leader = min(component, key=first.__getitem__)
        merged |= dict.fromkeys(component, leader)
    return [merged[key] for key in keys]


def _topological(graph: Graph, keys: list[_Key], members: dict[_Key, list[int]]) -> list[_Key]:
    order = nx.lexicographical_topological_sort(_quotient(graph, keys), key=lambda key: members[key][0])
    return list(order)


def _names(order: list[_Key]) -> dict[_Key, str]:
    """Short names that stay unique: the path of the layer without what all layers share."""
    lists = {key.layer.rpartition(".")[0] for key in order if key.layer}
    drop = len(lists.pop().rpartition(".")[0]) if len(lists) == 1 else 0
    names: dict[_Key, str] = {}
    for key in order:
        part = key.part if key.kind is BlockKind.OTHER else key.kind.value
        stem = f"{key.layer[drop:].lstrip('.')}.{part}" if key.layer else part or key.kind.value
        stem = f"{stem}.{key.piece}" if key.piece else stem
        taken = set(names.values())
        number = next(n for n in range(len(order) + 1) if (f"{stem}.{n}" if n else stem) not in taken)
        names[key] = f"{stem}.{number}" if number else stem
    return names


def _together(order: list[_Key], *, by_layer: bool) -> tuple[tuple[int, ...], ...]:
    """Blocks that share a wafer: those of a mixture of experts, or all of a layer."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for number, key in enumerate(order):
        if key.kind in _MIXTURE or (by_layer and key.layer):
            groups[key.layer].append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


# --- what a block takes ---------------------------------------------------------------------------------------------


def _block(
    graph: Graph,
    name: str,
    key: _Key,
    layer: int | None,
    nodes: list[int],
    caches: dict[int, Cache],
    depends: frozenset[str],
) -> Block:
    members = [graph.nodes[index] for index in nodes]
    read = dict.fromkeys(n for node in members for n in node.inputs if n in graph.parameter)
    parameters = [graph.parameter[n] for n in read]
    products = [node for node in members if node.op == "grouped_linear"]
    stacked = {name for node in products for name in (node.inputs[1], *node.inputs[3:])}
    # Experts have tiles of their own only where nothing but experts' weights lies in the block.
    group = products[0] if products and stacked >= read.keys() else None
    work = [_work(graph, node) for node in members]
    return Block(
        name=name,
        kind=key.kind,
        layer=layer,
        nodes=tuple(nodes),
        parameters=tuple(read),
        weight_bytes=sum(parameter.stored_bytes for parameter in parameters),
        experts=graph.parameter[group.inputs[1]].shape[0] if group else 0,
        active_experts=int(graph.types[group.inputs[2]].shape[1]) if group else 0,  # type: ignore[arg-type]
        caches=tuple(caches[index] for index in nodes if index in caches),
        macs_per_token=sum(fixed for fixed, _ in work),
        macs_per_cached_token=sum(seen for _, seen in work),
        live_bytes_per_token=max(live_bytes(graph, nodes, depends)),
        takes_tokens=any(
            symbols_of(size) for node in members for name in _named(node) for size in graph.types[name].shape
        ),
    )


def _named(node: Node) -> tuple[str, ...]:
    """All names that a node reads or yields."""
    return (*node.inputs, *(value.name for value in node.results))


def _work(graph: Graph, node: Node) -> tuple[int, int]:
    """Multiply-adds for one token, and more for each token that attention sees."""
    operands = [graph.types[name] for name in node.inputs]
    work = OPS[node.op].work(operands, [value.type for value in node.results], node.attributes)
    fixed = for_one_token(work, context=0)
    return fixed, for_one_token(work, context=1) - fixed


def _edges(graph: Graph, block_of: list[int]) -> tuple[Edge, ...]:
    found: dict[tuple[int, int, str], int] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            source = block_of[graph.producer[name]] if name in graph.producer else block_of[index]
            if source != block_of[index]:
                found[source, block_of[index], name] = graph.token_bytes[name]
    return tuple(Edge(source, target, value, size) for (source, target, value), size in sorted(found.items()))
