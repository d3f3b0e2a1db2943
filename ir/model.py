"""A model as placement sees it: blocks with bytes and work, the values that flow between them, and their caches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from ir.graph import Graph, Parameter


class BlockKind(StrEnum):
    """What a block is for."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    DENSE_MLP = "dense_mlp"
    ROUTER = "router"
    SHARED_EXPERT = "shared_expert"
    EXPERTS = "experts"
    HEAD = "head"
    OTHER = "other"


class Granularity(StrEnum):
    """What is placed as a whole.

    ``layers``: all blocks of a layer share a wafer. ``halves``: attention and MLP may lie on two. ``ops``: each product
    with its weight is a block, and so is attention with its cache; mixtures of experts stay whole. ``auto`` is for the
    compiler to choose, and no model's own.
    """

    AUTO = "auto"
    LAYERS = "layers"
    HALVES = "halves"
    OPS = "ops"


@dataclass(frozen=True, slots=True)
class Cache:
    """What an attention node remembers of each token: ``values`` are the smallest cut of the graph from which its
    keys and values can be recomputed token by token, by the nodes ``recompute`` (indices, in order).

    ``window`` is the number of tokens that attention can still see (0: all of them). Where it is ``chunked``, they are
    those of the newest token's chunk of that many; else the last ones.
    """

    node: int
    values: tuple[str, ...]
    recompute: tuple[int, ...]
    bytes_per_token: int
    window: int = 0
    chunked: bool = False

    def tokens(self, context: int) -> int:
        """Tokens to remember for one user of ``context`` tokens."""
        return min(context, self.window) if self.window else context


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the model that lies on one wafer, in one region of tiles.

    Attributes:
        name: for example ``layers.17.experts``.
        layer: index of the repeated layer that it belongs to, or ``None``.
        nodes: indices of its nodes in the graph, in order.
        parameters: names of the weights that its nodes read.
        weight_bytes: their bytes as stored.
        experts: number of routed experts, 0 for every other kind; ``active_experts`` of them serve a token.
        caches: what its attention nodes remember.
        macs_per_token: multiply-adds for one token, attention's look at the cache left out.
        macs_per_cached_token: multiply-adds of attention for one token and one remembered token.
        live_bytes_per_token: the largest sum of values alive at once, for one token.
        takes_tokens: whether it works on any number of them; else its values are as large for a whole step.
    """

    name: str
    kind: BlockKind
    layer: int | None
    nodes: tuple[int, ...]
    parameters: tuple[str, ...]
    weight_bytes: int
    experts: int
    active_experts: int
    caches: tuple[Cache, ...]
    macs_per_token: int
    macs_per_cached_token: int
    live_bytes_per_token: int
    takes_tokens: bool = True

    def live_bytes(self, chunk: int) -> int:
        """The largest sum of values alive at once, while it works on ``chunk`` tokens."""
        return self.live_bytes_per_token * (chunk if self.takes_tokens else 1)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes remembered for each token of each user."""
        return sum(cache.bytes_per_token for cache in self.caches)

    def cache_bytes(self, users: int, context: int) -> int:
        """Bytes remembered for ``users`` users of ``context`` tokens each."""
        return users * sum(cache.bytes_per_token * cache.tokens(context) for cache in self.caches)


@dataclass(frozen=True, slots=True)
class Edge:
    """``value``, computed by block ``source`` and read by block ``target`` (indices into ``Model.blocks``)."""

    source: int
    target: int
    value: str
    bytes_per_token: int


@dataclass(frozen=True)
class Model:
    """The graph cut into blocks, in topological order.

    ``together`` lists sets of blocks (indices) that must share a wafer: the router, the shared expert and the routed
    experts of a layer, so that routing never leaves the wafer, or all blocks of a layer if that is the ``granularity``.
    """

    graph: Graph
    blocks: tuple[Block, ...]
    edges: tuple[Edge, ...]
    together: tuple[tuple[int, ...], ...]
    granularity: Granularity = Granularity.HALVES

    @cached_property
    def placed(self) -> tuple[Parameter, ...]:
        """Parameters that some block reads, each once."""
        read = {name for block in self.blocks for name in block.parameters}
        return tuple(parameter for parameter in self.graph.parameters if parameter.name in read)

    @cached_property
    def unplaced(self) -> tuple[Parameter, ...]:
        """Parameters that the graph never reads, such as a vision tower left out."""
        placed = {parameter.name for parameter in self.placed}
        return tuple(parameter for parameter in self.graph.parameters if parameter.name not in placed)

    @property
    def parameters(self) -> int:
        """Number of weights placed."""
        return sum(parameter.elements for parameter in self.placed)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights placed, as stored, each counted once."""
        return sum(parameter.stored_bytes for parameter in self.placed)

    @property
    def copied_bytes(self) -> int:
        """Bytes that are stored again because several blocks read the same weight (tied embedding and head)."""
        return sum(block.weight_bytes for block in self.blocks) - self.weight_bytes

    @property
    def layers(self) -> int:
        """Number of repeated layers."""
        return len({block.layer for block in self.blocks if block.layer is not None})

    def of_kind(self, kind: BlockKind) -> tuple[Block, ...]:
        """The blocks of one kind, in order."""
        return tuple(block for block in self.blocks if block.kind is kind)
