"""What each block has to run: its share of the graph, resolved once before the first step.

Two things are settled here. Which weights an operator reads where they lie: a product may read its weight through
casts and a transposition, which tiles apply to their own share. And which nodes run in the ordinary sweep over the
new tokens: those whose results somebody reads; keys and values that come from a cache are computed again from what is
remembered, so their nodes run only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ir.diagnostics import CheckError, Diagnostic
from ir.graph import Graph, Node
from ir.model import Block, BlockKind, Cache, Model
from ir.ops import OPS, Kind
from ir.plan import PlacedBlock, Plan, Rectangle, Transfer
from ir.types import DType, Size, symbols_of
from targets.program.kinds import KernelKind, is_apart, kind_of
from targets.program.remembered import Look, look_at_cache

WEIGHT_OPERANDS = {"linear": (1,), "grouped_linear": (1, 3), "embedding": (0,)}
"""Which operands of an operator are weights that it can read on their tiles."""


@dataclass(frozen=True, slots=True)
class TileWeight:
    """A weight read on its tiles, cast there to ``casts`` one after the other; ``flipped``: its last axes swapped."""

    parameter: str
    casts: tuple[DType, ...] = ()
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """One node and how it runs; ``weights`` are its operands that stay on their tiles, ``work`` its multiply-adds."""

    node: Node
    kind: KernelKind
    weights: Mapping[int, TileWeight] = field(default_factory=dict)
    work: Size = 0
    cache: CachedAttention | None = None


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """An attention node's cache, and how keys and values come from it.

    Attributes:
        look: what attention looks at, where it can look at what is cached; the ``products`` in its pieces, by node, are
            then applied to queries and results.
        recompute: else how keys and values are computed again for each remembered token.
        constants: the values that ``recompute`` reads of the step itself; they do not depend on its tokens.
    """

    cache: Cache
    look: Look | None
    products: Mapping[int, Instruction]
    recompute: tuple[Instruction, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """What one block runs, and where.

    ``stacked`` are the weights that lie slice by slice on the regions of the routed experts; ``relays`` the values
    that it reads of other blocks of its wafer, with the regions where they lie; ``arrivals`` those that it reads of
    blocks of other wafers; ``sends`` the transfers of what this block computes; ``apart`` the values, of all in the
    graph, that lie apart and not on every tile; ``outputs`` those of the graph that this block computes.
    """

    block: Block
    placed: PlacedBlock
    stacked: frozenset[str]
    instructions: tuple[Instruction, ...]
    relays: tuple[tuple[str, Rectangle], ...]
    arrivals: tuple[str, ...]
    sends: tuple[Transfer, ...]
    apart: frozenset[str]
    outputs: tuple[str, ...]

    @property
    def where(self) -> str:
        """The block and its wafer, for diagnostics."""
        return f"{self.placed.title} on wafer {self.placed.wafer}"


@dataclass(frozen=True, slots=True)
class _Site:
    """A block of the graph on its wafer; ``stacked`` and ``apart`` as in :class:`Program`."""

    graph: Graph
    block: Block
    placed: PlacedBlock
    stacked: frozenset[str]
    apart: frozenset[str]


def _site(graph: Graph, block: Block, placed: PlacedBlock, apart: frozenset[str]) -> _Site:
    traced = (
        _trace(graph, graph.nodes[index].inputs[position])
        for index in block.nodes
        if placed.experts and graph.nodes[index].op == "grouped_linear"
        for position in WEIGHT_OPERANDS["grouped_linear"]
        if position < len(graph.nodes[index].inputs)
    )
    stacked = frozenset(weight.parameter for weight in traced if weight)
    return _Site(graph, block, placed, stacked.intersection(block.parameters), apart)


def _values_apart(graph: Graph) -> frozenset[str]:
    """Values that lie apart: weights, numbers that the step brings, and what is computed of such (see ``kinds``)."""
    apart = set(graph.parameter) | {value.name for value in graph.inputs if value.type.dtype.is_float}
    for node in graph.nodes:
        kind = kind_of(graph, node, on_tiles=False, apart=apart)
        if is_apart(node, kind):
            apart.update(value.name for value in node.results)
    return frozenset(apart)


def write_programs(model: Model, plan: Plan) -> tuple[Program, ...]:
    """The blocks' programs, in the order in which they run.

    Raises:
        CheckError: W0607, the plan lacks a block or an expert of the model; W0608, a cache does not suffice to
            compute keys and values again.
    """
    placed = {block.name: block for block in plan.blocks}
    if faults := [fault for block in model.blocks for fault in _misplaced(block, placed.get(block.name))]:
        raise CheckError(*faults)
    apart = _values_apart(model.graph)
    sites = [_site(model.graph, block, placed[block.name], apart) for block in model.blocks]
    live = _live_nodes(model.graph, sites, {transfer.value for transfer in plan.transfers})
    home = {
        value.name: block
        for block in model.blocks
        for index in block.nodes
        for value in model.graph.nodes[index].results
    }
    programs = []
    for site in sites:
        block, here = site.block, site.placed
        instructions = tuple(_instruction(site, index) for index in block.nodes if index in live)
        others = {
            name: placed[home[name].name]
            for name in _read_from_others(instructions)
            if name in home and home[name] is not block
        }
        relays = tuple((name, other.region) for name, other in others.items() if other.wafer == here.wafer)
        arrivals = tuple(name for name, other in others.items() if other.wafer != here.wafer)
        sends = tuple(t for t in plan.transfers if (t.source, t.source_wafer) == (block.name, here.wafer))
        computed = {value.name for instruction in instructions for value in instruction.node.results}
        outputs = tuple(name for name in model.graph.outputs if name in computed)
        programs.append(Program(block, here, site.stacked, instructions, relays, arrivals, sends, apart, outputs))
    return tuple(programs)


def _misplaced(block: Block, placed: PlacedBlock | None) -> list[Diagnostic]:
    if placed is None:
        return [Diagnostic("W0607", "the plan places no such block", block.name)]
    here = sorted(expert.index for expert in placed.experts if expert.wafer == placed.wafer)
    wanted = block.experts if block.kind is BlockKind.EXPERTS or placed.experts else 0
    if here == list(range(wanted)) and len(placed.experts) == wanted:
        return []
    message = f"the plan must place each of {block.experts} experts once, on wafer {placed.wafer}"
    return [Diagnostic("W0607", message, block.name, {"placed_there": len(here)})]


def is_transposed(instruction: Instruction) -> bool:
    """Whether a product's weight lies on its tiles as [in, out]."""
    return bool(instruction.node.attributes["transposed"]) != instruction.weights[1].flipped


def _instruction(site: _Site, index: int) -> Instruction:
    node = site.graph.nodes[index]
    weights = _tile_weights(site, node)
    operands = [site.graph.types[name] for name in node.inputs]
    work = OPS[node.op].work(operands, [value.type for value in node.results], node.attributes)
    kind = kind_of(site.graph, node, bool(weights), site.apart)
    cache = next((cache for cache in site.block.caches if cache.node == index), None)
    if cache is None:
        return Instruction(node, kind, weights, work)
    indices, constants = _past(site, cache)
    look = look_at_cache(site.graph, node, cache)
    products = {i: _instruction(site, i) for i in sorted(look.products)} if look else {}
    if look and all(_is_plain_product(product) for product in products.values()):
        return Instruction(node, kind, weights, work, CachedAttention(cache, look, products, (), ()))
    recompute = tuple(_instruction(site, i) for i in indices)
    return Instruction(node, kind, weights, work, CachedAttention(cache, None, {}, recompute, constants))


def _is_plain_product(instruction: Instruction) -> bool:
    """Whether it is a product with a matrix on the block's tiles and no bias."""
    return instruction.kind is KernelKind.PRODUCT and len(instruction.node.inputs) == 2


def _past(site: _Site, cache: Cache) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The nodes that yield keys and values from what is cached, and the step's values that they read.

    Constants as long as the tokens are made again at the history's length, so the nodes that make them join.

    Raises:
        CheckError: W0608, they read a value of the new tokens that is not cached.
    """
    graph = site.graph
    nodes, constants = set(cache.recompute), dict[str, None]()
    known = {value.name for index in nodes for value in graph.nodes[index].results} | set(cache.values)
    pending = list(graph.nodes[cache.node].inputs[1:3])
    for index in cache.recompute:
        pending += _unheld(graph.nodes[index].inputs, _tile_weights(site, graph.nodes[index]))
    while pending:
        name = pending.pop()
        if name in known or name in graph.parameter:
            continue
        known.add(name)
        maker = graph.producer.get(name)
        if not any("tokens" in symbols_of(size) for size in graph.types[name].shape):
            constants[name] = None
        elif maker is None or graph.nodes[maker].op in WEIGHT_OPERANDS or OPS[graph.nodes[maker].op].kind is Kind.STATE:
            message = f"keys and values are computed from {name}, which the cache does not hold"
            raise CheckError(Diagnostic("W0608", message, site.block.name))
        else:
            nodes.add(maker)
            pending += graph.nodes[maker].inputs
    return tuple(sorted(nodes)), tuple(constants)


def _unheld(names: Sequence[str], on_tiles: Mapping[int, TileWeight]) -> list[str]:
    """The operands that are not read on tiles."""
    return [name for position, name in enumerate(names) if position not in on_tiles]


def _tile_weights(site: _Site, node: Node) -> dict[int, TileWeight]:
    """The operands of ``node`` that it can read on the block's tiles: all of its weights, or none."""
    traced: dict[int, TileWeight] = {}
    for position in WEIGHT_OPERANDS.get(node.op, ()):
        if position >= len(node.inputs):
            continue
        weight = _trace(site.graph, node.inputs[position])
        if weight is None or weight.parameter not in site.block.parameters:
            return {}
        stacked = weight.parameter in site.stacked
        axes = len(site.graph.parameter[weight.parameter].shape) - stacked
        fits = stacked == (node.op == "grouped_linear") and axes == 2 - (position == 3)
        if not fits or (weight.flipped and node.op == "embedding"):
            return {}
        traced[position] = weight
    return traced


def _trace(graph: Graph, name: str) -> TileWeight | None:
    """The parameter behind ``name`` if only casts and a swap of its last two axes lie between."""
    casts: list[DType] = []
    flipped = False
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if node.op == "cast":
            casts.insert(0, DType(node.attributes["dtype"]))
        elif node.op == "transpose" and _swaps_last_axes(node.attributes["permutation"]):
            flipped = not flipped
        else:
            return None
        (name,) = node.inputs
    return TileWeight(name, tuple(casts), flipped) if name in graph.parameter else None


def _swaps_last_axes(permutation: Sequence[int]) -> bool:
    rank = len(permutation)
    return tuple(permutation) == (*range(rank - 2), rank - 1, rank - 2)


def _live_nodes(graph: Graph, sites: Sequence[_Site], sent: set[str]) -> set[int]:
    """Nodes that run in the ordinary sweep: their results are read there, sent to a wafer, or outputs."""
    by_node: dict[int, list[_Site]] = {}
    for site in sites:
        for index in site.block.nodes:
            by_node.setdefault(index, []).append(site)
    wanted = set(graph.outputs) | sent
    live: set[int] = set()
    for index in reversed(range(len(graph.nodes))):
        if wanted.isdisjoint(value.name for value in graph.nodes[index].results):
            continue
        live.add(index)
        for site in by_node.get(index, ()):
            wanted.update(_reads(_instruction(site, index)))
    return live


def _reads(instruction: Instruction) -> list[str]:
    """What a node reads of the step: not the weights that stay on tiles, nor what comes from a cache."""
    inputs, cached = instruction.node.inputs, instruction.cache
    if cached:
        return [inputs[0], *inputs[3:], *cached.cache.values, *cached.constants]
    return _unheld(inputs, instruction.weights)


def _read_from_others(instructions: Sequence[Instruction]) -> list[str]:
    """Names that ``instructions`` read and do not compute, each once."""
    own = {value.name for instruction in instructions for value in instruction.node.results}
    reads: dict[str, None] = {}
    for instruction in instructions:
        reads |= dict.fromkeys(name for name in _reads(instruction) if name not in own)
    return list(reads)
