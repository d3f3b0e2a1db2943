"""One attention: scores, softmax and weighted values, by the host's routine or tile by tile.

Operands are pieces, as a latent and a rotary key lie in two arrays: a query's pieces meet the keys' of the same place,
and results are as wide as all pieces of values together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ir.graph import Attributes
from ir.layout import Ints
from targets.emulator.arithmetic import Order
from targets.program.spread import Sight, Spread

Tensor = torch.Tensor
_SCORES_AT_ONCE = 1 << 22
"""Scores of a block of queries that the host holds at once."""
_SUMS_AT_ONCE = 1 << 24
"""Weighted values of a block of queries, of all tiles, that it holds at once."""


@dataclass(frozen=True, slots=True)
class Operands:
    """What meets in an attention.

    Attributes:
        queries: pieces [stacks, cached heads, heads of each, queries, width].
        keys, values: pieces [stacks, cached heads, tokens, width].
        sinks: [cached heads, heads of each], if there are any.
        first: the position of the first key; the last query is at the last key's.
    """

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    sinks: Tensor | None
    first: int

    @property
    def new(self) -> int:
        """Queries."""
        return self.queries[0].shape[3]

    @property
    def tokens(self) -> int:
        """Keys."""
        return self.keys[0].shape[2]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an attention node asks for."""

    sight: Sight
    scale: float
    softcap: float

    @staticmethod
    def of(sight: Sight, attributes: Attributes) -> Meaning:
        """With the scale and soft cap among ``attributes``."""
        return Meaning(sight, attributes["scale"], attributes["softcap"])


@dataclass(frozen=True, slots=True)
class Layout:
    """Which elements of a token lie where: those of each head's keys and values, by piece [cached heads, width].

    Stacks lie one after the other, each of ``stack`` tokens (0: there is one).
    """

    spread: Spread
    keys: tuple[Ints, ...]
    values: tuple[Ints, ...]
    stack: int = 0


def attention(operands: Operands, meaning: Meaning, layout: Layout, order: Order) -> Tensor:
    """Results [stacks, cached heads, heads of each, queries, width], a block of queries after the other."""
    heads = operands.queries[0].shape[:3].numel()
    fused = order is Order.HOST and _is_plain(operands, meaning)
    block = max(1, _SCORES_AT_ONCE // (operands.tokens * (1 if fused else heads)))
    if fused and _is_square(operands, meaning.sight):
        block = operands.new
    if order is Order.MESH:
        sums = layout.spread.region.tiles * heads * sum(piece.shape[3] for piece in operands.values)
        block = min(block, max(1, _SUMS_AT_ONCE // sums))
    run = _by_stack if order is Order.MESH else _fused if fused else _at_once
    parts = [
        run(part, meaning, layout)
        for start in range(0, operands.new, block)
        for part in [_block(operands, meaning, start, block)]
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def _by_stack(block: _Block, meaning: Meaning, layout: Layout) -> Tensor:
    """Tile by tile, each stack on its own tiles."""
    operands = block.operands
    found = []
    for number in range(operands.queries[0].shape[0]):
        pieces = (
            tuple(x[number : number + 1] for x in part) for part in (operands.queries, operands.keys, operands.values)
        )
        own = Operands(*pieces, operands.sinks, operands.first)
        found.append(_on_tiles(replace(block, operands=own), meaning, layout, number * layout.stack))
    return torch.cat(found)


def _block(operands: Operands, meaning: Meaning, start: int, count: int) -> _Block:
    """``count`` queries from ``start`` on, and the keys and values that they see."""
    end = operands.first + operands.tokens
    position = np.arange(end - operands.new, end)[start : start + count]
    first, last = meaning.sight.span(position, end)
    low, high = max(int(first[0]), operands.first), int(last[-1])
    seen = slice(low - operands.first, high - operands.first)
    cut = Operands(
        tuple(piece[:, :, :, start : start + count] for piece in operands.queries),
        tuple(piece[:, :, seen] for piece in operands.keys),
        tuple(piece[:, :, seen] for piece in operands.values),
        operands.sinks,
        low,
    )
    return _Block(cut, first - low, last - low)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some queries, the keys that they see, and which of these each sees: from ``start`` to ``end`` [queries]."""

    operands: Operands
    start: Ints
    end: Ints

    def hidden(self, device: torch.device) -> Tensor | None:
        """Keys that a query does not see [queries, tokens]; ``None`` if each sees all."""
        if self.start.max() <= 0 and self.end.min() >= self.operands.tokens:
            return None
        key = torch.arange(self.operands.tokens, device=device)
        start, end = (torch.from_numpy(side).to(device)[:, None] for side in (self.start, self.end))
        return (key < start) | (key >= end)


# --- by the host's routine --------------------------------------------------------------------------------------------


def _is_plain(operands: Operands, meaning: Meaning) -> bool:
    """Whether torch's own routine computes it."""
    whole = len(operands.keys) == len(operands.values) == 1
    return whole and not meaning.softcap and operands.sinks is None


def _is_square(operands: Operands, sight: Sight) -> bool:
    """Whether each query sees what is before it, and nothing else."""
    return sight.causal and operands.new == operands.tokens and (not sight.most or operands.new <= sight.most)


def _fused(block: _Block, meaning: Meaning, _layout: Layout) -> Tensor:
    operands = block.operands
    (query,), (key,), (value,) = operands.queries, operands.keys, operands.values
    attend = torch.nn.functional.scaled_dot_product_attention
    if operands.new == 1:  # heads that share a key are its queries
        return attend(query.squeeze(3), key, value, scale=meaning.scale).unsqueeze(3)
    square = operands.new == operands.tokens and (np.diff(block.end) == 1).all() and block.start.max() <= 0
    hidden = None if square else block.hidden(query.device)
    mask = None if hidden is None else ~hidden
    parts = [
        attend(query[:, :, i], key, value, attn_mask=mask, is_causal=bool(square), scale=meaning.scale)
        for i in range(query.shape[2])
    ]
    return torch.stack(parts, dim=2)


def _at_once(block: _Block, meaning: Meaning, _layout: Layout) -> Tensor:
    operands = block.operands
    scores = torch.zeros((), device=operands.keys[0].device)
    for query, key in zip(operands.queries, operands.keys, strict=True):
        part = query.flatten(2, 3) @ key.transpose(2, 3)
        scores = part if scores.dim() == 0 else scores + part
    weights = _softmax(torch.unflatten(scores, 2, operands.queries[0].shape[2:4]), block, meaning)
    weights = weights.to(operands.queries[0].dtype).flatten(2, 3)
    parts = [weights @ value for value in operands.values]
    result = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return torch.unflatten(result, 2, operands.queries[0].shape[2:4])


def _softmax(scores: Tensor, block: _Block, meaning: Meaning) -> Tensor:
    """Weights in 32 bit of scores [stacks, cached heads, heads of each, queries, tokens]."""
    scores = _masked(scores, block, meaning)
    sinks = block.operands.sinks
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    column = sinks.to(scores.dtype)[None, :, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, column), dim=-1), dim=-1, dtype=torch.float32)[..., :-1]


def _masked(scores: Tensor, block: _Block, meaning: Meaning) -> Tensor:
    """Scores as they enter the softmax: scaled, capped, and nothing for what is not seen."""
    scores = scores * meaning.scale
    if meaning.softcap:
        scores = torch.tanh(scores / meaning.softcap) * meaning.softcap
    hidden = block.hidden(scores.device)
    return scores if hidden is None else scores.masked_fill(hidden, -torch.inf)


# --- tile by tile -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens on their tiles, those in use alone, whose numbers are counted row by row.

    Attributes:
        first, last: the first and the last tile of each token [tokens].
        whole: for each tile the tokens that lie on no other [tiles, most]; ``-1`` where there are fewer.
        parted: the tokens on several tiles.
        bounds: for each of these its elements' tiles, counted from its first one [parted, width].
    """

    first: Tensor
    last: Tensor
    whole: Tensor
    parted: Tensor
    bounds: Tensor

    @staticmethod
    def on(spread: Spread, positions: Ints, device: torch.device) -> _Tokens:
        """The tokens at ``positions``."""
        place = positions % spread.capacity
        first, last = spread.tile(place, 0 * place), spread.tile(place, 0 * place + spread.width - 1)
        alone = np.flatnonzero(first == last)
        alone = alone[np.argsort(first[alone], kind="stable")]
        count = np.bincount(first[alone], minlength=spread.region.tiles)
        start = np.cumsum(count) - count
        whole = np.full((spread.region.tiles, max(1, int(count.max(initial=0)))), -1)
        whole[first[alone], np.arange(len(alone)) - start[first[alone]]] = alone
        parted = np.flatnonzero(first != last)
        bounds = spread.tile(place[parted][:, None], np.arange(spread.width)[None]) - first[parted][:, None]
        return _Tokens(*(torch.from_numpy(x).to(device) for x in (first, last, whole, parted, bounds)))

    @property
    def parts(self) -> range:
        """Of parted tokens: on the first of their tiles, the next one, and so on."""
        return range(int(self.bounds.max()) + 1 if len(self.parted) else 0)

    def part(self, piece: Tensor, at: Tensor, number: int) -> Tensor:
        """What of a piece [stacks, heads, parted, width] lies on a part's tiles, zero elsewhere."""
        return piece * (self.bounds[:, at] == number).transpose(0, 1)


def _on_tiles(block: _Block, meaning: Meaning, layout: Layout, place: int) -> Tensor:
    """Of one stack, whose first token is at ``place``: each tile scores its own elements, and adds them to what tiles before it found for the same token; all have the
    maximum and the sum; each weighs its own values, which are summed along rows of tiles to the first column, and up.
    """
    operands, region = block.operands, layout.spread.region
    device = operands.keys[0].device
    positions = place + operands.first + np.arange(operands.tokens)
    tokens = _Tokens.on(layout.spread, positions, device)
    wide = torch.promote_types(operands.queries[0].dtype, torch.float32)
    keys, values = ([piece.to(wide) for piece in pieces] for pieces in (operands.keys, operands.values))
    key_at, value_at = (
        [torch.from_numpy(numbers).to(device) for numbers in part] for part in (layout.keys, layout.values)
    )
    queries = [query.flatten(2, 3).to(wide) for query in operands.queries]
    heads = operands.queries[0].shape[2:4]
    scores = _masked(torch.unflatten(_scored(queries, keys, key_at, tokens), 2, heads), block, meaning)
    greatest = scores.amax(-1, keepdim=True)
    sinks = None if operands.sinks is None else operands.sinks.to(wide)[None, :, :, None, None]
    greatest = greatest if sinks is None else torch.maximum(greatest, sinks)
    weights = torch.exp(scores - greatest)
    ending = weights.new_zeros(*weights.shape[:-1], region.tiles).index_add(-1, tokens.last, weights)
    total = _summed(ending.movedim(-1, 2)[..., None], region.rows)
    total = total if sinks is None else total + torch.exp(sinks - greatest)
    shared = (weights / total).to(operands.queries[0].dtype).to(wide).flatten(2, 3)
    parts = [
        _summed(_weighed(shared, value, at, tokens), region.rows) for value, at in zip(values, value_at, strict=True)
    ]
    return torch.unflatten(torch.cat(parts, dim=-1).to(operands.queries[0].dtype), 2, heads)


def _scored(queries: list[Tensor], keys: list[Tensor], key_at: list[Tensor], tokens: _Tokens) -> Tensor:
    """Scores [stacks, cached heads, queries, tokens]: of parted tokens the sum of what their tiles find, in order."""
    scores = sum(query @ key.transpose(2, 3) for query, key in zip(queries, keys, strict=True))
    assert isinstance(scores, Tensor)
    if len(tokens.parted):
        found = scores.new_zeros(*scores.shape[:-1], len(tokens.parted))
        parted = [key.index_select(2, tokens.parted) for key in keys]
        for number in tokens.parts:
            for query, key, at in zip(queries, parted, key_at, strict=True):
                found += query @ tokens.part(key, at, number).transpose(2, 3)
        scores[..., tokens.parted] = found
    return scores


def _weighed(weights: Tensor, value: Tensor, at: Tensor, tokens: _Tokens) -> Tensor:
    """Each tile's weighted sum of its own values [stacks, cached heads, tiles, queries, width].

    ``weights`` are [stacks, cached heads, queries, tokens], ``value`` [stacks, cached heads, tokens, width].
    """
    tiles, most = tokens.whole.shape
    chosen = tokens.whole.clamp(min=0).flatten()
    share = weights[..., chosen] * (tokens.whole >= 0).flatten()
    held = torch.unflatten(value.index_select(2, chosen), 2, (tiles, most))
    found = torch.unflatten(share, 3, (tiles, most)).transpose(2, 3) @ held
    if len(tokens.parted):
        share = weights[..., tokens.parted].transpose(2, 3)[..., None]  # [stacks, cached heads, parted, queries, 1]
        parted, first = value.index_select(2, tokens.parted), tokens.first[tokens.parted]
        for number in tokens.parts:
            own = share * tokens.part(parted, at, number)[..., None, :]
            found.index_add_(2, (first + number).clamp(max=tiles - 1), own)
    return found


def _summed(parts: Tensor, rows: int) -> Tensor:
    """The sum of what tiles have [stacks, cached heads, tiles, ...]: along each row to its first tile, then up."""
    lines = torch.unflatten(parts, 2, (rows, -1))
    return _chained(_chained(lines, 3), 2)


def _chained(parts: Tensor, axis: int) -> Tensor:
    total, *others = reversed(parts.unbind(axis))
    for part in others:
        total = total + part
    return total
