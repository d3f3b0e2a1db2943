"""From a model to its profile: each block as kernels in the order of their dependence, and what flows between blocks.

The depth of a kernel is the number of kernels on the longest path to it inside its block. Of the same depth, products
that read the same vector are one kernel, and so are all reductions, whose values travel together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ir.graph import Graph, Node
from ir.model import Block, Cache, Model
from ir.ops import OPS, Kind
from ir.profile import Attention, BlockProfile, CacheProfile, FlowProfile, Kernel, Product, Profile, Reduction
from partitioner.passes.absorb import Look, look_at
from partitioner.passes.kernels import PRODUCTS, REDUCTIONS, SPREADING, product_of, reduction_of, single_results
from partitioner.passes.positions import NAME as POSITIONS
from partitioner.problem import shared_groups


def profile_of(model: Model, max_context: int | None) -> Profile:
    """The profile of ``model``, whose longest context is ``max_context`` tokens (``None``: it does not say)."""
    computed = _from_tokens(model.graph)
    flows: defaultdict[tuple[int, int], int] = defaultdict(int)
    for edge in model.edges:
        flows[edge.source, edge.target] += edge.bytes_per_token
    return Profile(
        name=model.graph.name,
        max_context=max_context,
        parameters=model.parameters,
        blocks=tuple(_block(model.graph, block, computed) for block in model.blocks),
        flows=tuple(FlowProfile(source, target, size) for (source, target), size in sorted(flows.items())),
        items=tuple(shared_groups(model)),
    )


def _block(graph: Graph, block: Block, computed: frozenset[str]) -> BlockProfile:
    walk = _Walk(graph, computed)
    caches = {cache.node: cache for cache in block.caches}
    looks = {
        index: look_at(graph, graph.nodes[index], caches.get(index), computed)
        for index in block.nodes
        if OPS[graph.nodes[index].op].kind is Kind.STATE
    }
    absorbed = frozenset[int]().union(*(look.absorbed for look in looks.values()))
    for index in _needed(graph, block, computed):
        if index in looks:
            walk.attend(graph.nodes[index], looks[index], caches.get(index))
        elif index not in absorbed:
            walk.visit(graph.nodes[index])
    return BlockProfile(
        name=block.name,
        kind=block.kind,
        layer=block.layer,
        weight_bytes=block.weight_bytes,
        experts=block.experts,
        active_experts=block.active_experts,
        caches=tuple(CacheProfile(cache.bytes_per_token, cache.window) for cache in block.caches),
        live_bytes_per_token=block.live_bytes_per_token,
        takes_tokens=block.takes_tokens,
        kernels=_in_order(walk.found),
        elementwise=walk.elementwise,
    )


# --- what is computed for a token -----------------------------------------------------------------------------------


def _from_tokens(graph: Graph) -> frozenset[str]:
    """Values that depend on what a token is: on numbers given for it, or on its id by way of a weight. What depends on
    its position alone, or compares ids, is small and can be made ahead.
    """
    found = {value.name for value in graph.inputs if value.type.dtype.is_float}
    ids = {value.name for value in graph.inputs} - found - {POSITIONS}
    weights = set(graph.parameter)
    for node in graph.nodes:
        names = [value.name for value in node.results]
        if found.intersection(node.inputs) or (ids.intersection(node.inputs) and weights.intersection(node.inputs)):
            found.update(names[:1] if _has_no_choice(graph, node) else names)
        elif ids.intersection(node.inputs):
            ids.update(names)
        elif weights.intersection(node.inputs):
            weights.update(names)
    return frozenset(found)


def _has_no_choice(graph: Graph, node: Node) -> bool:
    """Whether a node chooses one of one, as routers do whose experts are one group: the index is 0 for any token."""
    return node.op == "topk" and graph.types[node.inputs[0]].shape[node.attributes["dim"]] == 1


def _needed(graph: Graph, block: Block, computed: frozenset[str]) -> list[int]:
    """The nodes that compute for tokens what the block's results depend on, in order."""
    inside, wanted = set(block.nodes), set(graph.outputs)
    kept: list[int] = []
    for index in reversed(block.nodes):
        node = graph.nodes[index]
        names = {value.name for value in node.results} & computed
        read = any(reader not in inside for name in names for reader in graph.consumers.get(name, ()))
        if read or names & wanted:
            wanted.update(node.inputs)
            kept.append(index)
    return kept[::-1]


# --- kernels and their order ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """A kernel, its depth, and the values that it reads (views of the same have the same name)."""

    depth: int
    reads: tuple[str, ...]
    kernel: Kernel


@dataclass(slots=True)
class _Walk:
    """One pass over a block's nodes.

    Attributes:
        depth: of each value: kernels on the longest path to it inside the block.
        everywhere: values that every tile of the region has, as a reduction hands its results to all: what is computed
            from these alone, such as the sum of the chosen experts' scores, needs no exchange again.
        base: what each view is a view of.
        elementwise: results of operators on single elements.
    """

    graph: Graph
    computed: frozenset[str]
    depth: dict[str, int] = field(default_factory=dict)
    everywhere: set[str] = field(default_factory=set)
    base: dict[str, str] = field(default_factory=dict)
    found: list[_Found] = field(default_factory=list)
    elementwise: int = 0

    def visit(self, node: Node) -> None:
        """Take in a node that is no attention."""
        operands = [name for name in node.inputs if name in self.computed]
        kernel = self._kernel(node, operands)
        depth = self._deepest(operands) + (kernel is not None)
        if kernel is not None:
            self.found.append(_Found(depth, tuple(self.base.get(name, name) for name in operands), kernel))
        self.depth |= dict.fromkeys((value.name for value in node.results), depth)
        self.elementwise += single_results(self.graph, node)
        if self._is_everywhere(node, operands, kernel):
            self.everywhere.update(value.name for value in node.results)
        if node.op in ("reshape", "transpose", "cast"):
            self.base[node.result.name] = self.base.get(operands[0], operands[0])

    def attend(self, node: Node, look: Look, cache: Cache | None) -> None:
        """Take in an attention node."""
        read = cache.values if cache and look.absorbed else node.inputs[1:3]
        query = node.inputs[:1]
        first = self._deepest(query) + bool(look.before)
        at = max(first, self._deepest(read)) + 1
        self.found += [_Found(first, (*query, str(place)), product) for place, product in enumerate(look.before)]
        self.found.append(_Found(at, node.inputs, look.attention))
        last = at + bool(look.after)
        self.found += [_Found(last, (node.result.name, str(i)), product) for i, product in enumerate(look.after)]
        self.depth[node.result.name] = last

    def _deepest(self, names: Iterable[str]) -> int:
        return max((self.depth.get(name, 0) for name in names), default=0)

    def _kernel(self, node: Node, operands: list[str]) -> Product | Reduction | None:
        if node.op in PRODUCTS:
            return product_of(self.graph, node, self.computed)
        if node.op in REDUCTIONS and not self.everywhere.issuperset(operands):
            return reduction_of(self.graph, node)
        return None

    def _is_everywhere(self, node: Node, operands: list[str], kernel: Kernel | None) -> bool:
        """Whether all tiles have the node's results: those of a reduction, and what is made from such alone. What a
        choice finds carries other values of the same place with it, as the score without the correction.
        """
        if kernel is not None:
            return isinstance(kernel, Reduction) and node.op not in SPREADING
        read = [name for name in node.inputs[1:] if name in self.computed] if node.op == "gather" else operands
        return bool(read) and self.everywhere.issuperset(read)


def _in_order(found: list[_Found]) -> tuple[Kernel, ...]:
    """Kernels by depth, those that run in one go as one."""
    merged: dict[object, tuple[int, Kernel]] = {}
    for one in found:
        key = _together(one)
        before = merged.get(key)
        merged[key] = (one.depth, one.kernel if before is None else _joined(before[1], one.kernel))
    return tuple(kernel for _, kernel in sorted(merged.values(), key=lambda at: at[0]))


def _together(found: _Found) -> object:
    """Equal for kernels that run in one go."""
    kernel = found.kernel
    if isinstance(kernel, Reduction):
        return found.depth, Reduction
    if isinstance(kernel, Attention):
        return found.depth, found.reads, Attention
    return found.depth, found.reads, replace(kernel, outputs=0)


def _joined(one: Kernel, other: Kernel) -> Kernel:
    if isinstance(one, Product) and isinstance(other, Product):
        return replace(one, outputs=one.outputs + other.outputs)
    if isinstance(one, Reduction) and isinstance(other, Reduction):
        return Reduction(max(one.elements, other.elements), one.results + other.results)
    return one
