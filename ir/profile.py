"""A model as a forecast sees it: what each block computes, in sizes alone, without graph or weights.

A block is a sequence of kernels, in the order in which they depend on each other. What can run in one go is one
kernel: products that read the same vector (queries, keys and values; gate and up) are one :class:`Product` with their
outputs side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from ir.model import BlockKind


@dataclass(frozen=True, slots=True)
class Product:
    """A vector times stored weights, for each token.

    Attributes:
        inputs: elements of the vector that meet in each output.
        outputs: elements of the result.
        weight_bits: stored bits of a weight, without scales; 0 where the matrix is computed, not stored.
        group: weights along the inputs that share a scale and cannot be parted; 1 for plain weights.
        parts: matrices of ``inputs`` x ``outputs`` side by side, each with a vector of its own (one for each head).
        experts: number of such matrices to choose from, 0 where there is no choice; ``active`` of them serve a token.
        vectors: that meet the same weights for each token: 1 in a language model, the patches of a picture in its
            vision tower, the windows of a convolution.
    """

    inputs: int
    outputs: int
    weight_bits: int
    group: int = 1
    parts: int = 1
    experts: int = 0
    active: int = 0
    vectors: int = 1

    @property
    def macs(self) -> int:
        """Multiply-adds for one token."""
        return self.inputs * self.outputs * self.parts * max(1, self.active) * self.vectors

    @property
    def weights(self) -> int:
        """Stored weights."""
        return self.inputs * self.outputs * self.parts * max(1, self.experts) if self.weight_bits else 0


@dataclass(frozen=True, slots=True)
class Attention:
    """A look at the remembered tokens: scores, softmax, and the weighted sum, for each token.

    Attributes:
        heads: query heads; ``cached_heads`` of keys and values, as the cache holds them (1 for a latent cache).
        key_width, value_width: elements of one head's key and value, as the cache holds them.
        bytes_per_token: of the cache, for one remembered token.
        window: tokens that can still be seen, 0 for all; where ``chunked``, those of the newest chunk of that many. For
            attention over a fixed number of vectors, such as the patches of a picture, their number.
        queries: vectors that look, for each token: 1 in a language model, the patches of a picture in its vision tower.
    """

    heads: int
    cached_heads: int
    key_width: int
    value_width: int
    bytes_per_token: int
    window: int = 0
    chunked: bool = False
    queries: int = 1

    def tokens(self, context: int) -> int:
        """Remembered tokens that are read for a token with ``context`` before it."""
        return min(context, self.window) if self.window else context

    @property
    def macs_per_cached_token(self) -> int:
        """Multiply-adds for one token and one remembered token."""
        return self.heads * (self.key_width + self.value_width) * self.queries


@dataclass(frozen=True, slots=True)
class Reduction:
    """Sums, maxima or choices over all ``elements`` of a vector, spread over the region: ``results`` values, for each
    token (norms: 1, and 1 for each head where heads are normalised alone; the choice of 8 experts: 8).
    """

    elements: int
    results: int


Kernel: TypeAlias = Product | Attention | Reduction


@dataclass(frozen=True, slots=True)
class CacheProfile:
    """Bytes that one attention remembers of each token, of the last ``window`` tokens (0: of all)."""

    bytes_per_token: int
    window: int


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """One block. Counts are for one token unless they say otherwise; see :class:`ir.model.Block` for their meaning.

    ``elementwise`` is the number of results of operators on single elements.
    """

    name: str
    kind: BlockKind
    layer: int | None
    weight_bytes: int
    experts: int
    active_experts: int
    caches: tuple[CacheProfile, ...]
    live_bytes_per_token: int
    takes_tokens: bool
    kernels: tuple[Kernel, ...]
    elementwise: int

    def live_bytes(self, chunk: int) -> int:
        """The largest sum of values alive at once, while it works on ``chunk`` tokens."""
        return self.live_bytes_per_token * (chunk if self.takes_tokens else 1)

    def cache_bytes(self, users: int, context: int) -> int:
        """Bytes remembered for ``users`` users of ``context`` tokens each."""
        return users * sum(c.bytes_per_token * (min(context, c.window) if c.window else context) for c in self.caches)

    def macs(self, context: int) -> int:
        """Multiply-adds for one token with ``context`` tokens before it."""
        return sum(
            k.macs_per_cached_token * k.tokens(context) if isinstance(k, Attention) else k.macs
            for k in self.kernels
            if not isinstance(k, Reduction)
        )


@dataclass(frozen=True, slots=True)
class FlowProfile:
    """Bytes that block ``source`` hands to block ``target`` for each token (indices)."""

    source: int
    target: int
    bytes_per_token: int


@dataclass(frozen=True)
class Profile:
    """A model's blocks in topological order and what flows between them.

    ``items`` are sets of blocks (indices) that share a machine, in pipeline order. ``max_context`` is the longest
    context that the model takes (``None``: it does not say); ``parameters`` counts each weight once.
    """

    name: str
    max_context: int | None
    parameters: int
    blocks: tuple[BlockProfile, ...]
    flows: tuple[FlowProfile, ...]
    items: tuple[tuple[int, ...], ...]

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each block the first one that does the same work, as repeated layers do."""
        first: dict[object, int] = {}
        return tuple(
            first.setdefault(replace(block, name="", layer=None), index) for index, block in enumerate(self.blocks)
        )

    @cached_property
    def incoming(self) -> tuple[tuple[FlowProfile, ...], ...]:
        """For each block what it reads of others."""
        found: list[list[FlowProfile]] = [[] for _ in self.blocks]
        for flow in self.flows:
            found[flow.target].append(flow)
        return tuple(tuple(flows) for flows in found)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all blocks' weights, as stored; a weight that two blocks read counts for each."""
        return sum(block.weight_bytes for block in self.blocks)

    @property
    def layers(self) -> int:
        """Number of repeated layers."""
        return len({block.layer for block in self.blocks if block.layer is not None})

    def cache_bytes(self, users: int, context: int) -> int:
        """Bytes remembered for ``users`` users of ``context`` tokens each."""
        return sum(block.cache_bytes(users, context) for block in self.blocks)
