"""One attention: scores, softmax and weighted values, by the host's routine or tile by tile.

Operands are pieces, as a latent and a rotary key lie in two arrays: a query's pieces meet the keys' of the same place,
and results are as wide as all pieces of values together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ir.graph import Attributes
from ir.layout import Ints
from targets.emulator.arithmetic import Order
from targets.program.caches import Sight, Spread

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
    """Which elements of a token lie where: those of each head's keys and values, by piece [cached heads, width].

    Stacks lie one after the other, each of ``stack`` tokens (0: there is one).
    """

    spread: Spread
    keys: tuple[Ints, ...]
    values: tuple[Ints, ...]
    stack: int = 0


def attention(operands: Operands, meaning: Meaning, layout: Callable[[], Layout], order: Order) -> Tensor:
    """Results [stacks, cached heads, heads of each, queries, width], a block of queries after the other; ``layout`` is
    asked for in the order of the mesh alone.
    """
    if order is Order.MESH:
        stacks = range(operands.queries[0].shape[0])
        own = layout()
        return torch.cat([_on_tiles(_stack(operands, number), meaning, own, number) for number in stacks])
    if not _is_plain(operands, meaning):
        return _in_blocks(operands, meaning, operands.tokens * operands.queries[0].shape[:3].numel(), _at_once)
    if _is_square(operands, meaning.sight):
        return _fused(_block(operands, meaning, 0, operands.new), meaning)
    return _in_blocks(operands, meaning, operands.tokens, _fused)


def _stack(operands: Operands, number: int) -> Operands:
    """One stack alone."""
    queries, keys, values = (
        tuple(piece[number : number + 1] for piece in pieces)
        for pieces in (operands.queries, operands.keys, operands.values)
    )
    return Operands(queries, keys, values, operands.sinks, operands.first)


def _in_blocks(
    operands: Operands, meaning: Meaning, scores: int, run: Callable[[_Block, Meaning], Tensor], *, cut: bool = True
) -> Tensor:
    """``run`` on blocks of queries, of ``scores`` each, and the keys that they see, or, if not ``cut``, all keys."""
    count = max(1, _SCORES_AT_ONCE // scores)
    starts = range(0, operands.new, count)
    parts = [run(_block(operands, meaning, start, count, cut=cut), meaning) for start in starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def _block(operands: Operands, meaning: Meaning, start: int, count: int, *, cut: bool = True) -> _Block:
    """``count`` queries from ``start`` on, and the keys and values that they see, or, if not ``cut``, all of them."""
    end = operands.first + operands.tokens
    position = np.arange(end - operands.new, end)[start : start + count]
    first, last = meaning.sight.span(position, end)
    low, high = (max(int(first[0]), operands.first), int(last[-1])) if cut else (operands.first, end)
    seen = slice(low - operands.first, high - operands.first)
    own = Operands(
        tuple(piece[:, :, :, start : start + count] for piece in operands.queries),
        tuple(piece[:, :, seen] for piece in operands.keys),
        tuple(piece[:, :, seen] for piece in operands.values),
        operands.sinks,
        low,
    )
    return _Block(own, first - low, last - low)


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


def _fused(block: _Block, meaning: Meaning) -> Tensor:
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


def _at_once(block: _Block, meaning: Meaning) -> Tensor:
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
    """Tokens on their tiles, which are counted row by row from the first row in use.

    Attributes:
        rows, columns: of tiles in use.
        last: the last tile of each token [tokens].
        parted: tokens that lie on several tiles.
        tile_of: on which of these each element lies, counted from the token's first one [parted, width].
        token, part: for each place of a tile the token that has elements there, -1 for none, and which part of a
            parted one they are, -1 for a whole one [tiles, places].
    """

    rows: int
    columns: int
    last: Ints
    parted: Ints
    tile_of: Ints
    token: Ints
    part: Ints

    @staticmethod
    def on(spread: Spread, positions: Ints) -> _Tokens:
        """The tokens at ``positions``."""
        columns, number = spread.region.columns, np.arange(len(positions))
        place = positions % spread.capacity
        first, last = spread.tile(place, 0 * place), spread.tile(place, 0 * place + spread.width - 1)
        above = int(first.min()) // columns
        rows = int(last.max()) // columns - above + 1
        first, last = first - above * columns, last - above * columns
        parted = number[first != last]
        tile_of = (
            spread.tile(place[parted, None], np.arange(spread.width)[None]) - above * columns - first[parted, None]
        )
        pairs = [(number[first == last], first[first == last], -1)]
        for part in range(int(tile_of.max(initial=-1)) + 1):
            here = (tile_of == part).any(axis=1)
            pairs.append((parted[here], first[parted[here]] + part, part))
        token, tile = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        which = np.concatenate([np.full(len(pair[0]), pair[2]) for pair in pairs])
        order = np.argsort(tile, kind="stable")
        token, tile, which = token[order], tile[order], which[order]
        count = np.bincount(tile, minlength=rows * columns)
        at = np.arange(len(tile)) - (np.cumsum(count) - count)[tile]
        tables = [np.full((rows * columns, int(count.max())), -1) for _ in range(2)]
        for table, found in zip(tables, (token, which), strict=True):
            table[tile, at] = found
        return _Tokens(rows, columns, last, parted, tile_of, tables[0], tables[1])


def _on_tiles(operands: Operands, meaning: Meaning, layout: Layout, number: int) -> Tensor:
    """Of stack ``number``: each tile scores its own elements, and adds them to what tiles before it found for the same
    token; all have the maximum and the sum; each weighs its own values, which are summed along rows of tiles to the
    first column, and up.
    """
    device, dtype = operands.keys[0].device, operands.queries[0].dtype
    positions = number * layout.stack + operands.first + np.arange(operands.tokens)
    tokens = _Tokens.on(layout.spread, positions)
    wide = torch.promote_types(dtype, torch.float32)
    keys = _parted_keys([piece.to(wide) for piece in operands.keys], layout.keys, tokens)
    values = [
        _on_own_tiles(piece.to(wide), at, tokens) for piece, at in zip(operands.values, layout.values, strict=True)
    ]
    chosen, there = (torch.from_numpy(x.reshape(-1)).to(device) for x in (tokens.token.clip(0), tokens.token >= 0))
    last = torch.from_numpy(tokens.last).to(device)

    def run(block: _Block, meaning: Meaning) -> Tensor:
        queries = [query.flatten(2, 3).to(wide) for query in block.operands.queries]
        heads = block.operands.queries[0].shape[2:4]
        scores = _masked(torch.unflatten(_scored(queries, keys, tokens), 2, heads), block, meaning)
        greatest = scores.amax(-1, keepdim=True)
        sinks = None if operands.sinks is None else operands.sinks.to(wide)[None, :, :, None, None]
        greatest = greatest if sinks is None else torch.maximum(greatest, sinks)
        weights = torch.exp(scores - greatest)
        ending = weights.new_zeros(*weights.shape[:-1], tokens.rows * tokens.columns).index_add(-1, last, weights)
        total = _summed(ending.movedim(-1, 2)[..., None], tokens)
        total = total if sinks is None else total + torch.exp(sinks - greatest)
        shared = (weights / total).to(dtype).to(wide).flatten(2, 3)
        share = torch.unflatten(shared[..., chosen] * there, 3, tokens.token.shape).transpose(2, 3)
        parts = [_summed(share @ value, tokens) for value in values]
        return torch.unflatten(torch.cat(parts, dim=-1).to(dtype), 2, heads)

    # Of each query the host holds its scores, and what every tile has of its result.
    width = max(operands.tokens, tokens.rows * tokens.columns * sum(value.shape[-1] for value in values))
    return _in_blocks(operands, meaning, width * operands.queries[0].shape[:3].numel(), run, cut=False)


def _mask(at: Ints, tokens: _Tokens, part: int) -> Ints:
    """Which elements ``at`` [cached heads, width] of the parted tokens are on a part's tile [heads, parted, width]."""
    found: Ints = (tokens.tile_of[:, at] == part).transpose(1, 0, 2)
    return found


def _parted_keys(keys: list[Tensor], at: tuple[Ints, ...], tokens: _Tokens) -> list[list[Tensor]]:
    """Keys whole, and then part by part those of parted tokens, zero where elements lie on other tiles."""
    parted = torch.from_numpy(tokens.parted).to(keys[0].device)
    found = [keys]
    for part in range(int(tokens.tile_of.max(initial=-1)) + 1):
        masks = [torch.from_numpy(_mask(numbers, tokens, part)).to(keys[0].device) for numbers in at]
        found.append([key.index_select(2, parted) * mask for key, mask in zip(keys, masks, strict=True)])
    return found


def _scored(queries: list[Tensor], keys: list[list[Tensor]], tokens: _Tokens) -> Tensor:
    """Scores [1, cached heads, queries, tokens]: of parted tokens the sum of what their tiles find, one by one."""
    whole, *parts = [sum(query @ key.transpose(2, 3) for query, key in zip(queries, own, strict=True)) for own in keys]
    assert isinstance(whole, Tensor)
    if parts:
        whole[..., torch.from_numpy(tokens.parted).to(whole.device)] = sum(parts[1:], parts[0])
    return whole


def _on_own_tiles(value: Tensor, at: Ints, tokens: _Tokens) -> Tensor:
    """A piece of values [1, cached heads, tokens, width] tile by tile [1, cached heads, tiles, places, width], zero
    where elements lie on other tiles.
    """
    chosen = torch.from_numpy(tokens.token.clip(0).reshape(-1)).to(value.device)
    held = torch.unflatten(value.index_select(2, chosen), 2, tokens.token.shape)
    rank = np.searchsorted(tokens.parted, tokens.token)
    for part in range(int(tokens.part.max()) + 1):
        tile, place = np.nonzero(tokens.part == part)
        mask = _mask(at, tokens, part)[:, rank[tile, place]]
        held[:, :, torch.from_numpy(tile), torch.from_numpy(place)] *= torch.from_numpy(mask).to(value)
    return held


def _summed(parts: Tensor, tokens: _Tokens) -> Tensor:
    """The sum of what tiles have [1, cached heads, tiles, ...]: along each row to its first tile, then up."""
    lines = torch.unflatten(parts, 2, (tokens.rows, tokens.columns))
    return _chained(_chained(lines, 3), 2)


def _chained(parts: Tensor, axis: int) -> Tensor:
    total, *others = reversed(parts.unbind(axis))
    for part in others:
        total = total + part
    return total
