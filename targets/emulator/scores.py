"""One attention: scores, softmax and weighted values, by the host's routine or tile by tile.

Operands are pieces, as a latent and a rotary key lie in two arrays: a query's pieces meet the keys' of the same place,
and results are as wide as all pieces of values together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch

from ir.graph import Attributes
from ir.layout import Ints
from targets.emulator.arithmetic import Order
from targets.program.spread import Sight, Spread

Tensor = torch.Tensor
_SCORES_AT_ONCE = 1 << 22
"""Scores of a block of queries that the host holds at once."""


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
    """Which elements of a token lie where: those of each head's keys and values, by piece [cached heads, width]."""

    spread: Spread
    keys: tuple[Ints, ...]
    values: tuple[Ints, ...]


def attention(operands: Operands, meaning: Meaning, layout: Layout, order: Order) -> Tensor:
    """Results [stacks, cached heads, heads of each, queries, width], a block of queries after the other."""
    heads = operands.queries[0].shape[:3].numel()
    fused = order is Order.HOST and _is_plain(operands, meaning)
    block = max(1, _SCORES_AT_ONCE // (operands.tokens * (1 if fused else heads)))
    if fused and _is_square(operands, meaning.sight):
        block = operands.new
    run = _on_tiles if order is Order.MESH else _fused if fused else _at_once
    parts = [
        run(part, meaning, layout)
        for start in range(0, operands.new, block)
        for part in [_block(operands, meaning, start, block)]
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


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
class _Share:
    """What a tile holds of tokens that follow each other in ``order``: their elements from ``first`` to ``last``."""

    tile: int
    tokens: slice
    first: int
    last: int


def _on_tiles(block: _Block, meaning: Meaning, layout: Layout) -> Tensor:
    """Each tile scores its own elements, and adds them to what tiles before it found for the same token; all have the
    maximum and the sum; each weighs its own values, which are summed along rows of tiles to the first column, and up.
    """
    operands, spread = block.operands, layout.spread
    place = np.arange(operands.first, operands.first + operands.tokens) % spread.capacity
    order = np.argsort(place, kind="stable")
    ordered = torch.from_numpy(order).to(operands.keys[0].device)
    wide = torch.promote_types(operands.queries[0].dtype, torch.float32)
    keys, values = (
        [piece.index_select(2, ordered).to(wide) for piece in pieces] for pieces in (operands.keys, operands.values)
    )
    queries = [query.flatten(2, 3).to(wide) for query in operands.queries]
    shares = [list(own) for _, own in groupby(_shares(spread, place[order]), key=lambda share: share.tile)]
    scores = keys[0].new_zeros(*queries[0].shape[:3], operands.tokens)
    for share in (share for own in shares for share in own):
        for query, key, at in zip(queries, keys, layout.keys, strict=True):
            held = _held(key, at, share)
            if held is not None:
                scores[..., share.tokens] += query @ held.transpose(2, 3)
    heads = operands.queries[0].shape[2:4]
    back = torch.from_numpy(np.argsort(order)).to(scores.device)
    unordered = torch.unflatten(scores[..., back], 2, heads)
    scores = _masked(unordered, block, meaning)[..., ordered]
    greatest = scores.amax(-1, keepdim=True)
    sinks = None if operands.sinks is None else operands.sinks.to(wide)[None, :, :, None, None]
    greatest = greatest if sinks is None else torch.maximum(greatest, sinks)
    weights = torch.exp(scores - greatest)
    total = _summed(((own[0].tile, _ending(weights, own, spread)) for own in shares[::-1]), spread.region.columns)
    total = total if sinks is None else total + torch.exp(sinks - greatest)
    shared = (weights / total).to(operands.queries[0].dtype).to(wide).flatten(2, 3)
    parts = [
        _summed(_weighed(shared, value, at, shares[::-1]), spread.region.columns)
        for value, at in zip(values, layout.values, strict=True)
    ]
    return torch.unflatten(torch.cat(parts, dim=-1).to(operands.queries[0].dtype), 2, heads)


def _shares(spread: Spread, place: Ints) -> Iterator[_Share]:
    """Tile by tile; whole tokens of a tile as one share. Tokens at the same place, as a window that moves on has them,
    are shares of their own.
    """
    first, last = spread.tile(place, 0 * place), spread.tile(place, 0 * place + spread.width - 1)
    found: list[_Share] = []
    start = 0
    for index in range(len(place)):
        if first[index] != last[index]:
            bounds = spread.tile(place[index : index + 1], np.arange(spread.width))
            cuts = [0, *(np.flatnonzero(np.diff(bounds)) + 1).tolist(), spread.width]
            found += [_Share(int(bounds[low]), slice(index, index + 1), low, high) for low, high in pairwise(cuts)]
            start = index + 1
        elif index + 1 == len(place) or first[index + 1] != first[index] or last[index + 1] != first[index]:
            found.append(_Share(int(first[index]), slice(start, index + 1), 0, spread.width))
            start = index + 1
    return iter(sorted(found, key=lambda share: share.tile))


def _held(piece: Tensor, at: Ints, share: _Share) -> Tensor | None:
    """The part of a piece [stacks, cached heads, tokens, width] that a share holds, zero elsewhere."""
    own = (at >= share.first) & (at < share.last)
    if not own.any():
        return None
    part = piece[:, :, share.tokens]
    return part if own.all() else part * torch.from_numpy(own).to(part)[None, :, None]


def _ending(weights: Tensor, own: list[_Share], spread: Spread) -> Tensor:
    """The sum of the weights of the tokens that end on a tile, which count there."""
    total = weights.new_zeros(*weights.shape[:-1], 1)
    for share in own:
        if share.last == spread.width:
            total += weights[..., share.tokens].sum(-1, keepdim=True)
    return total


def _weighed(weights: Tensor, value: Tensor, at: Ints, shares: list[list[_Share]]) -> Iterator[tuple[int, Tensor]]:
    """Each tile's weighted sum of its own values."""
    for own in shares:
        parts = [weights[..., share.tokens] @ held for share in own if (held := _held(value, at, share)) is not None]
        if parts:
            yield own[0].tile, sum(parts[1:], parts[0])


def _summed(parts: Iterable[tuple[int, Tensor]], columns: int) -> Tensor:
    """The sum of what tiles have, from the last tile to the first: along each row to its first tile, then up."""
    total: Tensor | None = None
    for _, row in groupby(parts, key=lambda part: part[0] // columns):
        line: Tensor | None = None
        for _, value in row:
            line = value if line is None else line + value
        assert line is not None
        total = line if total is None else total + line
    assert total is not None
    return total
